"""The network in integers as C99 for a chip: `digits.c` and `digits.h`, made from `digits.c.in` and `digits.h.in`."""

import re
import string
import textwrap
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mnist_flax import data
from mnist_flax.errors import UserError
from mnist_flax.files import SIGN, require_ours, write_text
from mnist_flax.inference import integers
from mnist_flax.inference.card import INT8_ACCURACY
from mnist_flax.inference.classifier import Classifier
from mnist_flax.inference.integers import IntegerNetwork, Layer

_TEMPLATES = {suffix: Path(__file__).with_name(f"digits{suffix}.in") for suffix in (".h", ".c")}


def export(
    network: Classifier, path: Path, data_dir: Path | None = None, load: integers.Load = data.load
) -> dict[str, str | int]:
    """Write `network` to `path` and to a header beside it; returns their names and the program's figures.

    Args:
        network: what to write.
        path: where to; the name ends in .c.
        data_dir: see `integers.from_network`.
        load: see `integers.from_network`.

    Raises:
        UserError: the name is no C file's, one of the two is a file that is not ours, or the network cannot be
            converted to integers. Then nothing is written.
    """
    if not re.fullmatch(r"[\w.+-]+\.c", path.name, re.ASCII):
        raise UserError(f"{path} must end in .c, after a name of letters, digits and . _ + - that an #include can hold")
    require_ours(path, path.with_suffix(".h"))
    in_integers = integers.from_network(network, data_dir, load)
    figures = {**sizes(in_integers), **integers.named_alike(network, in_integers)}
    for suffix, text in sources(network, in_integers, path.stem, figures).items():
        write_text(path.with_suffix(suffix), text)
    return {"output": str(path), "header": str(path.with_suffix(".h")), **figures}


def sizes(network: IntegerNetwork) -> dict[str, int]:
    """Bytes of constants and RAM that the program needs beside its code, and its multiply-adds, padding included."""
    channels = sum(len(layer.bias) for layer in network.layers)
    rows = sum(kept * _bytes_of_row(layer) for layer, kept in _kept_rows(network))
    return {
        "weight_bytes": sum(_in_fours(layer).size for layer in network.layers) + network.weights.size,
        "other_constant_bytes": 8 * channels + 4 * len(network.bias),
        "ram_bytes": rows + max(_in_fours(layer).shape[1] for layer in network.layers),
        "multiply_adds": sum(layer.width**2 * layer.weights.size for layer in network.layers) + network.weights.size,
    }


def sources(network: Classifier, in_integers: IntegerNetwork, name: str, figures: dict[str, int]) -> dict[str, str]:
    """The text of both files by their suffix.

    Args:
        network: what `in_integers` is made of.
        in_integers: what to write.
        name: the files' name without its suffix.
        figures: `sizes`, and of how many "images" how many were "named_as_in_float32".
    """
    tables, entries = [], []
    for layer, kept in _kept_rows(in_integers):
        tables += [
            _table(f"int8_t {layer.name}_weights[]", _in_fours(layer)),
            _table(f"Channel {layer.name}_channels[]", zip(layer.bias, layer.scale, strict=True), "{{{}}}"),
            f"static uint8_t {layer.name}_rows[{kept} * {_bytes_of_row(layer)}];\n",
        ]
        features, size, _, channels = layer.weights.shape
        shapes = kept, layer.width_in, channels, layer.width, features, size, layer.padding, int(layer.pooled)
        names = (f"{layer.name}_{part}" for part in ("weights", "channels", "rows"))
        entries.append(f"    {{{', '.join(map(str, [*names, *shapes]))}}},")
    tables += [
        "static const Block blocks[BLOCKS] = {\n" + "\n".join(entries) + "\n};\n",
        _table("int8_t final_weights[MNIST_FLAX_CLASSES][FEATURES]", in_integers.weights, "{{{}}}"),
        _table("int32_t final_bias[MNIST_FLAX_CLASSES]", [in_integers.bias]),
    ]
    values = {
        "name": name,
        "maker": f"{SIGN} {version('mnist-flax')} (export --format c)",
        "accuracy": _accuracy(network),
        "classes": len(network.class_names),
        "class_names": ", ".join(map(_literal, network.class_names)),
        "unit": f"{in_integers.unit / network.temperature:.8e}f",
        "num_blocks": len(in_integers.layers),
        "num_features": in_integers.weights.shape[1],
        "tables": "\n".join(tables),
        **{name: f"{value:,}" for name, value in figures.items()},
    }
    texts = {suffix: template.read_text("utf-8") for suffix, template in _TEMPLATES.items()}
    return {suffix: string.Template(text).substitute(values) for suffix, text in texts.items()}


def _kept_rows(network: IntegerNetwork) -> list[tuple[Layer, int]]:
    """Each layer, and how many rows of its output are kept: as many as the next one reads at a time."""
    following = [layer.weights.shape[1] for layer in network.layers[1:]]
    return list(zip(network.layers, [*following, 1], strict=True))


def _bytes_of_row(layer: Layer) -> int:
    return (layer.width >> layer.pooled) * len(layer.bias)


def _in_fours(layer: Layer) -> np.ndarray:
    """A row of weights for each channel, padded with zeros: the program multiplies four at a time."""
    rows = layer.weights.reshape(len(layer.bias), -1)
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))


def _table(declaration: str, rows: Iterable[Iterable[object]], form: str = "{}") -> str:
    """A constant array. Each row begins a line."""
    lines = (form.format(", ".join(map(str, row))) + "," for row in rows)
    wrapped = (textwrap.fill(line, 116, initial_indent="    ", subsequent_indent="        ") for line in lines)
    return "\n".join([f"static const {declaration} = {{", *wrapped, "};\n"])


def _accuracy(network: Classifier) -> str:
    """What the network was trained on, and how many images it names rightly, as far as its card says so."""
    card, name = network.card, _literal(Path(network.card["dataset"]).name)
    if INT8_ACCURACY in card:
        return f"{card[INT8_ACCURACY]:.2%} of the test images of {name}"
    if "val_accuracy" in card:
        return f"{card['val_accuracy']:.2%} of the images of {name} held out from training, in float32"
    return f"not known; it is for images of {name}"


def _literal(text: str) -> str:
    r"""A C string literal. What could end it, or the comment that it stands in, is written as \ooo."""
    plain = f"{string.ascii_letters}{string.digits} _-.+"
    return '"' + "".join(chr(byte) if chr(byte) in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'
