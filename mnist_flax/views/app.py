"""The demo's application: a page to draw on, and what the network sees and says of a drawing.

Requests write nothing to disk.
"""

import asyncio
import base64
import concurrent.futures
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from mnist_flax.errors import UserError
from mnist_flax.inference.classifier import Classifier
from mnist_flax.model import BLOCKS
from mnist_flax.reading import answers, image, judging
from mnist_flax.reading.reader import read
from mnist_flax.views.server import MAX_BYTES, Guard, Rate, read_body, refusal

PAGE = Path(__file__).with_name("demo")
# Not guessed: on Windows other programs can change what a suffix means, and with `nosniff` a browser runs no script
# that is served as text.
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".png": "image/png"}
MAX_PIXELS = 25_000_000  # of one picture
MAX_IN_FLIGHT = 32  # predictions, from their first byte to the answer
RATE = 300.0  # predictions a second, of all visitors together


def look(network: Classifier, data: bytes) -> dict[str, Any]:
    """All that the page shows of one image file: the answer, the network's input and the outputs of its blocks.

    Keys: those of `answers.describe`, but boxes are shares of the picture's width and height; `hint`, what would help
    if no digit is named; `pixels`, 28×28 bytes, and `maps`, a list of blocks, None if there is no ink. If there are
    several digits, `probabilities`, `pixels` and `maps` are the first one's.

    Raises:
        UserError: the file is no image, damaged or too large.
    """
    picture = image.decode(data, MAX_PIXELS)
    page = read(network, picture)
    seen = {**answers.describe(network, page), "hint": answers.hint(page, picture), "pixels": None, "maps": None}
    height, width = (picture.scale * side for side in picture.alpha.shape)
    for digit in seen["digits"]:
        digit["box"] = [min(1.0, edge / side) for edge, side in zip(digit["box"], 2 * (width, height), strict=True)]
    if page.digits:
        seen["probabilities"] = answers.by_class(network, page.digits[0].probabilities)
    if page.best is not None:
        first = answers.inputs(page)[0]
        outputs = network.activations(first[None])
        seen["pixels"] = _base64(first)
        seen["maps"] = [{"name": name, **quantised(outputs[name][0])} for name in BLOCKS]
    return seen


def quantised(values: Float[np.ndarray, "h w c"]) -> dict[str, Any]:
    """Outputs of a ReLU as bytes, channel after channel; 255 is the largest value of all channels."""
    height, width, channels = values.shape
    scaled = np.rint(values * (255 / max(float(values.max()), 1e-6))).astype(np.uint8)
    return {"height": height, "width": width, "channels": channels, "values": _base64(scaled.transpose(2, 0, 1))}


def _base64(array: UInt8[np.ndarray, "..."]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def describe(network: Classifier) -> str:
    """How good a network is, as far as its card says."""
    if "val_accuracy" not in network.card:
        return "its accuracy was never measured"
    card = network.card
    return f"{card.get('selection_split', 'validation')} accuracy {card['val_accuracy']:.2%} on {card['dataset']}"


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
    of `look`. An error is answered with a sentence, as `{"error": ...}`.

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

    files = {path.relative_to(PAGE).as_posix(): path for path in sorted(PAGE.rglob("*")) if path.suffix in TYPES}
    contents = {file: path.read_bytes() for file, path in files.items()}
    judging.compile_for(network)
    model = _model(network, name, contents)

    async def page(request: Request) -> Response:
        file = request.path_params["file"] or "index.html"
        if file not in contents:
            raise HTTPException(404, "There is no such page.")
        return Response(contents[file], media_type=TYPES[files[file].suffix])

    async def describe_model(request: Request) -> Response:
        return JSONResponse(model)

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


def _model(network: Classifier, name: str, contents: dict[str, bytes]) -> dict[str, Any]:
    """What the page needs to know of the network. Looks at the examples, which compiles the rest of an answer."""
    # Each example is named by its label and its place in MNIST's test set.
    digits = {file: Path(file).stem.partition("-")[0] for file in contents if file.startswith("examples/")}
    seen = {file: look(network, contents[file]) for file in digits}
    examples = [{"file": file, "label": label, "hard": seen[file]["digit"] != label} for file, label in digits.items()]
    known = set(network.class_names)
    return {
        "name": name,
        "accuracy": describe(network),
        "class_names": network.class_names,
        "blocks": [
            {key: block[key] for key in ("name", "height", "width", "channels")}
            for block in next(iter(seen.values()))["maps"]
        ],
        "examples": sorted(examples, key=lambda example: example["hard"]) if set(digits.values()) <= known else [],
        "max_bytes": MAX_BYTES,
    }


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
        self.in_flight += 1
        try:
            data = await read_body(request)
            seen = await asyncio.get_running_loop().run_in_executor(self.pool, look, self.network, data)
        except UserError as error:
            raise HTTPException(400, f"The picture cannot be used: {error}.") from error
        except ClientDisconnect as error:
            raise HTTPException(400, "The picture ended early.") from error
        finally:
            self.in_flight -= 1
        return JSONResponse(seen)
