"""Pieces of a page: text, tables and pictures as HTML that needs no other file."""

import base64
import functools
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mnist_flax.views import plots

# The page's dark through blue and green to near white: the scale of the demo's feature maps.
_SCALE = ((16, 21, 30), (38, 84, 138), (52, 150, 168), (120, 212, 180), (240, 253, 232))
_GAP = 255  # the value that is transparent in a picture of feature maps


class Html(str):
    """Text that is HTML already; all other text is escaped."""

    __slots__ = ()


def escape(value: object) -> Html:
    """A value as HTML text, also inside a quoted attribute; what is no text in a file's name becomes "?"."""
    return value if isinstance(value, Html) else Html(html.escape(str(value).encode(errors="replace").decode()))


def join(parts: Iterable[object], separator: str = "") -> Html:
    """Values one after the other."""
    return Html(separator.join(map(escape, parts)))


def element(tag: str, *content: object, **attributes: object) -> Html:
    """An element; `class_` is its class."""
    written = "".join(f' {name.rstrip("_")}="{escape(value)}"' for name, value in attributes.items())
    return Html(f"<{tag}{written}>{join(content)}</{tag}>")


def table(head: Sequence[object], rows: Iterable[Sequence[object]], label: str, kind: str = "") -> Html:
    """A table that scrolls inside itself where the page is narrow; the first cell of each row is its header.

    Cells are values, or `td` and `th` elements if they have attributes of their own.
    """
    cells = (
        element("tr", element("th", first, scope="row"), *(_cell("td", value) for value in rest))
        for first, *rest in rows
    )
    header = element("thead", element("tr", *(_cell("th", value, scope="col") for value in head)))
    return element(
        "div",
        element("table", header, "\n", element("tbody", join(cells, "\n")), class_=kind),
        **{"class_": "scroll", "tabindex": "0", "role": "region", "aria-label": label},
    )


def _cell(tag: str, value: object, **attributes: str) -> Html:
    """A value as a cell, unless it is one already."""
    return value if isinstance(value, Html) and value.startswith(f"<{tag}") else element(tag, value, **attributes)


def _png(picture: Image.Image, alt: str, **options: Any) -> Html:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Html(f'<img alt="{escape(alt)}" width="{picture.width}" height="{picture.height}" src="{source}">')


def grey(pixels: UInt8[np.ndarray, "h w"], alt: str = "") -> Html:
    """A grey image."""
    return _png(Image.fromarray(pixels), alt)


def diverging(values: Float[np.ndarray, "h w"], limit: float, alt: str = "") -> Html:
    """Values as an image, from -`limit` in blue to `limit` in red."""
    return _png(Image.fromarray(plots.diverging(values, limit)), alt)


def feature_maps(values: Float[np.ndarray, "h w c"], alt: str = "") -> Html:
    """A block's channels side by side, bright where they are high."""
    top = float(values.max())
    indices = np.rint(values.clip(0) * ((_GAP - 1) / top if top > 0 else 0)).astype(np.uint8)
    picture = Image.fromarray(plots.mosaic(indices, np.uint8(_GAP))[:-1, :-1].copy())
    picture.putpalette(_palette())
    return _png(picture, alt, transparency=_GAP)


@functools.cache
def _palette() -> bytes:
    """256 colours along the scale, as red, green and blue bytes."""
    at = np.linspace(0, 1, 256)
    stops = np.linspace(0, 1, len(_SCALE))
    return (
        np.rint([np.interp(at, stops, channel) for channel in zip(*_SCALE, strict=True)]).T.astype(np.uint8).tobytes()
    )
