"""The network and the warp as one writes them first, run as JAX runs them by default: on one device, XLA's own way."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.ndimage import map_coordinates

from benchmarks.speed.suite import Work
from mnist_flax.augment import Augmentation, draw_distortions


class PlainBlock(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    padding: int = 0
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`(n, h, w, c)` to `(n, h_out, w_out, features)`."""
        x = nn.Conv(self.features, self.kernel_size, padding=self.padding, use_bias=self.use_bias, name="conv")(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name="norm")(x))


class PlainNet(nn.Module):
    """`MNISTNet` without its operations; takes the same variables."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalised images `(n, 28, 28, 1)` to logits `(n, 10)`."""
        for i, features in enumerate((8, 12, 16, 20), start=1):
            x = PlainBlock(features, name=f"block{i}")(x, train=train)
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = PlainBlock(12, (1, 1), use_bias=True, name="channel_reduce")(x, train=train)
        for i in (5, 6, 7):
            x = PlainBlock(16, padding=1, name=f"block{i}")(x, train=train)
        x = x.mean(axis=(1, 2), keepdims=True)
        return nn.Conv(10, (1, 1), name="final_conv")(x).reshape(-1, 10)


def _variables_and_batch(num_images: int) -> tuple[Any, jax.Array, jax.Array]:
    rng = np.random.RandomState(0)
    images = jnp.asarray(rng.standard_normal((num_images, 28, 28, 1)), jnp.float32)
    return jax.jit(PlainNet().init)(jax.random.key(0), images[:1]), images, jnp.asarray(rng.randint(0, 10, num_images))


def step(name: str) -> dict[str, Work]:
    """An optimizer step of 128 images."""
    variables, images, labels = _variables_and_batch(128)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    state = variables["params"], variables["batch_stats"], tx.init(variables["params"])

    @jax.jit
    def train_step(params: Any, batch_stats: Any, opt_state: Any) -> tuple[Any, Any, Any]:
        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": batch_stats}
            logits, updates = PlainNet().apply(variables, images, train=True, mutable=["batch_stats"])
            targets = optax.smooth_labels(jax.nn.one_hot(labels, 10), 0.1)
            return optax.softmax_cross_entropy(logits, targets).mean(), updates["batch_stats"]

        grads, batch_stats_after = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state_after = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), batch_stats_after, opt_state_after

    def run() -> Any:
        nonlocal state
        state = train_step(*state)
        return state

    return {name: Work(run, wait=jax.block_until_ready)}


def evaluation(name: str) -> dict[str, Work]:
    """Hits among 10,000 images, already normalised, in batches of 1,000."""
    variables, images, labels = _variables_and_batch(10_000)
    batches = list(zip(jnp.split(images, 10), jnp.split(labels, 10), strict=True))
    hits = jax.jit(lambda images, labels: (PlainNet().apply(variables, images).argmax(-1) == labels).sum())
    return {name: Work(lambda: jax.device_get([hits(*batch) for batch in batches]))}


def augmentation(name: str) -> dict[str, Work]:
    """`jax.scipy.ndimage.map_coordinates` under the same random maps."""
    images = jnp.asarray(np.random.RandomState(0).randint(0, 256, (124, 28, 28)), jnp.float32)
    key, pixels = jax.random.key(0), jnp.stack([*jnp.indices((28, 28)), jnp.ones((28, 28))])

    def warp(image: jax.Array, transform: jax.Array) -> jax.Array:
        return map_coordinates(image, list(jnp.tensordot(transform, pixels, 1)), order=1)

    @jax.jit
    def warps(key: jax.Array, images: jax.Array) -> jax.Array:
        transforms = jnp.array(draw_distortions(key, 124, 28, Augmentation()).transforms)
        return jax.vmap(warp, (0, -1))(images, transforms)

    return {name: Work(lambda: warps(key, images), 124, jax.block_until_ready)}
