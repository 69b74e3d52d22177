"""The demo's page as one file that needs no server: the network and the reader in it are JavaScript."""

import base64
import hashlib
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from mnist_flax.errors import UserError
from mnist_flax.files import SIGN, require_ours, write_text
from mnist_flax.inference import integers, ood
from mnist_flax.inference.classifier import Classifier
from mnist_flax.model import BLOCKS
from mnist_flax.reading import scoring
from mnist_flax.views import page

# In place of server.js, which asks the server for the same answers.
_WITHOUT_SERVER = ("network.js", "drawing.js", "reading.js")
_LINK = re.compile(r'<(?:link|script) [^>]*?(?:href|src)="([\w/.-]+)"[^>]*>(?:</script>)?')
_SCRIPT = re.compile(r'<script type="module">(.*?)</script>', re.DOTALL)


def export(network: Classifier, path: Path, name: str) -> dict[str, Any]:
    """Write the page with `network`, which it calls `name`, to `path`; returns the file's name and size.

    Raises:
        UserError: the name is no page's, the network cannot be used, or `path` is a file that is not ours. Then nothing
            is written.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{path} must end in .html, or browsers do not show it as a page")
    require_ours(path)
    text = source(network, name)
    write_text(path, text)
    return {"output": str(path), "bytes": len(text.encode())}


def source(network: Classifier, name: str) -> str:
    """The page's text. By its content security policy it can ask nobody, and runs no script but its own.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    fitted = {"bias": scoring.BIAS, "weights": scoring.WEIGHTS}
    data = {"network": weights(network), "about": {**page.model(network, name), "scoring": fitted}}
    for example in data["about"]["examples"]:
        example["file"] = _data_url(example["file"])
    text = _LINK.sub(lambda link: _inlined(link[1]), _text("index.html"))
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in _SCRIPT.findall(text))
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{digest}'" for digest in hashes),
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "connect-src": "data:",  # the examples
    }
    head = [
        '<meta charset="utf-8">',
        f'<meta name="generator" content="{SIGN} {version("mnist-flax")} (export --format html)">',
        f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(map(" ".join, policy.items()))}">',
        *(f'<script type="application/json" id="{key}">{_json(value)}</script>' for key, value in data.items()),
    ]
    return text.replace(head[0], "\n  ".join(head), 1)


def weights(network: Classifier) -> dict[str, Any]:
    """The network for network.js: shapes, and all numbers in the order in which it reads them.

    Raises:
        UserError: one of them is NaN or infinite.
    """
    blocks, arrays = [], []
    for block, kernel, bias in integers.folded(network):
        channels, size, _, inputs = kernel.shape
        padding, pooled = BLOCKS[block].padding, BLOCKS[block].pooled
        shape = {"inputs": inputs, "channels": channels, "size": size, "padding": padding, "pooled": pooled}
        blocks.append({"name": block, **shape})
        arrays += [kernel.transpose(0, 3, 1, 2), bias]
    final, used = network.variables["params"]["final_conv"], len(network.class_names)
    arrays += [np.asarray(final["kernel"])[0, 0].T[:used], np.asarray(final["bias"])[:used]]
    if network.reference is not None:
        whitening = network.reference.whitening  # a Cholesky factor: zero above its diagonal
        arrays += [network.reference.means, whitening[np.tril_indices(len(whitening))]]
    floats = np.concatenate([np.ravel(array) for array in arrays]).astype(np.float32)
    if not np.isfinite(floats).all():
        raise UserError("the network cannot be written as a page: some of its weights are NaN or infinite")
    return {
        "classNames": network.class_names,
        "temperature": network.temperature,
        "blocks": blocks,
        "features": ood.BLOCKS if network.reference is not None else [],
        "floats": base64.b64encode(_in_24_bits(floats)).decode(),
    }


def _in_24_bits(floats: Float32[np.ndarray, " n"]) -> bytes:
    """The upper three bytes of each float32, rounded to 2^-17 of it. They make the page a seventh smaller."""
    rounded = (floats.view(np.uint32) + np.uint32(0x80)).astype(">u4")
    return rounded.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


def _inlined(file: str) -> str:
    """A file that the page names, as an element that needs no other file."""
    if file == "server.js":
        return "\n  ".join(map(_inlined, _WITHOUT_SERVER))
    match Path(file).suffix:
        case ".css":
            return f"<style>\n{_text(file)}</style>"
        case ".js":
            return f'<script type="module">\n{_text(file)}</script>'
    return f'<link rel="icon" href="{_data_url(file)}">'


def _text(file: str) -> str:
    return page.FILES[file].read_text("utf-8")


def _data_url(file: str) -> str:
    return f"data:image/png;base64,{base64.b64encode(page.FILES[file].read_bytes()).decode()}"


def _json(value: object) -> str:
    """JSON that cannot end the element it is in."""
    return json.dumps(value).replace("<", "\\u003c")
