"""The network: 12,534 parameters, no dense layer. NHWC, Flax linen."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnist_flax import ops
from mnist_flax.ops import Kernels

IMAGE_SHAPE = (28, 28, 1)
NUM_CLASSES = 10


class Block(NamedTuple):
    """A convolution with stride 1, BatchNorm and ReLU.

    Attributes:
        features: output channels.
        kernel_size: side of the kernel.
        padding: zeros on each side of the image.
        use_bias: whether the convolution has a bias. BatchNorm makes one redundant; the original has it in one block.
        pooled: whether a 2×2 max-pool follows.
    """

    features: int
    kernel_size: int = 3
    padding: int = 0
    use_bias: bool = False
    pooled: bool = False


# In order. `MNISTNet` calls them; whatever else needs a block's name, size or padding reads it here.
BLOCKS = {
    "block1": Block(8),
    "block2": Block(12),
    "block3": Block(16),
    "block4": Block(20, pooled=True),
    "channel_reduce": Block(12, kernel_size=1, use_bias=True),
    "block5": Block(16, padding=1),
    "block6": Block(16, padding=1),
    "block7": Block(16, padding=1),
}

# PyTorch's default: kaiming_uniform_(a=sqrt(5)) is U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights, and so for biases.
# https://github.com/pytorch/pytorch/blob/main/torch/nn/modules/conv.py (reset_parameters)
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def bias_init_for(fan_in: int) -> nn.initializers.Initializer:
    """Initialiser of a convolution's bias as PyTorch does it: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """A block's convolution: the results of `ops.convolve`, which has no bias, and the bias or 0."""

    block: Block
    kernels: Kernels

    @nn.compact
    def __call__(self, x: ops.PendingBatchNorm | Float[Array, "n h w c"]) -> tuple[ops.Images, Array, Array]:
        features, side, c_in = self.block.features, self.block.kernel_size, x.shape[-1]
        kernel = jnp.asarray(self.param("kernel", kernel_init, (side, side, c_in, features)))
        bias_init = bias_init_for(side * side * c_in)
        bias = jnp.asarray(self.param("bias", bias_init, (features,)) if self.block.use_bias else 0.0)
        if self.is_initializing():  # for which the result's shape will do: 1.2 s less to trace and compile
            (n, height, width, _), growth = x.shape, 2 * self.block.padding + 1 - side
            return jnp.zeros((n, height + growth, width + growth, features)), jnp.zeros((2, features)), bias
        return *ops.convolve(x, kernel, self.block.padding, self.kernels), bias


class BatchNormReLU(nn.Module):
    """ReLU of `nn.BatchNorm` with PyTorch's conventions: momentum 0.1 (Flax: 0.9) and an unbiased running variance.

    It takes what `Conv` returns. With `axis_name` the statistics are those of the whole batch across that mesh axis.
    Ioffe & Szegedy, 2015, arXiv:1502.03167. https://pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: ops.Images, sums: Float[Array, "2 c"], conv_bias: Array | float = 0.0, *, train: bool
    ) -> ops.PendingBatchNorm:
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        if not train:
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            return ops.PendingBatchNorm(x, factor, bias + (conv_bias - running_mean.value) * factor)
        count = math.prod(x.shape[:-1])
        if self.axis_name is not None and not self.is_initializing():
            sums, count = jax.lax.psum((sums, count), self.axis_name)
        # A bias before it shifts the mean, and changes nothing else.
        mean, mean_of_squares = sums / count
        variance = jnp.maximum(mean_of_squares - jnp.square(mean), 0.0)
        if not self.is_initializing():
            unbiased = variance * (count / max(count - 1, 1))
            running_mean.value += self.momentum * (jax.lax.stop_gradient(mean + conv_bias) - running_mean.value)
            running_var.value += self.momentum * (jax.lax.stop_gradient(unbiased) - running_var.value)
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        return ops.PendingBatchNorm(x, factor, bias - mean * factor)


class ConvBlock(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    block: Block
    axis_name: str | None = None
    kernels: Kernels = "xla"

    @nn.compact
    def __call__(self, x: ops.PendingBatchNorm | Float[Array, "n h w c"], *, train: bool) -> ops.PendingBatchNorm:
        conv = Conv(self.block, self.kernels, name="conv")
        return BatchNormReLU(axis_name=self.axis_name, name="norm")(*conv(x), train=train)


class MaxPool(nn.Module):
    """2×2 max-pool, stride 2. It is a module so that captured intermediates have it under its name."""

    def __call__(self, x: ops.PendingBatchNorm) -> ops.PendingBatchNorm:
        return x._replace(pooled=True)


class GlobalAveragePool(nn.Module):
    """Mean over space. It is a module for the same reason."""

    def __call__(self, x: ops.PendingBatchNorm) -> Float[Array, "n 1 1 c"]:
        return x.compute().mean(axis=(1, 2), keepdims=True)


def _product(
    x: Float[Array, "n 1 1 c_in"], kernel: Float[Array, "1 1 c_in c_out"], *_: Any, **__: Any
) -> Float[Array, "n 1 1 c_out"]:
    """A convolution of single pixels as a matrix product; called like `lax.conv_general_dilated`.

    cuDNN has other layouts than the rest of the network: with its convolution XLA transposes the last blocks' outputs
    and gradients, 18 kernels more in a GPU's training step.
    """
    return x @ kernel[0, 0]


class MNISTNet(nn.Module):
    """The reference network, layer for layer and name for name.

    `apply({"params": ..., "batch_stats": ...}, images, train=False)` maps normalised images `(n, 28, 28, 1)` to logits
    `(n, num_classes)`. With `train=True` pass `mutable=["batch_stats"]`, and inside `shard_map` give `axis_name` so
    that BatchNorm sees the whole batch.

    Attributes:
        kernels: what computes convolutions and BatchNorm: "xla", or on a CPU "native" (`ops/native.py`).
        num_classes: how many of its ten outputs are used: the first ones.
    """

    axis_name: str | None = None
    kernels: Kernels = "xla"
    num_classes: int = NUM_CLASSES

    @nn.compact
    def __call__(self, images: Float[Array, "n 28 28 1"], *, train: bool = False) -> Float[Array, "n classes"]:
        def block(name: str) -> ConvBlock:
            return ConvBlock(BLOCKS[name], self.axis_name, self.kernels, name=name)

        x: Any = block("block1")(images, train=train)  # 26×26×8
        x = block("block2")(x, train=train)  # 24×24×12
        x = block("block3")(x, train=train)  # 22×22×16
        x = block("block4")(x, train=train)  # 20×20×20
        x = MaxPool(name="maxpool")(x)  # 10×10×20
        x = block("channel_reduce")(x, train=train)  # 10×10×12
        x = block("block5")(x, train=train)  # 10×10×16
        x = block("block6")(x, train=train)
        x = block("block7")(x, train=train)
        x = GlobalAveragePool(name="gap")(x)  # 1×1×16
        x = nn.Conv(
            NUM_CLASSES,
            (1, 1),
            kernel_init=kernel_init,
            bias_init=bias_init_for(x.shape[-1]),
            conv_general_dilated=_product,
            name="final_conv",
        )(x)
        return x.reshape(-1, NUM_CLASSES)[:, : self.num_classes]


def init_variables(key: jax.Array) -> dict[str, Any]:
    """Fresh `{"params", "batch_stats"}`."""
    variables: Any = MNISTNet().init(key, jnp.zeros((1, *IMAGE_SHAPE)))
    return variables


def variable_shapes() -> Any:
    """Shapes and types of what `init_variables` returns; nothing is computed, so no device is needed."""
    return jax.eval_shape(lambda: init_variables(jax.random.key(0)))


def count_parameters(params: Any) -> int:
    """The number of trainable parameters in a tree; running statistics are not in it."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
