"""PyTorch's side, on its GPU if it sees one and JAX is not told to use the CPU."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.speed.pil import warp
from benchmarks.speed.pytorch import Net, make_step
from benchmarks.speed.suite import Work

# Beside a JAX on a CPU it would be another machine: then it takes the CPU too.
CUDA = torch.cuda.is_available() and os.environ.get("JAX_PLATFORMS") != "cpu"
DEVICE = "cuda" if CUDA else "cpu"


def _wait(result: Any) -> None:
    if CUDA:
        torch.cuda.synchronize()


def _images(images: np.ndarray, memory_format: torch.memory_format = torch.channels_last) -> torch.Tensor:
    return torch.from_numpy(images[:, None].astype(np.float32)).to(DEVICE, memory_format=memory_format)


def _net_and_batch(
    num_images: int, memory_format: torch.memory_format = torch.channels_last
) -> tuple[Net, torch.Tensor, torch.Tensor]:
    rng = np.random.RandomState(0)
    images = _images(rng.standard_normal((num_images, 28, 28)), memory_format)
    return Net().to(DEVICE, memory_format=memory_format), images, torch.from_numpy(rng.randint(0, 10, num_images))


def _step(net: Net, forward: Callable[..., Any] | None = None) -> Callable[..., Any]:
    return make_step(net, torch.optim.Adam(net.parameters(), lr=1e-3, fused=True), forward=forward)


def step(name: str) -> dict[str, Work]:
    """An optimizer step of 128 images: "torch" in the default layout, otherwise in channels-last."""
    memory_format = torch.contiguous_format if name == "torch" else torch.channels_last
    net, images, labels = _net_and_batch(128, memory_format)
    labels = labels.to(DEVICE)
    # On a GPU "reduce-overhead" also records the kernels as CUDA graphs.
    mode = "reduce-overhead" if CUDA else "default"
    train_step = _step(net, torch.compile(net, mode=mode) if name == "torch-compiled" else None)
    return {name: Work(lambda: train_step(images, labels), wait=_wait)}


def epoch(name: str) -> dict[str, Work]:
    """The original's loop: images warped one by one on the host, then the step."""
    net, _, labels = _net_and_batch(124)
    pixels, train_step = np.random.RandomState(0).randint(0, 256, (124, 28, 28)).astype(np.uint8), _step(net)

    def run() -> None:
        images = np.stack([warp(image) for image in pixels])
        train_step(_images((images / np.float32(255) - 0.1307) / 0.3081), labels.to(DEVICE))

    return {name: Work(run, 124 / 60_000, _wait)}


def evaluation(name: str) -> dict[str, Work]:
    """Hits among 10,000 images, already normalised, in batches of 1,000."""
    net, images, labels = _net_and_batch(10_000)
    net.eval()
    batches = list(zip(images.split(1000), labels.to(DEVICE).split(1000), strict=True))

    @torch.no_grad()
    def run() -> int:
        return int(sum((net(images).argmax(1) == labels).sum() for images, labels in batches))

    return {name: Work(run)}
