"""`python -m mnist_flax.summary`: the network as a table."""

from typing import Any, NamedTuple

from mnist_flax.errors import ArgumentParser, command


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

    from mnist_flax.interop import BLOCKS
    from mnist_flax.model import IMAGE_SHAPE, MNISTNet, count_parameters, init_variables

    def outputs(key: jax.Array) -> tuple[Any, Any]:
        variables = init_variables(key)
        _, state = MNISTNet().apply(variables, jnp.zeros((1, *IMAGE_SHAPE)), capture_intermediates=True)
        return variables["params"], state["intermediates"]

    params, intermediates = jax.eval_shape(outputs, jax.random.key(0))

    def layer(kind: str, name: str, *inner: str) -> Layer:
        node, weights = intermediates[name], params.get(name, {})
        for key in inner:
            node, weights = node[key], weights.get(key, {})
        shape = node["__call__"][0].shape[1:]
        own = 0 if kind == "ReLU" else count_parameters(weights)
        return Layer(".".join((name, *inner)), kind, shape, own)

    rows = []
    for name in (*BLOCKS[:4], "maxpool", *BLOCKS[4:], "gap", "final_conv"):
        if name in BLOCKS:
            height, width = params[name]["conv"]["kernel"].shape[:2]
            rows += [layer(f"Conv {height}×{width}", name, "conv"), layer("BatchNorm", name, "norm")]
            rows += [layer("ReLU", name)._replace(name=f"{name}.relu")]
        else:
            kinds = {"maxpool": "MaxPool 2×2", "gap": "GlobalAveragePool", "final_conv": "Conv 1×1"}
            rows.append(layer(kinds[name], name))
    return rows


@command
def main() -> None:
    """The command line."""
    ArgumentParser(
        prog="python -m mnist_flax.summary",
        description="Print the network's layers, output shapes and parameters.",
        epilog="example: python -m mnist_flax.summary",
    ).parse_args()
    rows = layers()
    print(f"{'layer':<22}{'type':<20}{'output (H×W×C)':<17}{'parameters':>10}")
    for row in rows:
        print(f"{row.name:<22}{row.kind:<20}{'×'.join(map(str, row.shape)):<17}{row.num_params:>10,}")
    total = sum(row.num_params for row in rows)
    activations = sum(row.shape[0] * row.shape[1] * row.shape[2] for row in rows)
    print(f"\nParameters  {total:,} (all trainable), {4 * total / 1024:.1f} KiB in float32")
    print(f"Activations {activations:,} for one image, {4 * activations / 1024:.1f} KiB in float32")
    print(f"Input       28×28×1, {4 * 28 * 28 / 1024:.1f} KiB in float32\n")
    print(f"{'block':<22}{'parameters':>10}{'share':>8}")
    for block in dict.fromkeys(row.name.split(".")[0] for row in rows):
        count = sum(row.num_params for row in rows if row.name.split(".")[0] == block)
        print(f"{block:<22}{count:>10,}{count / total:>8.1%}")


if __name__ == "__main__":
    main()
