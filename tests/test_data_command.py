"""`asyncdni data mnist` against mirrors on 127.0.0.1."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from each import each

from asyncdni.__main__ import main
from asyncdni.data import mnist
from asyncdni.data import mnist as download


class Mirror:
    """What a local server answers: bytes by path, 404 for all else."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.claimed_extra = 0  # bytes announced and never sent
        self.asked: list[str] = []
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                content = mirror.contents.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content) + mirror.claimed_extra))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def url(self, folder: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{folder}/"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def raw_file(axes: int, value: int) -> bytes:
    """A small IDX file that gzip makes shorter, as it does MNIST's."""
    size = 300 if axes == 1 else 10
    return bytes([0, 0, 8, axes]) + size.to_bytes(4, "big") * axes + bytes([value]) * size**axes


RAW = {file.name: raw_file(file.axes, value) for value, file in enumerate(mnist.FILES)}
NAMES = [f"{name}.gz" for name in RAW]


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Mirror]:
    """A server with four small right files under /good/, the only mirror."""
    files = tuple(
        file._replace(size=len(raw), sha256=hashlib.sha256(raw).hexdigest())
        for file, raw in zip(mnist.FILES, RAW.values(), strict=True)
    )
    for module in (mnist, download):
        monkeypatch.setattr(module, "FILES", files)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ASYNCDNI_DATA", raising=False)
    served = Mirror()
    served.contents = {f"/good/{name}.gz": gzip.compress(raw) for name, raw in RAW.items()}
    monkeypatch.setattr(download, "MIRRORS", (served.url("good"),))
    yield served
    served.close()


def mirrors(monkeypatch: pytest.MonkeyPatch, *urls: str) -> None:
    monkeypatch.setattr(download, "MIRRORS", urls)


def right(folder: Path) -> bool:
    """All four files are there and right, and nothing else is."""
    kept = {path.name: gzip.decompress(path.read_bytes()) for path in folder.iterdir()}
    return kept == {f"{name}.gz": raw for name, raw in RAW.items()}


def refusal(capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """The one line that a failing fetch into `folder` ends with."""
    assert main(["data", "mnist", "--folder", str(folder)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("asyncdni: ")
    return lines[0]


def test_the_four_files_are_fetched_and_told_one_a_line(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "folder"
    assert main(["data", "mnist", "--folder", str(folder)]) == 0
    assert right(folder)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{folder / name}: fetched from {mirror.url('good')}" for name in NAMES]


def test_what_was_fetched_can_be_loaded_from_the_default_folder(
    mirror: Mirror, tmp_path: Path
) -> None:
    assert main(["data", "mnist"]) == 0
    assert right(tmp_path / "cache" / "asyncdni" / "mnist")
    found = [mnist.find(file, [download.default_folder()]) for file in mnist.FILES]
    assert all(found)


def test_the_data_folder_is_preferred_to_the_cache(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCDNI_DATA", str(tmp_path / "data"))
    assert download.default_folder() == tmp_path / "data" / "mnist"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / NAMES[0]).touch()
    assert download.default_folder() == tmp_path / "data"


def test_right_files_are_not_fetched_again(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["data", "mnist", "--folder", str(tmp_path / "m")])
    (tmp_path / "m" / NAMES[1]).unlink()
    (tmp_path / "m" / NAMES[2]).write_bytes(b"damaged")
    mirror.asked.clear()
    capsys.readouterr()
    assert main(["data", "mnist", "--folder", str(tmp_path / "m")]) == 0
    assert mirror.asked == [f"/good/{NAMES[1]}", f"/good/{NAMES[2]}"]
    assert capsys.readouterr().out.count("already there, and undamaged") == 2
    assert right(tmp_path / "m")


def test_a_damaged_plain_file_no_longer_counts_after_a_fetch(
    mirror: Mirror, tmp_path: Path
) -> None:
    plain = tmp_path / NAMES[0].removesuffix(".gz")
    plain.write_bytes(b"damaged")
    assert main(["data", "mnist", "--folder", str(tmp_path)]) == 0
    assert mnist.find(mnist.FILES[0], [tmp_path]) == tmp_path / NAMES[0]


def test_the_next_mirror_is_asked_after_a_404_and_then_asked_first(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors(monkeypatch, mirror.url("empty"), mirror.url("good"))
    assert main(["data", "mnist", "--folder", str(tmp_path / "m")]) == 0
    assert right(tmp_path / "m")
    assert mirror.asked == [f"/empty/{NAMES[0]}", *(f"/good/{name}" for name in NAMES)]


def test_a_corrupt_download_is_replaced_by_the_next_mirrors(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.contents[f"/bad/{NAMES[0]}"] = gzip.compress(raw_file(3, 99))
    mirrors(monkeypatch, mirror.url("bad"), mirror.url("good"))
    assert main(["data", "mnist", "--folder", str(tmp_path / "m")]) == 0
    assert right(tmp_path / "m")


@each(
    "content, words",
    [
        (gzip.compress(raw_file(3, 99)), "sha256 of the uncompressed bytes is "),
        (gzip.compress(raw_file(3, 0))[:-9], "damaged gzip file ("),
        (b"<html>log in</html>", "starts with 0x3c68746d; expected 0x00000803"),
        (bytes(2000), "longer than the 1016 bytes of the file unpacked"),
        (b"", "starts with 0x; expected"),
        (None, "HTTP Error 404"),
    ],
)
def test_a_useless_mirror_leaves_nothing_behind(
    mirror: Mirror,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    words: str,
) -> None:
    if content is None:
        del mirror.contents[f"/good/{NAMES[0]}"]
    else:
        mirror.contents[f"/good/{NAMES[0]}"] = content
    line = refusal(capsys, tmp_path / "m")
    assert f"no mirror gave {NAMES[0]} ({mirror.url('good')}: {words}" in line
    assert not (tmp_path / "m").exists()


def test_a_download_that_breaks_off_is_refused(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.claimed_extra = 10
    size = len(mirror.contents[f"/good/{NAMES[0]}"])
    assert f"broke off after {size} of {size + 10} bytes" in refusal(capsys, tmp_path / "m")


def test_without_a_network_one_line_says_what_to_put_where(
    mirror: Mirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    closed = Mirror()
    closed.close()
    mirrors(monkeypatch, closed.url("first"), closed.url("second"))
    line = refusal(capsys, tmp_path / "m")
    assert f"{closed.url('first')}: " in line and f"{closed.url('second')}: " in line
    assert line.endswith(
        f"check the network and try again, or put {', '.join(NAMES)} "
        f"from any copy of MNIST into {tmp_path / 'm'}"
    )


def test_a_folder_that_cannot_be_written_is_named(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    line = refusal(capsys, tmp_path / "file")
    assert f"{tmp_path / 'file' / NAMES[0]}: can't be written (" in line
    assert line.endswith("choose a folder with --folder")


def test_a_failed_write_leaves_no_part_of_a_file(
    mirror: Mirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(path: Path, target: Path) -> None:
        assert Path(path).parent == Path(target).parent, "a rename across folders may not be atomic"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert "can't be written (No space left on device)" in refusal(capsys, tmp_path / "m")
    assert list((tmp_path / "m").iterdir()) == []


def test_the_progress_reaches_the_size_that_was_announced(mirror: Mirror, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    download.fetch(
        download.FILES[0],
        tmp_path,
        download.MIRRORS,
        lambda received, total: told.append((received, total)),
    )
    size = len(mirror.contents[f"/good/{NAMES[0]}"])
    assert told[-1] == (size, size)


def test_all_mirrors_are_https() -> None:
    assert all(url.startswith("https://") and url.endswith("/") for url in download.MIRRORS)
    assert len(set(download.MIRRORS)) == len(download.MIRRORS) >= 2
