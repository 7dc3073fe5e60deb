"""Local blocks that make what a ResNet's readout takes, (B, PLANES, 1, 1), of feature maps
(B, C, H, W) with fewer planes. The readout begins with the mean over places: one is enough."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["PLANES", "WIDTH", "Mapped", "Narrow", "Placed", "Repeated", "Wide"]

#: Planes of the first and of the last layers, which the readout takes.
WIDTH, PLANES = 16, 128
#: Planes inside a narrow block.
NARROW = 32


class Repeated(nn.Module):
    """Each plane as often as it takes: no weights, and no arithmetic to speak of."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.times = PLANES // width

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h.mean((2, 3), keepdim=True).repeat(1, self.times, 1, 1)


class Mapped(Repeated):
    """The same and a linear map of all planes, which begins at zero."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.up = _zero(nn.Conv2d(width, PLANES, 1))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return super().forward(h) + self.up(h.mean((2, 3), keepdim=True))


class Narrow(Repeated):
    """The same beside two 3 x 3 convolutions of few planes, each of which halves both axes, and a
    map up, which begins at zero."""

    def __init__(self, width: int, inside: int = NARROW) -> None:
        super().__init__(width)
        self.convolutions = nn.Sequential(*_halved(width, inside), *_halved(inside, inside))
        self.up = _zero(nn.Conv2d(inside, PLANES, 1))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return super().forward(h) + self.up(self.convolutions(h).mean((2, 3), keepdim=True))


class Wide(Narrow):
    """A narrow block of twice as many planes."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 2 * NARROW)


class Placed(Narrow):
    """A narrow block whose map up tells 4 x 4 places apart."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.up = _zero(nn.Conv2d(NARROW, PLANES, 4))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        places = nn.functional.adaptive_avg_pool2d(self.convolutions(h), 4)
        return Repeated.forward(self, h) + self.up(places)


def _halved(inputs: int, outputs: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def _zero(module: nn.Module) -> nn.Module:
    for weights in module.parameters():
        nn.init.zeros_(weights)
    return module
