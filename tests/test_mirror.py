"""A copy of a run's folder at a URL: whole or not to be seen, and read again."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from each import each
from processes import TINY, make_site, until, weights
from test_checkpoint import cut

from asyncdni.errors import AsyncDNIError, CheckpointError, ConfigError
from asyncdni.files import is_url
from asyncdni.store.checkpoint import latest
from asyncdni.store.mirror import Mirror, fetch_run, run_here

fsspec = pytest.importorskip("fsspec")
memory = pytest.importorskip("fsspec.implementations.memory")


class Full(memory.MemoryFileSystem):  # type: ignore[misc]
    """A store with no room for the weights of `top`."""

    protocol = "full"
    broken = True

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if Full.broken and mode == "wb" and path.endswith("top.safetensors"):
            raise OSError(28, "No space left on device")
        return super()._open(path, mode, **options)


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    fsspec.register_implementation("full", Full, clobber=True)
    Full.broken = True
    yield
    memory.MemoryFileSystem.store.clear()


def folder(tmp_path: Path, **files: str) -> Path:
    """A run's folder with these files, and nothing else that matters here."""
    made = tmp_path / "run"
    (made / "checkpoints").mkdir(parents=True)
    for name, text in {"experiment.toml": "x", "metrics.jsonl": "{}\n", **files}.items():
        (made / name).write_text(text)
    return made


def names(url: str) -> set[str]:
    place, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(root).lstrip("/") for path in place.find(root)}


def mirrored(run: Path, url: str, **begun: bool) -> tuple[Mirror, list[str]]:
    said: list[str] = []
    mirror = Mirror(run, url, 2, said.append)
    mirror.begin(resumed=begun.get("resumed", False))
    return mirror, said


def test_checkpoints_are_copied_as_they_are_made_and_only_the_last_are_kept(tmp_path: Path) -> None:
    run, url = folder(tmp_path), "memory://bucket/run"
    mirror, said = mirrored(run, url)
    for number in (1, 2, 3):
        cut(run / "checkpoints", number)
        mirror.committed(f"checkpoints/{number:06d}")
        mirror.settle()
    stages = ("low.safetensors", "top.safetensors", "manifest.json")
    wanted = {f"checkpoints/{number:06d}/{one}" for number in (2, 3) for one in stages}
    assert names(url) == {"experiment.toml", "metrics.jsonl", *wanted} and said == []
    assert fetch_run(url, tmp_path / "again")
    found, passed = latest(tmp_path / "again" / "checkpoints")
    assert found == latest(run / "checkpoints")[0] and found.number == 3 and passed == []
    assert not fetch_run("memory://bucket/other", tmp_path / "other")


def test_a_full_store_has_no_whole_checkpoint_is_told_of_and_gets_the_next_one(
    tmp_path: Path,
) -> None:
    run, url = folder(tmp_path, **{"summary.json": "{}"}), "full://run"
    mirror, said = mirrored(run, url)
    cut(run / "checkpoints", 1)
    mirror.committed("checkpoints/000001")
    mirror.settle()
    assert "checkpoints/000001/low.safetensors" in names(url)
    assert "checkpoints/000001/manifest.json" not in names(url)
    assert len(said) == 1 and "run.store full://run: can't write checkpoints/000001/top" in said[0]
    assert "No space left on device; all is in" in said[0].replace("[Errno 28] ", "")
    Full.broken = False
    cut(run / "checkpoints", 2)
    mirror.committed("checkpoints/000002")
    mirror.settle()
    assert "checkpoints/000002/manifest.json" in names(url)
    assert "checkpoints/000001/low.safetensors" not in names(url)


def test_a_run_whose_end_can_not_be_copied_fails_and_shows_no_summary(tmp_path: Path) -> None:
    run, url = folder(tmp_path, **{"summary.json": "{}", "top.safetensors": "w"}), "full://end"
    mirror, _ = mirrored(run, url)
    with pytest.raises(CheckpointError, match=r"full://end: can't write top\.safetensors: .*space"):
        mirror.finish()
    assert "summary.json" not in names(url)
    Full.broken = False
    mirror.finish()
    assert {"summary.json", "top.safetensors"} <= names(url)


def _has_run(run: Path) -> None:
    mirrored(run, "memory://taken")


def _has_gone_on(run: Path) -> None:
    for number in (1, 2):
        place = fsspec.filesystem("memory")
        place.pipe(f"/ahead/checkpoints/00000{number}/manifest.json", b"{}")


def _leaves_its_folder(run: Path) -> None:
    place = fsspec.filesystem("memory")
    place.pipe({"/out/experiment.toml": b"x", "/out/../secret": b"x"})


@each(
    "prepare, url, resumed, words",
    [
        (_has_run, "memory://taken", False, "it holds a run already; go on with that by --resume"),
        (_has_gone_on, "memory://ahead", True, "gone on elsewhere, to checkpoint 2"),
        (_leaves_its_folder, "memory://out", True, "is no file of a run"),
        (None, "nosuch://x", False, "run.store nosuch://x: Protocol not known: nosuch"),
        (None, "file:///proc/none", False, "run.store file:///proc/none: can't write experiment"),
    ],
)
def test_a_place_that_can_not_be_used_is_refused_before_training(
    tmp_path: Path, prepare: Callable[[Path], None] | None, url: str, resumed: bool, words: str
) -> None:
    run = folder(tmp_path)
    if prepare is not None:
        prepare(run)
    with pytest.raises(AsyncDNIError) as refused:
        mirrored(run, url, resumed=resumed)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_without_fsspec_or_a_run_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--resume memory://none: there is no run in it"):
        run_here("memory://none")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ConfigError, match=r"pip install 'asyncdni\[fsspec\]'"):
        run_here("s3://bucket/run")
    assert not is_url("C:/x") and not is_url("runs/x") and run_here("runs/x") == Path("runs/x")


SERVER = """\
import sys
from moto.server import ThreadedMotoServer
ThreadedMotoServer("127.0.0.1", int(sys.argv[1])).start()
print("ready", flush=True)
import signal
signal.pause()
"""


@pytest.mark.long
def test_a_run_goes_on_from_its_copy_in_s3(tmp_path: Path) -> None:
    """In another folder; the weights are those of a run that nobody has stopped."""
    for name in ("moto", "flask", "s3fs"):
        pytest.importorskip(name)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    own = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    own |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with make_site(tmp_path) as site:
        site.environment |= own
        site.write("tiny.toml", TINY.replace('"synthetic"', '"locked"'))
        server = site.python("-c", SERVER, str(port))
        until(server.said, "a server of S3")
        place = ("--set", "run.store=s3://bucket/run")
        first = site.run("train", "tiny.toml", "--out", "first", "--set", "run.epochs=1", *place)
        assert first.code == 0, first
        longer = ("--set", "run.epochs=2", "--out", "second")
        second = site.run("run", "tiny.toml", *longer, *place)
        assert second.code == 0, second
        assert site.run("train", "tiny.toml", "--out", "plain").code == 0
        assert weights(tmp_path / "second") == weights(tmp_path / "plain")
        read = site.run("train", "--resume", "s3://bucket/run")
        assert "is complete, after 2 epochs" in read.out, read
        assert weights(tmp_path / "runs" / "run") == weights(tmp_path / "plain")
        server.close()
