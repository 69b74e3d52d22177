"""`python -m mnist_flax.demo`: a page to draw on that shows what the network sees and says.

The server is for one person or one classroom: everything a request can cost is bounded, and pages of other origins are
refused, so that it may run on a machine that also browses the web. Requests write nothing to disk.
"""

import asyncio
import base64
import concurrent.futures
import contextlib
import ipaddress
import os
import socket
import threading
import time
import urllib.parse
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from mnist_flax.errors import ArgumentParser, UserError, command, require

PAGE = Path(__file__).with_name("page")
# Windows lets other programs change what a suffix means; with `nosniff` a browser would run no script that is "text".
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".png": "image/png"}
PORT = 8000

# What requests may cost. A picture of the page has a few kB; one dropped on it may be a photograph.
MAX_BYTES = 10_000_000
MAX_PIXELS = 25_000_000
MAX_IN_FLIGHT = 32  # predictions, from their first byte to the answer
MAX_CONNECTIONS = 256
RATE = 300.0  # predictions a second, from everybody together
SECONDS = 10.0  # to send a request's head, and as many for its body

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def look(network: Any, data: bytes) -> dict[str, Any]:
    """All there is to show of one image file: the verdict, the network's input and what its blocks make of that.

    Keys: those of `predict.judge_drawing`; `pixels`, 28×28 bytes, and `maps`, a list of blocks, None if there is not
    one digit.

    Raises:
        UserError: the file is no image, damaged or too large.
    """
    from mnist_flax import image, predict
    from mnist_flax.interop import BLOCKS

    drawing = image.draw(image.decode(data, MAX_PIXELS))
    seen = {**predict.judge_drawing(network, drawing), "pixels": None, "maps": None}
    if drawing.pixels is not None:
        outputs = network.activations(drawing.pixels[None])
        seen["pixels"] = _base64(drawing.pixels)
        seen["maps"] = [{"name": name, **quantised(outputs[name][0])} for name in BLOCKS]
    return seen


def quantised(values: Float[np.ndarray, "h w c"]) -> dict[str, Any]:
    """Outputs of a ReLU as bytes, channel after channel, 255 for the largest of all."""
    height, width, channels = values.shape
    scaled = np.rint(values * (255 / max(float(values.max()), 1e-6))).astype(np.uint8)
    return {"height": height, "width": width, "channels": channels, "values": _base64(scaled.transpose(2, 0, 1))}


def _base64(array: UInt8[np.ndarray, "..."]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def describe(network: Any) -> str:
    """How good a network is, as far as its card says."""
    if "val_accuracy" not in network.card:
        return "its accuracy was never measured"
    card = network.card
    return f"{card.get('selection_split', 'validation')} accuracy {card['val_accuracy']:.2%} on {card['dataset']}"


def is_known(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header is an address or one of `names`.

    By DNS rebinding a foreign page can reach this server under a name of its own, which is then what it asks for.
    """
    try:
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        return name in names or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


class Guard:
    """Refuses what other origins send, and puts `HEADERS` on every answer."""

    def __init__(self, app: Any, names: frozenset[str]) -> None:
        self.app, self.names = app, names

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
            app = _refusal(403, "This server answers to addresses and its own name only, not to the name asked for.")
        elif origin not in (None, f"http://{host}"):
            app = _refusal(403, "This server answers its own page only, not those of other origins.")
        await app(scope, receive, send_with_headers)


class Rate:
    """Lets through so many a second on average, and as many at once."""

    def __init__(self, per_second: float) -> None:
        self.per_second = self.left = per_second
        self.then = time.monotonic()

    def allows(self) -> bool:
        """Whether another may pass now."""
        now = time.monotonic()
        self.left = min(self.per_second, self.left + (now - self.then) * self.per_second)
        self.then = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


def _refusal(status: int, sentence: str) -> Any:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": sentence}, status, {"retry-after": "1"} if status in (429, 503) else None)


async def _body(request: Any) -> bytes:
    """A request's body.

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


def create_app(
    network: Any, name: str = "the shipped weights", *, names: tuple[str, ...] = (), rate: float = RATE
) -> Any:
    """The page and its server, as an ASGI application, compiled and warm.

    `GET /` is the page, `GET /model` says what is asked, and `POST /predict` answers an image file with what `look`
    returns. What is wrong with a request is said in a sentence, as `{"error": ...}`.

    Args:
        network: a `Classifier`.
        name: what the page calls it.
        names: host names that this server goes by, apart from `localhost`.
        rate: how many predictions a second it answers.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    files = {path.relative_to(PAGE).as_posix(): path for path in sorted(PAGE.rglob("*")) if path.suffix in TYPES}
    contents = {file: path.read_bytes() for file, path in files.items()}
    # Named by label and place in MNIST's test set.
    digits = {file: Path(file).stem.partition("-")[0] for file in contents if file.startswith("examples/")}
    seen = {file: look(network, contents[file]) for file in digits}  # which compiles all that a prediction takes
    examples = [{"file": file, "label": label, "hard": seen[file]["digit"] != label} for file, label in digits.items()]
    blocks = next(iter(seen.values()))["maps"]
    known = set(network.class_names)
    model = {
        "name": name,
        "accuracy": describe(network),
        "class_names": network.class_names,
        "blocks": [{key: block[key] for key in ("name", "height", "width", "channels")} for block in blocks],
        "examples": sorted(examples, key=lambda example: example["hard"]) if set(digits.values()) <= known else [],
        "max_bytes": MAX_BYTES,
    }
    limit, in_flight = Rate(rate), 0
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())

    async def page(request: Request) -> Response:
        file = request.path_params["file"] or "index.html"
        if file not in contents:
            raise HTTPException(404, "There is no such page.")
        return Response(contents[file], media_type=TYPES[files[file].suffix])

    async def describe_model(request: Request) -> Response:
        return JSONResponse(model)

    async def predict(request: Request) -> Response:
        nonlocal in_flight
        if not request.headers.get("content-type", "").startswith("image/"):
            raise HTTPException(415, "The body must be an image file, and its content type image/….")
        if not limit.allows():
            raise HTTPException(429, f"More than {rate:g} predictions a second were asked for.")
        if in_flight >= MAX_IN_FLIGHT:
            raise HTTPException(503, "Too many predictions are asked for at once.")
        in_flight += 1
        try:
            data = await _body(request)
            seen = await asyncio.get_running_loop().run_in_executor(pool, look, network, data)
        except UserError as error:
            raise HTTPException(400, f"The picture cannot be used: {error}.") from error
        except ClientDisconnect as error:
            raise HTTPException(400, "The picture ended early.") from error
        finally:
            in_flight -= 1
        return JSONResponse(seen)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentence = error.detail if error.detail.endswith(".") else f"{error.detail}."
        return _refusal(error.status_code, sentence)

    async def failed(request: Request, error: Exception) -> Response:
        return _refusal(500, "The server failed; its terminal says more.")

    routes = [
        Route("/predict", predict, methods=["POST"]),
        Route("/model", describe_model),
        Route("/{file:path}", page),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: refused, Exception: failed})
    return Guard(app, frozenset({"localhost", *(name.lower() for name in names)}))


def create_server(app: Any, started: Callable[[], None] = lambda: None) -> Any:
    """A uvicorn server that calls `started` when it answers requests and signals.

    It hangs up on who dawdles: uvicorn itself waits for a request's head for ever.
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
    """A socket that listens there; without a port on `PORT`, or if that is taken on one that is free.

    Raises:
        UserError: it cannot be had.
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


@command
def main() -> None:
    """The command line."""
    parser = ArgumentParser(
        prog="python -m mnist_flax.demo",
        description="Open a page to draw digits on, which shows what the network sees and says. Ctrl-C ends it.",
        epilog="example: python -m mnist_flax.demo --checkpoint runs/mnist_training",
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="run directory or safetensors file; default: the shipped weights"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on, 0.0.0.0 to let others in; default: %(default)s"
    )
    parser.add_argument("--port", type=int, help=f"default: {PORT}, or a free one if it is taken")
    parser.add_argument("--no-browser", action="store_true", help="open no browser")
    options = parser.parse_args()
    for package in ("starlette", "uvicorn"):
        require(package, "to serve the page")

    from mnist_flax.classifier import load
    from mnist_flax.mesh import use_compilation_cache

    use_compilation_cache()
    network = load(options.checkpoint)
    name = str(options.checkpoint or "the shipped weights")
    with listen(options.host, options.port) as listener:
        own_name = socket.gethostname()
        app = create_app(network, name, names=(options.host, own_name, f"{own_name}.local"))
        host = own_name if options.host in ("0.0.0.0", "::") else options.host
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"

        def announce() -> None:
            print(f"{name}: {describe(network)}\n{url} (Ctrl-C ends it)", flush=True)
            if not options.no_browser:
                threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

        with contextlib.suppress(KeyboardInterrupt):
            create_server(app, announce).run(sockets=[listener])


if __name__ == "__main__":
    main()
