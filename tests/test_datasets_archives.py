"""`asyncdni data cifar10` and `asyncdni data shakespeare` against a mirror on 127.0.0.1."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from each import each
from test_data_command import Mirror

from asyncdni.__main__ import main
from asyncdni.data import archives, text

PARTS = {
    name: bytes([number]) * 3073 for number, name in enumerate(archives.ARCHIVES["cifar10"].sizes)
}
PLAY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 20


def packed(parts: dict[str, bytes], folder: str = "cifar-10-batches-bin/") -> bytes:
    """A .tar.gz of these files and of some that nobody asks for."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, content in {"readme.html": b"<html>", **parts}.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo(folder + "test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return target.getvalue()


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Mirror]:
    """A server with a small right file for each archive, the only mirror."""
    served = Mirror()
    contents = {"cifar10": packed(PARTS), "shakespeare": PLAY}
    for name, content in contents.items():
        publish(monkeypatch, served, name, content)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ASYNCDNI_DATA", raising=False)
    yield served
    served.close()


def publish(monkeypatch: pytest.MonkeyPatch, served: Mirror, name: str, content: bytes) -> None:
    """`content` is what the archive should be, and its mirror has it."""
    original = archives.ARCHIVES[name]
    parts = PARTS if name == "cifar10" else {"tinyshakespeare.txt": PLAY}
    served.contents[f"/{name}/{original.name}"] = content
    small = original._replace(
        mirrors=(served.url(name),),
        sha256=hashlib.sha256(content).hexdigest(),
        sizes={part: len(raw) for part, raw in parts.items()},
        bytes_max=sum(map(len, parts.values())),
    )
    monkeypatch.setitem(archives.ARCHIVES, name, small)


def refusal(capsys: pytest.CaptureFixture[str], folder: Path, name: str = "cifar10") -> str:
    """The one line that a failing fetch into `folder` ends with."""
    assert main(["data", name, "--folder", str(folder)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("asyncdni: ")
    return lines[0]


def test_the_files_of_the_archive_are_put_into_the_folder_and_nothing_else(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "folder"
    assert main(["data", "cifar10", "--folder", str(folder)]) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == PARTS
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{folder / name}: fetched from {mirror.url('cifar10')}" for name in PARTS]


@each("folder", ["", "../", "/tmp/", "a/b/../../../"])
def test_an_archive_can_not_choose_where_its_files_go(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    publish(monkeypatch, mirror, "cifar10", packed(PARTS, folder))
    inner = tmp_path / "outer" / "inner"
    assert main(["data", "cifar10", "--folder", str(inner)]) == 0
    assert {path.name for path in inner.iterdir()} == set(PARTS)
    assert [path.name for path in inner.parent.iterdir()] == ["inner"]


def test_what_is_there_is_not_fetched_again(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["data", "cifar10", "--folder", str(tmp_path / "c")])
    mirror.asked.clear()
    assert main(["data", "cifar10", "--folder", str(tmp_path / "c")]) == 0
    assert mirror.asked == [] and "already there" in capsys.readouterr().out
    (tmp_path / "c" / "test_batch.bin").write_bytes(b"cut off")
    assert main(["data", "cifar10", "--folder", str(tmp_path / "c")]) == 0
    assert (tmp_path / "c" / "test_batch.bin").read_bytes() == PARTS["test_batch.bin"]


def test_the_plays_go_where_a_text_without_a_path_is_looked_for(
    mirror: Mirror, tmp_path: Path
) -> None:
    assert main(["data", "shakespeare"]) == 0
    path = tmp_path / "cache" / "asyncdni" / "text" / "tinyshakespeare.txt"
    assert path.read_bytes() == PLAY
    assert text.find("") == path


def test_other_bytes_than_the_published_ones_are_refused(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.contents["/shakespeare/input.txt"] = PLAY[:-1] + b"?"
    line = refusal(capsys, tmp_path / "s", "shakespeare")
    assert f"no mirror gave input.txt ({mirror.url('shakespeare')}: sha256 is " in line
    assert line.endswith(f"put tinyshakespeare.txt from any copy into {tmp_path / 's'}")
    assert not (tmp_path / "s").exists()


def test_an_archive_that_lacks_a_file_is_refused(
    mirror: Mirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fewer = {name: part for name, part in PARTS.items() if name != "test_batch.bin"}
    publish(monkeypatch, mirror, "cifar10", packed(fewer))
    assert "the archive lacks test_batch.bin" in refusal(capsys, tmp_path / "c")


@each("damage", [b"no archive", gzip.compress(b"no archive"), packed(PARTS)[:-40]])
def test_a_damaged_archive_ends_in_one_line(
    mirror: Mirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: bytes,
) -> None:
    publish(monkeypatch, mirror, "cifar10", damage)
    assert "damaged archive (" in refusal(capsys, tmp_path / "c")


def test_the_published_archives_are_fetched_over_https() -> None:
    for archive in archives.ARCHIVES.values():
        assert all(url.startswith("https://") and url.endswith("/") for url in archive.mirrors)
