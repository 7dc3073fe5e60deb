"""Modules on a GPU. There is none here: a device whose memory is apart stands in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from each import each

torch = pytest.importorskip("torch")

from test_torch_equality import CUTS, made, simulated  # noqa: E402

from asyncdni.errors import ConfigError  # noqa: E402
from asyncdni.nn.torch import device, layer  # noqa: E402


class Apart:
    """Memory of its own, to which all is copied."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.overwritten = 0

    def up(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        return [torch.tensor(array) for array in arrays]

    def overwrite(self, tensors: Sequence[Any], arrays: Sequence[np.ndarray]) -> None:
        self.overwritten += 1
        for tensor, array in zip(tensors, arrays, strict=True):
            tensor.copy_(torch.from_numpy(array))

    def down(self, tensors: Sequence[Any]) -> list[np.ndarray]:
        return [tensor.detach().clone().numpy() for tensor in tensors]


@each("schedule", [{"name": "locked"}, {"name": "delayed", "weights": "stash"}])
def test_weights_in_memory_apart_have_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, schedule: dict[str, Any]
) -> None:
    chosen = made("mlp", CUTS["mlp"][2], schedule, epochs=1)
    expected = simulated(chosen)
    apart = Apart()
    with monkeypatch.context() as patched:
        patched.setattr(layer, "staging_for", lambda name, number: apart)
        found = simulated(chosen)
    assert all(np.array_equal(found[name], array) for name, array in expected.items())
    if schedule["name"] == "locked":  # once an update, not for every pass, and at the beginning
        updates = 2 * -(-60 // chosen.data.batch_size)
        assert updates <= apart.overwritten <= updates + 4


def test_workers_of_a_host_take_its_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.staging_for("auto", 3) is None
    with pytest.raises(ConfigError, match=r'run\.device = "cuda", but PyTorch finds no GPU') as no:
        device.chosen_device("cuda", 0)
    assert "\n" not in str(no.value) and 'take "auto"' in str(no.value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = [str(device.chosen_device(name, n)) for name in ("cuda", "auto") for n in range(3)]
    assert found == 2 * ["cuda:0", "cuda:1", "cuda:0"]
    assert str(device.chosen_device("cpu", 1)) == "cpu"


class Stream:
    """Notes what waits for what."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self.log.append(f"the process waits for {self.name}")


def test_copies_run_on_a_stream_beside_and_wait_for_what_they_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []
    main, side = Stream("main", log), Stream("side", log)

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        log.append(f"copies on {stream.name}")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda where: side)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda where: main)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: log.append("pin") or self.clone())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    empty = torch.empty
    monkeypatch.setattr(
        torch,
        "empty",
        lambda *shape, pin_memory, **form: log.append("pin") or empty(*shape, **form),
    )
    staging = device.Staging(torch.device("cpu"))
    x = np.arange(3, dtype=np.float32)
    (there,) = staging.up([x])
    assert there.tolist() == [0, 1, 2]
    assert log == ["copies on side", "pin", "main waits for side"]
    log.clear()
    staging.overwrite([there], [x + 1])
    assert there.tolist() == [1, 2, 3]
    # Not before work that is queued has read the old numbers, and not after later work.
    assert log == ["side waits for main", "copies on side", "pin", "main waits for side"]
    log.clear()
    (back,) = staging.down([there])
    assert back.tolist() == [1, 2, 3]
    assert log == ["side waits for main", "copies on side", "pin", "the process waits for side"]


def test_a_run_that_asks_for_a_gpu_where_there_is_none_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="finds no GPU on this host"):
        simulated(made("mlp", CUTS["mlp"][2], {"name": "locked"}, device="cuda"))
