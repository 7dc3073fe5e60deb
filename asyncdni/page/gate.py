"""Who may see the page: the checks that every request must pass.

- `Host` must name this machine, so that no web site whose name an attacker lets point to this
  address (DNS rebinding) is taken for the page.
- `Origin`, where a browser sends one, must be the page's own; a change must come with one.
- Where other hosts can reach the page, or it has controls, a token is asked for. It is shown once,
  as part of the address that the command prints; the browser keeps it as a cookie that scripts
  can't read.

The answers forbid browsers to run or load anything but the page's own files.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Gate", "Rules", "is_loopback"]

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Rules:
    """What is asked of a request."""

    host: str  # the address that the page is served at
    port: int
    token: str | None = None

    @property
    def cookie(self) -> str:
        """The name of the cookie with the token; pages on other ports have others."""
        return f"asyncdni-page-{self.port}"

    def knows_host(self, header: str) -> bool:
        """Whether the header `Host` names this machine. An address names no web site; a name is
        one of this machine's own."""
        name = _without_port(header).lower()
        if is_loopback(name):
            return True
        if is_loopback(self.host):
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            own = (self.host, socket.gethostname(), socket.getfqdn())
            return name in {one.lower() for one in own}
        return True

    def is_token(self, given: str | None) -> bool:
        """Whether that is the token, in a time that does not depend on how much of it is right."""
        if self.token is None:
            return True
        return hmac.compare_digest((given or "").encode(), self.token.encode())


class Gate:
    """Lets requests through to the page, or refuses them, and adds headers to all answers."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; see ASGI."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer = self._answer(Request(scope)) or self._app
        await answer(scope, receive, send_with_headers)

    def _answer(self, request: Request) -> Response | None:
        """Return the answer to a request that does not come as far as the page, else None."""
        rules, headers = self._rules, request.headers
        if not rules.knows_host(headers.get("host", "")):
            return _refusal(403, f"this page is at {rules.host}:{rules.port}: open that address")
        origin = headers.get("origin")
        changes = request.method not in ("GET", "HEAD")
        if (changes or origin is not None) and origin != f"http://{headers.get('host')}":
            return _refusal(403, "requests of other web pages are refused")
        given = request.query_params.get("token")
        if given is not None and request.url.path == "/" and rules.is_token(given):
            return self._welcome()
        if not rules.is_token(request.cookies.get(rules.cookie) or _bearer(headers)):
            return _refusal(401, "a token is needed: open the address that the command printed")
        return None

    def _welcome(self) -> Response:
        """Keep the token as a cookie and take it out of the address."""
        response = RedirectResponse("/", status_code=303)
        if self._rules.token is not None:
            response.set_cookie(
                self._rules.cookie, self._rules.token, httponly=True, samesite="strict"
            )
        return response


def _refusal(status: int, text: str) -> Response:
    return PlainTextResponse(f"asyncdni: {text}\n", status_code=status)


def _bearer(headers: Headers) -> str | None:
    """Return the token that a program such as Prometheus sends."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token if kind.lower() == "bearer" else None


def _without_port(host: str) -> str:
    """Return the name or address of a header `Host`: of "[::1]:8642" it is "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
