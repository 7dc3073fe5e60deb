"""`asyncdni data mnist` against mirrors on 127.0.0.1."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncdni.__main__ import main
from asyncdni.cli import data as command
from asyncdni.datasets import download, mnist
from asyncdni.errors import DataError


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


RAW = {
    file.name: bytes([0, 0, 8, file.axes])
    + (b"\0\0\0\2" * file.axes)
    + bytes(range(number, number + 2**file.axes))
    for number, file in enumerate(mnist.FILES)
}


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Mirror]:
    """A server with four small right files under /good/, the only mirror."""
    files = tuple(
        file._replace(size=len(raw), sha256=hashlib.sha256(raw).hexdigest())
        for file, raw in zip(mnist.FILES, RAW.values(), strict=True)
    )
    # Padding keeps the packed files within the limit of the unpacked ones, as MNIST's are.
    for module in (mnist, download):
        monkeypatch.setattr(module, "FILES", files)
    monkeypatch.setattr(download, "_SLACK_BYTES", 1024)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ASYNCDNI_DATA", raising=False)
    served = Mirror()
    served.contents = {f"/good/{name}.gz": gzip.compress(raw) for name, raw in RAW.items()}
    monkeypatch.setattr(download, "MIRRORS", (served.url("good"),))
    yield served
    served.close()
