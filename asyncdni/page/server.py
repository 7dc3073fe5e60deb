"""Serve the page from a thread of the coordinator's process.

The thread sleeps while nobody looks. It can't hold up a run: connections, streams of events and
answers are limited, and a browser that reads slowly gets fewer, not later news.
"""

from __future__ import annotations

import asyncio
import errno
import json
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from asyncdni.errors import AsyncDNIError, ConfigError, Interrupted, LaunchError
from asyncdni.page.controls import ACTIONS, CONDITIONS, act, check_controls, slow_down
from asyncdni.page.gate import Gate, Rules, is_loopback
from asyncdni.page.metrics import exposition
from asyncdni.page.recorded import last_lines, timeline
from asyncdni.page.state import Runs, RunState

__all__ = ["PORT", "Page", "make_app"]

#: Where the page is looked for first, and how many ports are tried from there on.
PORT = 8642
_PORTS = 100

#: Limits on what browsers may have open: connections, and streams of events among them.
CONNECTIONS_MAX = 128
STREAMS_MAX = 32
#: How many connections are accepted before there is another look at their number: with more, a
#: flood of them would take all files that the coordinator may have open.
_BACKLOG = 32
_NEWS_EVERY_S = 0.25
_SIGN_OF_LIFE_S = 10.0
_BODY_MAX = 1024  # bytes of a request
_LOG_TAIL = 65_536  # bytes
_STOP_S = 3.0

_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


class Page:
    """The page of one command, with all its runs; a context manager that serves it."""

    def __init__(self, port: int = PORT, host: str = "127.0.0.1", *, controls: bool = False):
        """Bind the first free port from `port` on; 0 is any.

        A `host` that others can reach, or `controls`, make visitors show a token, which is part of
        `address`. Raises `ConfigError` for a host that can't be served at, or with controls.
        """
        if controls and not is_loopback(host):
            raise ConfigError(
                f"--page-controls, --page-host {host}: workers can be controlled from this machine "
                "alone; leave one of the two out"
            )
        if controls:
            check_controls()
        self.runs = Runs()
        self._socket = _bound(host, port)
        found: int = self._socket.getsockname()[1]
        self.port = found
        token = secrets.token_urlsafe() if controls or not is_loopback(host) else None
        self._rules = Rules(host, found, token)
        self._closing = threading.Event()
        app = make_app(self.runs, self._rules, controls=controls, closing=self._closing)
        self._server = uvicorn.Server(_config(app))
        # A thread whose `join` was interrupted by Ctrl-C can't be joined again.
        self._served = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="page", daemon=True)

    @property
    def address(self) -> str:
        """The address to open, with the token where one is asked for."""
        host = self._rules.host
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        shown = f"[{host}]" if ":" in host else host
        token = self._rules.token
        return f"http://{shown}:{self.port}/" + (f"?token={token}" if token else "")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.should_exit = True
        self._served.wait(_STOP_S)
        self._socket.close()

    @contextmanager
    def run(self, title: str, folder: Path | None) -> Iterator[RunState]:
        """Show a run that goes on in the block, which observes it."""
        state = RunState(title, folder, live=True)
        self.runs.add(state)
        try:
            yield state
        except (Interrupted, KeyboardInterrupt) as error:
            state.ended("stopped", str(error))
            raise
        except BaseException as error:
            state.ended("failed", str(error) or type(error).__name__)
            raise
        state.ended()

    def wait(self) -> None:
        """Serve until the command is interrupted."""
        self._served.wait()

    def _serve(self) -> None:
        try:
            self._server.run([self._socket])
        finally:
            self._served.set()


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_connections(CONNECTIONS_MAX),
        ws="none",
        loop="asyncio",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="error",
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=1,
    )


def _connections(limit: int) -> type[H11Protocol]:
    """Return uvicorn's protocol of a connection with a limit on their number: for a new one, the
    oldest without a request is closed, or else the new one itself."""
    kept: dict[Any, None] = {}  # in order of age, without those that are about to close

    class Connection(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            kept[self] = None
            if len(kept) > limit:
                idle = (one for one in kept if one.cycle is None or one.cycle.response_complete)
                closed = next(idle, self)
                del kept[closed]
                closed.transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            kept.pop(self, None)
            super().connection_lost(exc)

    return Connection


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket bound to the first free port from `port` on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last = port if port == 0 else min(65_535, port + _PORTS - 1)
    for number in range(port, last + 1):
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, number))
            found.listen()
            return found
        except OSError as error:
            found.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise ConfigError(
                    f"--page-host {host}: can't be served at: {error.strerror or error}; expected "
                    "an address of this machine, such as 127.0.0.1 or 0.0.0.0"
                ) from error
    raise ConfigError(f"--page {port}: no port from {port} to {last} is free; choose another one")


# --- what is served ------------------------------------------------------------------------------


def make_app(runs: Runs, rules: Rules, *, controls: bool, closing: threading.Event) -> ASGIApp:
    """Return the application behind the page. Streams of events end once `closing` is set."""
    site = _Site(runs, closing, secrets.token_urlsafe() if controls else None)
    routes = [
        Route("/", site.page),
        Route("/assets/{name}", site.asset),
        Route("/events", site.events),
        Route("/log", site.log),
        Route("/timeline", site.timeline),
        Route("/metrics", site.metrics),
        Route("/controls", site.controls),
        Route("/control", site.control, methods=["POST"]),
    ]
    return Gate(Starlette(routes=routes, exception_handlers={AsyncDNIError: _explained}), rules)


async def _explained(_: Request, error: Exception) -> Response:
    status = 400 if isinstance(error, ConfigError) else 409
    return PlainTextResponse(f"{error}\n", status_code=status)


class _Site:
    """The answers to the requests that have passed the gate."""

    def __init__(self, runs: Runs, closing: threading.Event, token: str | None) -> None:
        """`token` must come with each control; None: there are none."""
        self._runs = runs
        self._closing = closing
        self._token = token
        self._streams = 0
        home = files("asyncdni.page") / "assets"
        self._assets = {
            one.name: one.read_bytes() for one in home.iterdir() if Path(one.name).suffix in _TYPES
        }

    async def page(self, _: Request) -> Response:
        return self._file("page.html")

    async def asset(self, request: Request) -> Response:
        return self._file(request.path_params["name"])

    def _file(self, name: str) -> Response:
        content = self._assets.get(name)
        if content is None:
            return _unknown("file")
        return Response(content, media_type=_TYPES[Path(name).suffix])

    async def events(self, _: Request) -> Response:
        """Server-sent events: all that is known at first, then whatever is new."""
        if self._streams >= STREAMS_MAX:
            text = f"{STREAMS_MAX} browsers look at this page already\n"
            return PlainTextResponse(text, status_code=503)
        return StreamingResponse(self._news(), media_type="text/event-stream")

    async def _news(self) -> AsyncIterator[str]:
        self._streams += 1
        self._runs.watched(1)
        try:
            seen: dict[int, tuple[int, int]] = {}  # of each run: its changes, and the last number
            silent_s = 0.0
            while True:
                closing = self._closing.is_set()  # the very last news are sent as well
                news = dict(self._new(seen))
                silent_s = 0.0 if news else silent_s + _NEWS_EVERY_S
                if news:
                    yield f"data: {json.dumps(news, allow_nan=False)}\n\n"
                elif silent_s >= _SIGN_OF_LIFE_S:
                    silent_s = 0.0
                    yield ": nothing new\n\n"
                if closing:
                    yield "event: end\ndata: {}\n\n"
                    return
                await asyncio.sleep(_NEWS_EVERY_S)
        finally:
            self._streams -= 1
            self._runs.watched(-1)

    def _new(self, seen: dict[int, tuple[int, int]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the news of each run that has changed, and note that they have been `seen`."""
        for index, run in enumerate(self._runs.all):
            changes, number = seen.get(index, (-1, 0))
            if run.changes == changes or not run.network:
                continue
            changes = run.changes
            found = run.news(number)
            seen[index] = changes, found["number"]
            yield index, found

    def log(self, request: Request) -> Response:
        """The last lines of a worker's log."""
        run = self._runs.find(request.query_params.get("run", ""))
        worker = request.query_params.get("worker", "")
        if run is None or worker not in run.workers:
            return _unknown("worker")
        return PlainTextResponse(last_lines(run.folder, worker, _LOG_TAIL))

    def timeline(self, request: Request) -> Response:
        """The ops of all workers in some milliseconds of a run that was traced."""
        run = self._runs.find(request.query_params.get("run", ""))
        if run is None:
            return _unknown("run")
        try:
            begin_s, length_s = (float(request.query_params[key]) for key in ("begin", "length"))
        except (KeyError, ValueError):
            return PlainTextResponse("expected begin and length in seconds\n", status_code=400)
        return JSONResponse(timeline(run, begin_s, length_s))

    def metrics(self, _: Request) -> Response:
        content, kind = exposition(self._runs.all)
        return Response(content, headers={"Content-Type": kind})

    async def controls(self, _: Request) -> Response:
        """The actions that the page offers, and the token that they need; other pages can't read
        it."""
        actions = list(ACTIONS) if self._token is not None else []
        return JSONResponse({"actions": actions, "token": self._token})

    async def control(self, request: Request) -> Response:
        token = request.headers.get("x-asyncdni-token", "")
        if self._token is None or not secrets.compare_digest(token.encode(), self._token.encode()):
            text = "this page has no controls: --page-controls adds them\n"
            return PlainTextResponse(text, status_code=403)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _BODY_MAX:
                return PlainTextResponse("too long\n", status_code=413)
        try:
            asked = json.loads(body)
            run = self._runs.find(str(asked["run"]))
            worker, action = str(asked["worker"]), str(asked["action"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return PlainTextResponse("expected run, worker and action\n", status_code=400)
        if run is None or worker not in run.workers or action not in {**ACTIONS, **CONDITIONS}:
            return _unknown("run, worker or action")
        if not run.live:
            raise LaunchError("the run has ended")
        if action in ACTIONS:
            act(run, worker, action)
        else:
            slow_down(run, worker, action, asked)
        return JSONResponse({})


def _unknown(what: str) -> Response:
    return PlainTextResponse(f"no such {what}\n", status_code=404)
