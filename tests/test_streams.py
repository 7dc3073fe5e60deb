"""Random streams depend on their key and on nothing else."""

from __future__ import annotations

import itertools
import subprocess
import sys

from asyncdni.nn.streams import layer_streams, stream

_KEYS = [
    (0, "a", "init"),
    (1, "a", "init"),
    (0, "b", "init"),
    (0, "a", "initb"),
    (0, "ai", "nit"),
    (0, "a", "init", 0),
    (0, "a", "init", 1),
    (0, "a", "init", 1, 0),
    (0, "a", "init", 10),
]


def first(*key: int | str) -> int:
    return int(stream(*key).integers(2**63))  # type: ignore[arg-type]


def test_a_key_gives_the_same_numbers_each_time() -> None:
    for key in _KEYS:
        assert first(*key) == first(*key)


def test_keys_that_differ_anywhere_give_other_numbers() -> None:
    for one, other in itertools.combinations(_KEYS, 2):
        assert first(*one) != first(*other)


def test_another_process_sees_the_same_numbers() -> None:
    code = "from asyncdni.nn.streams import stream; print(stream(3, 'é', 'x', 4).integers(2**63))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) == first(3, "é", "x", 4)


def test_the_largest_seed_is_a_seed() -> None:
    assert first(2**63 - 1, "a", "init") != first(2**63 - 2, "a", "init")


def test_the_streams_of_a_layer_are_keyed_by_its_name() -> None:
    expected = first(5, "stage1.0", "init")
    assert int(layer_streams(5, "stage1.0")("init").integers(2**63)) == expected
