"""Files that an older version wrote are read by today's: run folders, checkpoints, keys.

formats/README.md says how they were made. They stay as they are: a change of a format that fails
here needs a reader for the old one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import TINY, Site, make_site, records, until_recorded

from asyncdni.store.tensors import load_stage

FORMATS = Path(__file__).parent / "formats"
STAGES = ("one", "two", "three")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        yield made


def copied(site: Site, name: str) -> Path:
    """The site's own copy of an old folder: runs write to theirs."""
    return Path(shutil.copytree(FORMATS / name, site.folder / name))


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_an_old_run_is_evaluated_to_the_figures_of_its_time(site: Site) -> None:
    copied(site, "complete")
    finished = site.call("evaluate", "complete", "--json")
    assert (finished.code, finished.err) == (0, "")
    then, now = json.loads((FORMATS / "evaluated.json").read_text()), json.loads(finished.out)
    assert now["samples"] == then["samples"]
    # Another processor may add up in another order, and an output near 0 fall to the other side:
    # that is one of the 160 bits that the test set asks for.
    assert now["accuracy"] == pytest.approx(then["accuracy"], abs=1 / 160)
    assert now["loss"] == pytest.approx(then["loss"], rel=1e-4)


def test_an_interrupted_old_run_goes_on_to_the_weights_that_the_old_code_reached(
    site: Site,
) -> None:
    folder = copied(site, "interrupted")
    finished = site.call("train", "--resume", "interrupted")
    assert (finished.code, finished.err) == (0, "")
    (resumed,) = records(folder, "resumed")
    assert (resumed["restore"], resumed["start"]) == ("checkpoints/000002", 30)
    for stage in STAGES:
        old, new = load_stage(FORMATS / "resumed", stage), load_stage(folder / "final", stage)
        assert old.keys() == new.keys()
        for name, array in old.items():
            assert new[name].dtype == array.dtype
            # The same processor gives the same bits; on another, sums of products are rounded
            # otherwise, and 70 updates carry that on. A momentum that was not restored makes a
            # difference of 5e-2, a running mean that was not one of 6e-4.
            np.testing.assert_allclose(new[name], array, rtol=1e-4, atol=2e-5, err_msg=name)


def test_an_old_run_with_generators_is_made_longer(site: Site) -> None:
    folder = copied(site, "complete")
    before = summary(folder)
    finished = site.call("train", "--resume", "complete", "--set", "run.epochs=30")
    assert (finished.code, finished.err) == (0, "")
    (resumed,) = records(folder, "resumed")
    assert (resumed["restore"], resumed["start"]) == ("checkpoints/000004", 100)
    after = summary(folder)
    assert after["history"][: len(before["history"])] == before["history"]
    assert [stage["batches"] + stage["missed"] for stage in after["stages"]] == [150] * 3


def test_old_keys_let_their_owners_into_a_run(site: Site) -> None:
    keys = copied(site, "keys")
    keys.chmod(0o700)  # version control keeps no such modes
    for path in keys.iterdir():
        path.chmod(0o600)
    site.write("tiny.toml", TINY)
    address = ("--bind", "tcp://127.0.0.1:0", "--keys", "keys", "--out", "run")
    leader = site.start("coordinator", "tiny.toml", *address)
    (bound,) = until_recorded(site.folder / "run", "bound")
    where = ("--coordinator", bound["address"], "--keys", "keys")
    workers = [site.start("worker", "--stage", stage, *where) for stage in ("hidden", "top")]
    assert [command.finished().code for command in (leader, *workers)] == [0, 0, 0]
