"""The demo's web server: what it refuses, what it limits, where it listens.

It is for one person or one classroom. Everything that a request can cost is bounded, and pages of other origins are
refused, so that it may run on a machine that also browses the web.
"""

import asyncio
import contextlib
import ipaddress
import socket
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

from mnist_flax.errors import UserError

PORT = 8000
MAX_BYTES = 10_000_000  # of a request; the page's own drawings have a few kB, but a photograph may be dropped on it
MAX_CONNECTIONS = 256
SECONDS = 10.0  # in which a request's head must arrive, and then its body

_WAY_OUT = "if it is to be reached by another name, start it with --allowed-host NAME"

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def is_known(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header is an IP address or one of `names`.

    By DNS rebinding a foreign page can reach this server under a host name of its own; requests then carry that name.
    """
    try:
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        return name in names or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def is_own(origin: str, host: str, allowed_hosts: frozenset[str]) -> bool:
    """Whether an Origin header is that of this server's own page, which the Host header or `allowed_hosts` name.

    A proxy may speak HTTPS to the browser. It passes the Host header on, without the port or not, or sets another.
    """
    try:
        url = urllib.parse.urlsplit(origin)
        return url.scheme in ("http", "https") and (url.netloc == host or url.hostname in allowed_hosts)
    except ValueError:
        return False


class Guard:
    """Refuses requests of other origins, and adds `HEADERS` to every answer."""

    def __init__(self, app: Any, names: frozenset[str], allowed_hosts: frozenset[str]) -> None:
        self.app, self.names, self.allowed_hosts = app, names | allowed_hosts, allowed_hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Called by the server."""
        from starlette.datastructures import Headers, MutableHeaders

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers, app = Headers(scope=scope), self.app
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_known(host, self.names):
            app = refusal(403, f"This server answers to addresses and its own name only; {_WAY_OUT}.")
        elif origin is not None and not is_own(origin, host, self.allowed_hosts):
            app = refusal(403, f"This server answers its own page only, not those of other origins; {_WAY_OUT}.")
        await app(scope, receive, send_with_headers)


class Rate:
    """A limit of `per_second` requests a second on average, and as many at once."""

    def __init__(self, per_second: float) -> None:
        self.per_second = self.left = per_second
        self.then = time.monotonic()

    def allows(self) -> bool:
        """Whether another request may pass now."""
        now = time.monotonic()
        self.left = min(self.per_second, self.left + (now - self.then) * self.per_second)
        self.then = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


def refusal(status: int, sentence: str) -> Any:
    """The answer to a request that is refused."""
    from starlette.responses import JSONResponse

    return JSONResponse({"error": sentence}, status, {"retry-after": "1"} if status in (429, 503) else None)


async def read_body(request: Any) -> bytes:
    """The body of a request.

    Raises:
        HTTPException: it is too long, or takes too long.
    """
    from starlette.exceptions import HTTPException

    too_large = HTTPException(413, f"The picture is larger than {MAX_BYTES // 10**6} MB.")
    if int(request.headers.get("content-length", 0)) > MAX_BYTES:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for chunk in request.stream():
                data += chunk
                if len(data) > MAX_BYTES:
                    raise too_large
    except TimeoutError as error:
        raise HTTPException(408, f"The picture did not arrive within {SECONDS:g} seconds.") from error
    return bytes(data)


def create_server(app: Any, started: Callable[[], None] = lambda: None) -> Any:
    """A uvicorn server that calls `started` once it answers requests and signals.

    It closes a connection whose request does not arrive in time; uvicorn alone would wait for ever.
    """
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_request()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._await_request()

        def _await_request(self) -> None:
            self.loop.call_later(SECONDS, self._hang_up, self.cycle)

        def _hang_up(self, previous: Any) -> None:
            if self.cycle is previous:
                self.transport.close()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=3,
    )
    return Server(config)


def listen(host: str, port: int | None) -> socket.socket:
    """A listening socket; without a port on `PORT`, or on a free one if that is taken.

    Raises:
        UserError: the address or port cannot be used.
    """
    if port is not None and not 0 <= port < 65536:
        raise UserError(f"--port is {port}; it must be between 0 and 65535")
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
        if port is None:
            with contextlib.suppress(OSError):
                return socket.create_server((host, PORT), family=family)
        return socket.create_server((host, port or 0), family=family)
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port or 'any'}: {error.strerror}") from error
