"""Checkpoints whose bytes have changed: refused, or the cut before is used; never wrong data."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncdni.errors import CheckpointError
from asyncdni.store import tensors as weights
from asyncdni.store.checkpoint import Manifest, commit, cut_folder, latest, read_state, write_state

STAGES = "low", "top"
EXAMPLES = settings(max_examples=300, deadline=None)


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut off, flipped, overwritten, stretched or spliced; at least one byte differs."""
    size = len(content)
    start = draw(st.integers(0, size - 1))
    match draw(st.sampled_from(["cut", "flip", "overwrite", "insert", "remove", "head"])):
        case "cut":
            return content[:start]
        case "flip":
            other = content[start] ^ (1 << draw(st.integers(0, 7)))
            return content[:start] + bytes([other]) + content[start + 1 :]
        case "overwrite":
            new = draw(st.binary(min_size=1, max_size=40))
            changed = content[:start] + new + content[start + len(new) :]
        case "insert":
            changed = content[:start] + draw(st.binary(min_size=1, max_size=40)) + content[start:]
        case "remove":
            changed = content[:start] + content[start + draw(st.integers(1, 40)) :]
        case _:  # the length and the header, where a parser would go wrong
            head = draw(st.binary(min_size=1, max_size=16))
            changed = head + content[len(head) :]
    return changed if changed != content else content + b"\0"


def state(seed: int) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return {
        stage: {"0.weight": rng.normal(size=(3, 2)), "steps": np.array(seed)} for stage in STAGES
    }


@cache
def run_folder() -> Path:
    """Two cuts and two snapshots."""
    folder = Path(tempfile.mkdtemp())
    for number in (1, 2):
        own = cut_folder(folder / "checkpoints", number)
        files = write_state(own, state(number), {"batches": number}, durable=True)
        made = Manifest(
            number=number, files=files, start=number, planned=0, barrier=0, identity={"a": [1, 2]}
        )
        commit(folder / "checkpoints", made, 2)
        write_state(folder / "snapshots", state(number), {"batches": number}, durable=False)
    return folder


def teardown_module() -> None:
    shutil.rmtree(run_folder())


@contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    kept = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(kept)


def assert_is(found: Any, seed: int) -> None:
    expected = state(seed)
    assert found.keys() == expected.keys()
    for stage, own in expected.items():
        assert found[stage].keys() == own.keys()
        for name, array in own.items():
            assert found[stage][name].tobytes() == array.tobytes()
            assert found[stage][name].dtype == array.dtype


@EXAMPLES
@given(st.data())
def test_a_cut_that_has_changed_anywhere_is_passed_over(data: st.DataObject) -> None:
    root = run_folder() / "checkpoints"
    names = ["manifest.json", *(f"{stage}.safetensors" for stage in STAGES)]
    path = root / "000002" / data.draw(st.sampled_from(names))
    with replaced(path, data.draw(mutated(path.read_bytes()))):
        found, passed = latest(root)
        assert found is not None
        if found.number == 2:  # white space between the words of the manifest
            assert path.name == "manifest.json" and found.identity == {"a": [1, 2]}
        else:
            assert found.number == 1 and len(passed) == 1 and "000002" in passed[0]
        own = cut_folder(root, found.number)
        assert_is(read_state(own, STAGES, found.files)[0], found.number)


@EXAMPLES
@given(st.data())
def test_a_file_that_has_changed_is_refused_without_its_manifest_too(data: st.DataObject) -> None:
    folder = run_folder() / "checkpoints/000002"
    path = folder / "low.safetensors"
    with replaced(path, data.draw(mutated(path.read_bytes()))):
        try:
            read_state(folder, STAGES, None)
        except CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            raise AssertionError("a file that has changed was read")


@EXAMPLES
@given(st.data())
def test_a_snapshot_that_has_changed_is_passed_over_for_the_one_before(
    data: st.DataObject,
) -> None:
    folder = run_folder() / "snapshots"
    path = folder / f"{data.draw(st.sampled_from(STAGES))}.1.safetensors"
    with replaced(path, data.draw(mutated(path.read_bytes()))):
        found, counts = read_state(folder, STAGES, None)
        assert_is(found, 1)
        assert counts == {"batches": 1}


@EXAMPLES
@given(st.data())
def test_weights_without_a_sum_are_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    """Files of `final` and `best`, which other programs may have written."""
    content = (run_folder() / "checkpoints/000002/low.safetensors").read_bytes()
    try:
        weights.decode_arrays(data.draw(mutated(content)), "low.safetensors")
    except CheckpointError as error:
        assert "low.safetensors is not a whole safetensors file" in str(error)


@EXAMPLES
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_state_and_no_weights(content: bytes) -> None:
    for decode in (weights.decode, weights.decode_arrays):
        try:
            found = decode(content, "x")
        except CheckpointError:
            continue
        assert decode is weights.decode_arrays and found == {}
