"""`python -m mnist_flax.summary`: the network as a table."""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

from mnist_flax.cli import ArgumentParser, command, show


class Layer(NamedTuple):
    """A row of the table; `shape` is (height, width, channels)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    num_params: int


def layers() -> list[Layer]:
    """Every layer in order, read off the module itself by tracing it (nothing is computed)."""
    import jax
    import jax.numpy as jnp

    from mnist_flax import ops
    from mnist_flax.model import BLOCKS, IMAGE_SHAPE, MNISTNet, count_parameters, init_variables
    from mnist_flax.training.devices import usual_modes

    def outputs() -> tuple[Any, Any]:
        variables = init_variables(jax.random.key(0))
        _, state = MNISTNet().apply(variables, jnp.zeros((1, *IMAGE_SHAPE)), capture_intermediates=True)
        return variables["params"], ops.computed(state["intermediates"])

    with usual_modes():
        params, intermediates = jax.eval_shape(outputs)

    def layer(kind: str, name: str, *inner: str) -> Layer:
        node, weights = intermediates[name], params.get(name, {})
        for key in inner:
            node, weights = node[key], weights.get(key, {})
        shape = jax.tree.leaves(node["__call__"])[0].shape[1:]
        own = 0 if kind == "ReLU" else count_parameters(weights)
        return Layer(".".join((name, *inner)), kind, shape, own)

    rows = []
    for name, block in BLOCKS.items():
        size = block.kernel_size
        rows += [layer(f"Conv {size}×{size}", name, "conv"), layer("BatchNorm", name, "norm")]
        rows += [layer("ReLU", name)._replace(name=f"{name}.relu")]
        if block.pooled:
            rows.append(layer("MaxPool 2×2", "maxpool"))
    return [*rows, layer("GlobalAveragePool", "gap"), layer("Conv 1×1", "final_conv")]


def describe(rows: list[Layer]) -> str:
    """The layers as a table, and what they add up to."""
    total = sum(row.num_params for row in rows)
    activations = sum(row.shape[0] * row.shape[1] * row.shape[2] for row in rows)
    lines = [f"{'layer':<22}{'type':<20}{'output (H×W×C)':<17}{'parameters':>10}"]
    lines += [f"{row.name:<22}{row.kind:<20}{'×'.join(map(str, row.shape)):<17}{row.num_params:>10,}" for row in rows]
    lines += [
        f"\nParameters  {total:,} (all trainable), {4 * total / 1024:.1f} KiB in float32",
        f"Activations {activations:,} for one image, {4 * activations / 1024:.1f} KiB in float32",
        f"Input       28×28×1, {4 * 28 * 28 / 1024:.1f} KiB in float32\n",
        f"{'block':<22}{'parameters':>10}{'share':>8}",
    ]
    for block in dict.fromkeys(row.name.split(".")[0] for row in rows):
        count = sum(row.num_params for row in rows if row.name.split(".")[0] == block)
        lines.append(f"{block:<22}{count:>10,}{count / total:>8.1%}")
    return "\n".join(lines)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = ArgumentParser("summary", "Print the network's layers, output shapes and parameters.")
    parser.add_json()
    return parser.parse_args(arguments)


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    rows = layers()
    show(options, [row._asdict() for row in rows], describe(rows))


if __name__ == "__main__":
    main()
