import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import fresh_variables, normal, state_dict

from mnist_flax import ops, summary
from mnist_flax.data import Normalization
from mnist_flax.inference import interop
from mnist_flax.model import BLOCKS, BatchNormReLU, MNISTNet, count_parameters, init_variables

ORDER = ("block1", "block2", "block3", "block4", "maxpool", "channel_reduce", "block5", "block6", "block7", "gap")
COUNTS = (88, 888, 1760, 2920, 0, 276, 1760, 2336, 2336, 0)
SHAPES = ((26, 8), (24, 12), (22, 16), (20, 20), (10, 20), (10, 12), (10, 16), (10, 16), (10, 16), (1, 16))


@pytest.fixture(scope="module")
def variables():
    return fresh_variables(0)


@pytest.fixture(scope="module")
def rows():
    return summary.layers()


def test_blocks_in_order_with_the_reference_counts(rows):
    blocks = list(dict.fromkeys(row.name.split(".")[0] for row in rows))
    assert blocks == [*ORDER, "final_conv"]
    counts = [sum(row.num_params for row in rows if row.name.split(".")[0] == block) for block in blocks]
    assert counts == [*COUNTS, 170]
    assert sum(counts) == 12_534


def test_total_parameters(variables):
    assert count_parameters(variables["params"]) == 12_534


def test_27_layers_conv_batchnorm_relu_in_every_block(rows):
    assert len(rows) == 27
    for block in BLOCKS:
        kinds = [row.kind.split()[0] for row in rows if row.name.startswith(block + ".")]
        assert kinds == ["Conv", "BatchNorm", "ReLU"]
    assert [row.kind for row in rows if "." not in row.name] == ["MaxPool 2×2", "GlobalAveragePool", "Conv 1×1"]


def test_output_shapes(rows):
    for name, (side, channels) in zip(ORDER, SHAPES, strict=True):
        last = [row for row in rows if row.name.split(".")[0] == name][-1]
        assert last.shape == (side, side, channels)


def test_kernels_and_biases(variables):
    params = variables["params"]
    for name in BLOCKS:
        size = (1, 1) if name == "channel_reduce" else (3, 3)
        assert params[name]["conv"]["kernel"].shape[:2] == size
        assert ("bias" in params[name]["conv"]) == (name == "channel_reduce")
        assert set(params[name]["norm"]) == {"scale", "bias"}
    assert params["final_conv"]["kernel"].shape == (1, 1, 16, 10)
    assert "bias" in params["final_conv"]


def test_blocks_are_called_in_the_order_of_their_table():
    called = []

    def look(next_call, args, kwargs, context):
        if len(context.module.path) == 1:
            called.append(context.module.name)
        return next_call(*args, **kwargs)

    with nn.intercept_methods(look):
        jax.eval_shape(lambda: init_variables(jax.random.key(0)))
    expected = [layer for name, block in BLOCKS.items() for layer in ((name, "maxpool") if block.pooled else (name,))]
    assert called == [*expected, "gap", "final_conv"]


def test_no_dense_layer_and_batchnorm_as_in_pytorch():
    kinds = set()

    def look(next_call, args, kwargs, context):
        kinds.add(type(context.module))
        if isinstance(context.module, BatchNormReLU):
            assert (context.module.momentum, context.module.epsilon) == (0.1, 1e-5)
        return next_call(*args, **kwargs)

    with nn.intercept_methods(look):
        jax.eval_shape(lambda: init_variables(jax.random.key(0)))
    assert BatchNormReLU in kinds
    assert nn.Conv in kinds
    assert nn.Dense not in kinds


def test_initial_values_are_pytorchs_defaults(variables):
    params = variables["params"]
    for name in BLOCKS:
        kernel = np.asarray(params[name]["conv"]["kernel"])
        bound = np.prod(kernel.shape[:3]) ** -0.5
        assert np.abs(kernel).max() <= bound
        assert np.abs(kernel).max() > 0.9 * bound
        assert np.std(kernel) == pytest.approx(bound / np.sqrt(3), rel=0.2)
        assert (params[name]["norm"]["scale"] == 1).all()
        assert (params[name]["norm"]["bias"] == 0).all()
    for layer, fan_in in ((params["channel_reduce"]["conv"], 20), (params["final_conv"], 16)):
        bias = np.abs(layer["bias"])
        assert 0 < bias.max() <= fan_in**-0.5


@pytest.mark.parametrize("train", [False, True])
def test_initialising_without_convolutions_has_the_shapes_of_a_pass_with_them(train):
    def shapes():
        model, images, options = MNISTNet(), jnp.zeros((3, 28, 28, 1)), {"mutable": True, "capture_intermediates": True}
        variables = model.init(jax.random.key(0), images, train=train, **options)
        fresh = {name: variables[name] for name in ("params", "batch_stats")}
        return variables, model.apply(fresh, images, train=train, **options)[1]

    initialised, applied = jax.eval_shape(shapes)
    assert "intermediates" in initialised
    assert initialised == applied


def test_golden_forward(golden):
    arrays = golden("forward")
    variables = interop.from_pytorch(state_dict(arrays, "weights/"))
    images = Normalization(0.1307, 0.3081)(arrays["images"])

    @jax.jit
    def answer(variables, images):
        logits, state = MNISTNet().apply(variables, images, capture_intermediates=True)
        return logits, ops.computed(state["intermediates"])

    logits, outputs = answer(variables, images)
    np.testing.assert_allclose(logits, arrays["logits"], atol=1e-4)
    for name in (*ORDER, "final_conv"):
        output = np.asarray(outputs[name]["__call__"][0], np.float64)
        channels, height, width = arrays[f"shape/{name}"]
        assert output.shape[1:] == (height, width, channels)
        np.testing.assert_allclose(output.mean((0, 1, 2)), arrays[f"mean/{name}"], atol=1e-4, err_msg=name)


def test_running_variance_is_unbiased_as_in_pytorch():
    x = normal(1, 2, 2, 2, 3)
    sums = jnp.stack([x.sum((0, 1, 2)), (x * x).sum((0, 1, 2))])
    norm = BatchNormReLU()
    variables = norm.init(jax.random.key(0), x, sums, train=False)
    _, updated = norm.apply(variables, x, sums, train=True, mutable=["batch_stats"])
    expected = 0.9 + 0.1 * np.var(np.asarray(x), axis=(0, 1, 2), ddof=1)
    np.testing.assert_allclose(updated["batch_stats"]["var"], expected, rtol=1e-5)


def test_summary_prints_the_tables(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["summary"])
    summary.main()
    out = capsys.readouterr().out
    assert "Parameters  12,534" in out
    assert "block4.conv           Conv 3×3            20×20×20              2,880" in out
