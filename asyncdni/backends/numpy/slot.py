"""What a stage keeps of one batch between its ops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from asyncdni.backends.base import Array, Context
from asyncdni.backends.numpy.versions import Version
from asyncdni.nn.base import Slot

__all__ = ["BlockSlot", "StageSlot"]


@dataclass(slots=True)
class BlockSlot:
    """The forward state of one batch in one block."""

    layers: list[Slot]
    own: Slot = field(default_factory=dict)  # joined inputs, summed gradients
    loss: Slot = field(default_factory=dict)
    y: Array | None = None  # the activation
    pushed: dict[int, Array] = field(default_factory=dict)  # by layer: gradients not learnt from
    version: Version | None = None  # of the weights it was forwarded with, where that matters


@dataclass(slots=True)
class StageSlot:
    """The forward state of one batch in all blocks, and at the exit."""

    blocks: dict[str, BlockSlot]
    context: Context = field(default_factory=dict)
    samples: int = 0
    gradients: Mapping[str, Array] = field(default_factory=dict)  # kept for `learn`
    prediction: Array | None = None
    generator: Slot = field(default_factory=dict)
    own: Slot = field(default_factory=dict)

    def let_go(self) -> None:
        """Of gradients that came for `learn`: their memory may be a message's."""
        self.gradients = {}
        for block in self.blocks.values():
            block.pushed.clear()
