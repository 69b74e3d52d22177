"""The demo's application: a page to draw on, and what the network sees and says of a drawing.

Requests write nothing to disk.
"""

import asyncio
import concurrent.futures
import functools
import os
from collections.abc import Iterable
from typing import Any

from mnist_flax.errors import UserError
from mnist_flax.inference.classifier import Classifier
from mnist_flax.reading import candidates
from mnist_flax.views.page import FILES, look, model
from mnist_flax.views.server import MAX_BYTES, Guard, Rate, read_body, refusal

# Not guessed: on Windows other programs can change what a suffix means, and with `nosniff` a browser runs no script
# that is served as text.
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".png": "image/png"}
MAX_IN_FLIGHT = 32  # predictions, from their first byte to the answer
RATE = 300.0  # predictions a second, of all visitors together


def create_app(
    network: Classifier,
    name: str = "the shipped weights",
    *,
    names: Iterable[str] = (),
    allowed_hosts: Iterable[str] = (),
    rate: float = RATE,
) -> Any:
    """The page and its server as an ASGI application, compiled and warm.

    `GET /` is the page, `GET /model` describes the network, and `POST /predict` answers an image file with the result
    of `look`; `/predict?shown=2` shows the third of several digits. An error is answered with a sentence, as
    `{"error": ...}`.

    Args:
        network: the network that is asked.
        name: what the page calls it.
        names: host names of this server, apart from `localhost`.
        allowed_hosts: other names by which the page is reached, such as that of a proxy in front of the server.
        rate: how many predictions a second it answers.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    contents = {file: path.read_bytes() for file, path in FILES.items()}
    candidates.compile_for(network)
    about = {**model(network, name), "max_bytes": MAX_BYTES}

    async def page(request: Request) -> Response:
        file = request.path_params["file"] or "index.html"
        if file not in contents:
            raise HTTPException(404, "There is no such page.")
        return Response(contents[file], media_type=TYPES[FILES[file].suffix])

    async def describe_model(request: Request) -> Response:
        return JSONResponse(about)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentence = error.detail if error.detail.endswith(".") else f"{error.detail}."
        return refusal(error.status_code, sentence)

    async def failed(request: Request, error: Exception) -> Response:
        return refusal(500, "The server failed; its terminal says more.")

    routes = [
        Route("/predict", _Predictions(network, rate).answer, methods=["POST"]),
        Route("/model", describe_model),
        Route("/{file:path}", page),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: refused, Exception: failed})
    return Guard(app, frozenset({"localhost", *map(str.lower, names)}), frozenset(map(str.lower, allowed_hosts)))


class _Predictions:
    """Answers `POST /predict`, within the limits."""

    def __init__(self, network: Classifier, rate: float) -> None:
        self.network, self.limit, self.in_flight = network, Rate(rate), 0
        self.pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())

    async def answer(self, request: Any) -> Any:
        from starlette.exceptions import HTTPException
        from starlette.requests import ClientDisconnect
        from starlette.responses import JSONResponse

        if not request.headers.get("content-type", "").startswith("image/"):
            raise HTTPException(415, "The body must be an image file, and its content type image/….")
        if not self.limit.allows():
            raise HTTPException(429, f"More than {self.limit.per_second:g} predictions a second were asked for.")
        if self.in_flight >= MAX_IN_FLIGHT:
            raise HTTPException(503, "Too many predictions are asked for at once.")
        shown = request.query_params.get("shown", "0")
        if not (shown.isascii() and shown.isdecimal()):
            raise HTTPException(400, "What is shown is the number of a digit, from 0.")
        self.in_flight += 1
        try:
            data = await read_body(request)
            look_at = functools.partial(look, self.network, data, int(shown[:9]))
            seen = await asyncio.get_running_loop().run_in_executor(self.pool, look_at)
        except UserError as error:
            raise HTTPException(400, f"The picture cannot be used: {error}.") from error
        except ClientDisconnect as error:
            raise HTTPException(400, "The picture ended early.") from error
        finally:
            self.in_flight -= 1
        return JSONResponse(seen)
