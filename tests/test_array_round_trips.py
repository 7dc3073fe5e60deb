"""Arrays of every rank and dtype come back as they were: from files, the wire and checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from each import each

from asyncdni import config
from asyncdni.messages import Activation
from asyncdni.stages.numpy.state import Part, restore, snapshot
from asyncdni.store import tensors
from asyncdni.store.tensors import Array
from asyncdni.wire import codec

DTYPES = tuple(codec._DTYPES)
SHAPES = ((), (3,), (2, 3), (2, 1, 3), (1, 2, 3, 2), (0, 3))


def arrays() -> dict[str, Array]:
    """One of each dtype and shape, with numbers that differ."""
    found = {}
    for dtype, shape in itertools.product(DTYPES, SHAPES):
        numbers = np.arange(1, 1 + np.prod(shape, dtype=int)).reshape(shape) % 100
        values = numbers % 2 == 1 if dtype == "bool" else numbers
        found[f"{dtype} {shape}"] = np.array(values, dtype)
    return found


def check(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        one = found[name]
        assert (one.shape, one.dtype) == (array.shape, array.dtype.newbyteorder("=")), name
        assert np.array_equal(one, array), name


def orders() -> Iterator[tuple[str, Callable[[Array], Array]]]:
    """Other ways to keep the same numbers in memory."""
    yield "as it is", lambda array: array
    yield "columns first", np.asfortranarray
    yield "reversed", lambda array: array[::-1][::-1] if array.ndim else array
    yield "big endian", lambda array: array.astype(array.dtype.newbyteorder(">"))


def test_files_and_the_wire_know_the_same_dtypes() -> None:
    assert set(tensors._TYPES) == set(DTYPES)


@each("order", [way for _, way in orders()])
def test_they_survive_files_of_weights_and_of_checkpoints(
    order: Callable[[Array], Array],
) -> None:
    expected = arrays()
    kept = {name: order(array) for name, array in expected.items()}
    for name in kept:  # `asfortranarray` gives what has no axes one
        kept[name] = kept[name].reshape(expected[name].shape)
    check(tensors.decode_arrays(tensors.encoded(kept), "weights"), expected)
    found, metadata = tensors.decode(b"".join(tensors.encode(kept, {"a": "b"})), "checkpoint")
    check(found, expected)
    assert metadata["a"] == "b"


def test_they_survive_a_folder_of_weights(tmp_path: Path) -> None:
    digests = tensors.save_stages(tmp_path, {"low": arrays()})
    check(tensors.load_stage(tmp_path, "low", digests["low"]), arrays())


def test_they_survive_the_wire() -> None:
    for name, array in arrays().items():
        frames = codec.encode(Activation("low", 1, 1, 2, {name: array}))
        sent = [frame if isinstance(frame, bytes) else array.tobytes() for frame in frames]
        found = codec.decode(sent, config.Limits())
        assert isinstance(found, Activation)
        check(found.tensors, {name: array})


def test_they_survive_a_snapshot() -> None:
    state = {"low": [Part("", arrays())]}
    kept = snapshot(state["low"], copied=True)
    other = {"low": [Part("", {name: np.zeros_like(a) for name, a in arrays().items()})]}
    restore(other, {"low": kept})
    check(other["low"][0].arrays, arrays())


def test_what_has_no_axes_is_not_taken_for_what_has_one() -> None:
    state = {"low": [Part("", {"seen": np.array(0, np.int64)})]}
    with pytest.raises(tensors.CheckpointError, match=r"seen is int64 \(1,\), expected int64 \(\)"):
        restore(state, {"low": {"seen": np.array([1], np.int64)}})
