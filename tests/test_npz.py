"""A user's own arrays: what is read, and what is refused with which words."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from each import each

from asyncdni import config, experiment
from asyncdni import data as datasets
from asyncdni.data import npz
from asyncdni.data.base import Dataset
from asyncdni.data.meta import Meta
from asyncdni.errors import DataError
from asyncdni.launch.train import design_of
from asyncdni.plan.build import make_source


def arrays(**changed: Any) -> dict[str, Any]:
    good = {
        "x_train": np.zeros((6, 2), np.float32),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": np.zeros((3, 2), np.float32),
        "y_test": np.array([0, 1, 2]),
    }
    return good | changed


def with_value(shape: tuple[int, ...], where: tuple[int, ...], value: float) -> Any:
    array = np.zeros(shape)
    array[where] = value
    return array


def saved(path: Path, **changed: Any) -> config.Npz:
    kept = {name: array for name, array in arrays(**changed).items() if array is not None}
    np.savez(path, **kept)
    return config.Npz(path=str(path))


@each(
    "changed, meta",
    [
        ({}, Meta((2,), "classes", 3, 6, 3)),
        ({"y_test": np.array([0, 1, 4], np.uint8)}, Meta((2,), "classes", 5, 6, 3)),
        (
            {"x_train": np.zeros((6, 3, 4), np.uint8), "x_test": np.zeros((3, 3, 4), np.uint8)},
            Meta((3, 4), "classes", 3, 6, 3),
        ),
        ({"y_train": np.zeros(6), "y_test": np.zeros(3)}, Meta((2,), "values", 1, 6, 3)),
        (
            {"y_train": np.zeros((6, 4), np.float32), "y_test": np.zeros((3, 4), np.float32)},
            Meta((2,), "values", 4, 6, 3),
        ),
    ],
)
def test_npz_is_described_as_it_is(tmp_path: Path, changed: Any, meta: Meta) -> None:
    data = saved(tmp_path / "d.npz", **changed)
    assert datasets.describe(data) == datasets.load(data, seed=0).meta == meta


def test_npz_keeps_the_numbers(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 2))
    path = tmp_path / "d.npz"
    np.savez_compressed(path, **arrays(x_train=np.asfortranarray(x)))
    dataset = datasets.load(config.Npz(path=str(path)), seed=0)
    order = dataset.batch(0, 0, 6, 0, np.float64)
    assert sorted(order[0].tolist()) == sorted(x.tolist())


@each("call", [datasets.describe, lambda data: datasets.load(data, seed=0)])
@each(
    "changed, words",
    [
        ({"y_test": None}, "no array y_test; expected x_train, y_train, x_test, y_test, found x_t"),
        (
            {"x_train": np.array([[None]] * 6)},
            "x_train holds Python objects, a pickle, which is nev",
        ),
        ({"y_test": np.array(["a", "b", "c"])}, "y_test has shape (3,) and dtype <U1; expected"),
        ({"y_train": np.zeros(5, int)}, "x_train has 6 samples and y_train 5"),
        ({"y_test": np.array([0, 0.5, 1])}, "y_test (float64, 0.0 to 1.0) has label 0.5 in sam"),
        ({"x_test": np.zeros((3, 9))}, "x_train have shape (2,) and those of x_test (9,)"),
    ],
)
def test_an_npz_of_another_form_is_refused_by_load_and_describe(
    tmp_path: Path, call: Any, changed: Any, words: str
) -> None:
    data = saved(tmp_path / "d.npz", **changed)
    with pytest.raises(DataError) as caught:
        call(data)
    assert str(caught.value).startswith(f"{data.path}: ") and words in str(caught.value)


@pytest.mark.parametrize("call", [datasets.describe, lambda data: datasets.load(data, seed=0)])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, call: Any) -> None:
    path = tmp_path / "d.npz"
    data = config.Npz(path=str(path))
    with pytest.raises(DataError, match=r"d.npz: no such file; expected an .npz file with x_train"):
        call(data)
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"d.npz: damaged, or no .npz file at all"):
        call(data)
    saved(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"d.npz: damaged, or no .npz file at all"):
        call(data)
    with pytest.raises(DataError, match=r"no array x_train; expected a file x_train.npy, or sev"):
        call(config.Npz(path=str(tmp_path)))


def test_an_npz_with_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    data = saved(tmp_path / "d.npz", x_train=np.ones((6, 2)))
    content = bytearray(Path(data.path).read_bytes())
    content[content.index(np.ones(2).tobytes())] ^= 1
    Path(data.path).write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        datasets.load(data, seed=0)


def test_a_header_that_claims_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    data = saved(tmp_path / "d.npz")
    with zipfile.ZipFile(data.path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["x_train.npy"] = members["x_train.npy"].replace(b"(6, 2)", b"(9, 9)")
    with zipfile.ZipFile(data.path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(
        DataError, match="x_train is damaged: its header claims 452 bytes, it has 176"
    ):
        datasets.describe(data)


def test_nan_in_an_npz_is_named_with_its_file(tmp_path: Path) -> None:
    data = saved(tmp_path / "d.npz", x_train=with_value((6, 2), (5, 0), np.nan))
    with pytest.raises(DataError, match=r"d.npz: x_train has nan in sample 5; expected finite"):
        datasets.load(data, seed=0)


# --- what y is -----------------------------------------------------------------------------------

LABELS = np.array([0, 1, 2, 0, 1, 2])


def with_labels(path: Path, y: Any, targets: str) -> config.Npz:
    data = saved(path, y_train=y, y_test=np.asarray(y)[:3])
    return msgspec.structs.replace(data, targets=targets)


def test_whole_numbers_of_any_type_name_classes(tmp_path: Path) -> None:
    for y in (
        LABELS.astype(np.float64),
        LABELS.astype(np.float16),
        LABELS.astype(">i2"),
        LABELS.astype(np.uint8)[:, None],
        LABELS.astype(np.float32)[:, None],
    ):
        data = with_labels(tmp_path / "d.npz", y, "classes")
        dataset = datasets.load(data, seed=0)
        assert datasets.describe(data) == dataset.meta == Meta((2,), "classes", 3, 6, 3)
        assert sorted(dataset.batch(0, 0, 6, 0, np.float32)[1].tolist()) == sorted(LABELS.tolist())
    dataset = datasets.load(with_labels(tmp_path / "d.npz", LABELS > 0, "classes"), seed=0)
    assert dataset.meta.outputs == 2


def test_numbers_of_any_type_are_values_to_be_told(tmp_path: Path) -> None:
    for y in (LABELS * 10, LABELS.astype(np.uint8), LABELS.astype(np.float16), LABELS > 0):
        data = with_labels(tmp_path / "d.npz", y, "values")
        dataset = datasets.load(data, seed=0)
        assert (dataset.meta.targets, dataset.meta.outputs) == ("values", 1)
        told = dataset.test_batch(0, 3, np.float32)[1]
        assert told.dtype == np.float32 and told.tolist() == [[float(one)] for one in y[:3]]


def test_what_is_no_label_is_named_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    for y, words in (
        (LABELS - 1, "y_train (int64, -1 to 1) has label -1 in sample 0; expected whole numbers f"),
        (LABELS + 0.5, "y_train (float64, 0.5 to 2.5) has label 0.5 in sample 0"),
        (np.where(LABELS == 2, np.nan, 0), "y_train (float64, 0.0 to 0.0) has label nan in sampl"),
        (np.where(LABELS == 2, np.inf, 0), "has label inf in sample 2"),
        (np.where(LABELS == 2, 2.0**60, 0), "has label 1.152921504606847e+18 in sample 2"),
        (
            np.eye(3)[LABELS],
            "y_train has shape (6, 3) and dtype float64; expected (samples,) class",
        ),
        (
            LABELS.astype(str),
            "dtype <U21; expected whole numbers from 0, the classes; numpy.unique",
        ),
        (LABELS.astype(complex), "dtype complex128; expected whole numbers"),
        (LABELS.astype("m8[s]"), "dtype timedelta64[s]; expected whole numbers"),
        (np.zeros(6, [("a", "i4")]), "dtype [('a', '<i4')]; expected whole numbers"),
    ):
        data = with_labels(tmp_path / "d.npz", y, "classes")
        for call in (datasets.describe, lambda one: datasets.load(one, seed=0)):
            with pytest.raises(DataError) as caught:
                call(data)
            assert str(caught.value).startswith(f"{data.path}: ") and words in str(caught.value)


def test_inputs_can_be_their_own_targets(tmp_path: Path) -> None:
    data = with_labels(tmp_path / "d.npz", LABELS, "inputs")
    meta = datasets.describe(data)
    opened = datasets.open_batches(data, 0)
    assert meta == opened.meta == Meta((2,), "values", 2, 6, 3, answers=False)
    read = opened.read_test(0, 3, np.float32)
    assert (read["h"] == read["y"]).all()
    assert opened.targets().keys() == {"x_train", "x_test"}


def test_an_output_can_be_right_only_about_what_is_0_or_1(tmp_path: Path) -> None:
    for y, answers in ((LABELS > 0, True), (LABELS.clip(0, 1), True), (LABELS / 2, False)):
        data = with_labels(tmp_path / "d.npz", y, "values")
        assert datasets.describe(data).answers == answers
    assert datasets.describe(with_labels(tmp_path / "d.npz", LABELS, "classes")).answers


def test_the_losses_of_an_experiment_say_what_y_is() -> None:
    def parsed(*losses: str, **data: str) -> config.Data:
        stages = [{"layers": [{"dense": 1}], "loss": loss} for loss in losses]
        table = {"name": "npz", "path": "/d.npz", **data}
        return experiment.parse({"data": table, "stages": stages}).data

    for losses, targets in (
        (["cross_entropy"], "classes"),
        (["mse"], "values"),
        (["mse", "sigmoid_cross_entropy"], "values"),
        (["mse", "cross_entropy"], "auto"),
    ):
        assert parsed(*losses) == config.Npz(path="/d.npz", targets=targets)
    assert parsed("mse", targets="inputs") == config.Npz(path="/d.npz", targets="inputs")


# --- which samples they are ----------------------------------------------------------------------


def test_kind_and_range_of_inputs_are_found(tmp_path: Path) -> None:
    x = np.arange(12.0).reshape(6, 2) - 3
    for given in (x, np.asfortranarray(x), x.astype(">f4")):
        data = saved(tmp_path / "d.npz", x_train=given)
        assert datasets.identify(data).inputs == datasets.Inputs("float", -3, 8, least=1)
    data = saved(
        tmp_path / "d.npz", x_train=np.full((6, 2), 7, np.uint8), x_test=np.ones((3, 2), np.uint8)
    )
    assert datasets.identify(data).inputs == datasets.Inputs("uint8", 7, 7, least=7)


def test_only_the_beginning_of_many_inputs_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = saved(tmp_path / "d.npz", x_train=np.arange(12.0).reshape(6, 2))
    monkeypatch.setattr(npz, "_LOOKED_AT_BYTES", 2 * 16)
    assert datasets.identify(data).inputs == datasets.Inputs("float", 0, 3, least=1)


def test_each_array_has_a_checksum_that_is_of_its_numbers(tmp_path: Path) -> None:
    before = datasets.checksums(saved(tmp_path / "a.npz"))
    np.savez_compressed(tmp_path / "b.npz", **arrays())
    assert datasets.checksums(config.Npz(path=str(tmp_path / "b.npz"))) == before
    after = datasets.checksums(saved(tmp_path / "c.npz", y_test=np.array([0, 2, 1])))
    assert datasets.other_parts(before, after) == ["y_test"]
    assert datasets.other_parts({}, after) == datasets.other_parts(before, {}) == []


def test_sets_that_are_published_or_made_need_no_checksums() -> None:
    for data in (config.Digits(), config.Mnist(path="nowhere"), config.Addition(), config.Copy()):
        assert datasets.checksums(data) == {}
    assert datasets.identify(config.Mnist(path="nowhere")).inputs == datasets.Inputs(
        "uint8", 0, 255
    )


def test_a_host_whose_file_is_another_one_is_refused(tmp_path: Path) -> None:
    data = saved(tmp_path / "d.npz")
    stage = config.Stage(name="top", layers=[{"dense": 3}], loss="cross_entropy")
    design = design_of(config.Experiment(data=data, stages=[stage]))
    assert make_source(design, design.plan.groups[0]) is not None
    saved(tmp_path / "d.npz", y_test=np.array([2, 1, 0]))
    with pytest.raises(DataError, match=r"d.npz on this host has other contents in y_test than"):
        make_source(design, design.plan.groups[0])


# --- files that are not what they seem -----------------------------------------------------------


def test_a_single_array_in_place_of_the_archive_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.zeros((6, 2)))
    with pytest.raises(DataError, match=r"d.npy: an .npy file, which holds one array without a"):
        datasets.describe(config.Npz(path=str(tmp_path / "d.npy")))


def test_sizes_that_the_packed_bytes_can_not_have_are_refused_unread(tmp_path: Path) -> None:
    """The header and the directory of the archive agree on 2 GB, of which 100 bytes are there."""
    claimed = (2**29,)
    header = io.BytesIO()
    form = {"descr": "<f4", "fortran_order": False, "shape": claimed}
    np.lib.format.write_array_header_1_0(header, form)
    path = tmp_path / "d.npz"
    saved(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["x_train.npy"] = header.getvalue() + bytes(100)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"x_train.npy") - 46  # in the directory at the end
    struct.pack_into("<I", content, entry + 24, len(header.getvalue()) + 4 * claimed[0])
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x_train is damaged: \d+ bytes in the file can't stand"):
        datasets.describe(config.Npz(path=str(path)))


def test_inputs_are_read_by_the_first_name_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "i.npz"
    np.savez(path, x_test=np.ones(3))
    assert npz.read_one(path, ("x", "x_test")).tolist() == [1, 1, 1]
    np.savez(path, y=np.ones(3))
    with pytest.raises(DataError, match=r"i.npz: no array x; expected x, x_test, found y"):
        npz.read_one(path, ("x", "x_test"))


def test_a_data_set_that_is_not_read_right_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"y_train has shape \(6,\) and dtype int64; expected values"
    ):
        Dataset("f", **arrays(), classes=None).validate()
