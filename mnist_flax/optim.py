"""The optimizer: clip by global norm, then Adam or Muon under PyTorch's one-cycle schedule."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from mnist_flax.packed import Packed, global_norm

Schedule = Callable[[Any], Float[Array, ""]]  # of the step, an integer


def _cosine_cycle(total_steps: int, warmup_fraction: float, start: float, peak: float, end: float) -> Schedule:
    """Half a cosine from start to peak during the warm-up, another to the end; PyTorch's phase boundaries."""
    warmup_end, last = warmup_fraction * total_steps - 1, total_steps - 1

    def schedule(step: Int[Any, ""]) -> Float[Array, ""]:
        step = jnp.minimum(step, last)
        warming_up = step <= warmup_end
        nearness = jnp.where(warming_up, step / max(warmup_end, 1), (last - step) / (last - warmup_end))
        # (1 - cos(pi * x)) / 2 is written as sin(pi / 2 * x)^2 and measured from the far end. Far from the peak the
        # result is small: there the first form has no correct digit left in float32, and this one has all of them.
        far = jnp.where(warming_up, start, end)
        return far + (peak - far) * jnp.square(jnp.sin(jnp.pi / 2 * nearness))

    return schedule


def one_cycle(
    total_steps: int,
    max_learning_rate: float,
    *,
    warmup_fraction: float = 0.3,
    initial_divisor: float = 25.0,
    final_divisor: float = 1e4,
) -> tuple[Schedule, Schedule]:
    """Learning-rate and beta1 schedules of `torch.optim.lr_scheduler.OneCycleLR`, step for step.

    The learning rate starts at `max / initial_divisor` and ends at `max / (initial_divisor * final_divisor)`; Adam's
    beta1 runs against it, 0.95 -> 0.85 -> 0.95, as PyTorch does by default.

    https://pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR.html; Smith & Topin, 2017,
    arXiv:1708.07120. (`optax.cosine_onecycle_schedule` puts its phase boundaries elsewhere and has no beta1.)
    """
    initial = max_learning_rate / initial_divisor
    learning_rate = _cosine_cycle(total_steps, warmup_fraction, initial, max_learning_rate, initial / final_divisor)
    beta1 = _cosine_cycle(total_steps, warmup_fraction, 0.95, 0.85, 0.95)
    return learning_rate, beta1


class OptimizerState(NamedTuple):
    """The optimizer's state.

    Attributes:
        count: steps taken.
        momentum: running mean of the gradients.
        square: running mean of their squares; None for what Muon trains.
    """

    count: Int[Any, "*replicas"]
    momentum: Packed
    square: Packed


def make_optimizer(
    name: str, total_steps: int, max_learning_rate: float, *, clip_norm: float
) -> optax.GradientTransformation:
    """Clip the gradient's global norm to `clip_norm`, then one of two optimizers under `one_cycle`; of `Packed` trees.

    "adam" is Adam (beta2 0.999, epsilon 1e-8). "muon" trains the blocks' convolution kernels by Muon, and the rest by
    Adam. Muon treats a kernel as a matrix of inputs by outputs; its step is the orthogonal matrix nearest to the
    momentum, here scaled to a root mean square of half the learning rate, so that one learning rate suits both.

    Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/; Liu et al., 2025, arXiv:2502.16982
    """
    learning_rate, beta1 = one_cycle(total_steps, max_learning_rate)

    def adams(tree: Packed) -> Packed:
        return tree.replace(kernels=None) if name == "muon" else tree

    def init(params: Any) -> Any:
        # Arrays of their own: a step may be given both to write over.
        momentum, square = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return OptimizerState(jnp.int32(0), momentum, adams(square))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        norm, count = global_norm(updates), state.count + 1
        gradients = jax.tree.map(lambda g: jnp.where(norm < clip_norm, g, g / norm * clip_norm), updates)
        moments = adams(state.momentum), state.square
        momentum, square, direction = _adam(adams(gradients), *moments, beta1(state.count), count)
        if name == "muon":
            mean, kernels = _muon(gradients, state.momentum, count)
            momentum, direction = momentum.replace(kernels=mean), direction.replace(kernels=kernels)
        rate = learning_rate(state.count)
        return jax.tree.map(lambda d: -rate * d, direction), OptimizerState(count, momentum, square)

    return optax.GradientTransformation(init, update)


def _adam(
    gradients: Packed, momentum: Packed, square: Packed, beta1: Float[Array, ""], count: Int[Array, ""]
) -> tuple[Packed, Packed, Packed]:
    """Both running means after this gradient, and Adam's direction. Kingma & Ba, 2014, arXiv:1412.6980."""
    beta2, epsilon = 0.999, 1e-8
    momentum = optax.tree.update_moment(gradients, momentum, beta1, 1)
    square = optax.tree.update_moment_per_elem_norm(gradients, square, beta2, 2)
    mean = optax.tree.bias_correction(momentum, beta1, count)
    mean_square = optax.tree.bias_correction(square, beta2, count)
    return momentum, square, jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mean, mean_square)


def _muon(gradients: Packed, momentum: Packed, count: Int[Array, ""]) -> tuple[Array, Array]:
    """The kernels' running mean after this gradient, and Muon's direction: with Nesterov's momentum, as in Optax.

    An orthogonal matrix of r rows and c columns has a root mean square of max(r, c)^-1/2; that becomes a half.
    """
    beta, gradient = 0.95, gradients.kernels
    mean = optax.tree.update_moment(gradient, momentum.kernels, beta, 1)
    ahead = optax.tree.bias_correction(mean, beta, count + 1)
    ahead = beta * ahead + (1 - beta) * optax.tree.bias_correction(gradient, beta, count)
    scale = jnp.array([0.5 * max(sides) ** 0.5 for sides in gradients.like.matrices], gradient.dtype)
    return mean, _orthogonal(ahead) * scale[:, None, None]


def _orthogonal(x: Float[Array, "n rows columns"]) -> Float[Array, "n rows columns"]:
    """Almost the orthogonal matrix nearest to each: five Newton-Schulz iterations with Muon's coefficients.

    All at once: one by one they would be 150 products. Zeros that fill a matrix up stay zeros. The Gram matrix is that
    of the rows, which are the fewer.
    """
    x = x / (jnp.sqrt(jnp.square(x).sum((1, 2), keepdims=True)) + 1e-8)
    for _ in range(5):
        gram = x @ x.swapaxes(1, 2)
        x = (3.4445 * jnp.eye(x.shape[1], dtype=x.dtype) - 4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return x
