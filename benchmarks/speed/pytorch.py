"""The reference network and recipe in PyTorch: what the benchmarks measure against and the golden values come from."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class ConvBlock(nn.Sequential):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, c_in: int, c_out: int, size: int = 3, padding: int = 0, bias: bool = False) -> None:
        super().__init__(nn.Conv2d(c_in, c_out, size, padding=padding, bias=bias), nn.BatchNorm2d(c_out), nn.ReLU())


class Net(nn.Sequential):
    """12,534 parameters; NCHW images in, logits out."""

    def __init__(self) -> None:
        super().__init__()
        for name, (c_in, c_out) in zip(("block1", "block2", "block3", "block4"), _pairs(1, 8, 12, 16, 20), strict=True):
            self.add_module(name, ConvBlock(c_in, c_out))
        self.add_module("maxpool", nn.MaxPool2d(2))
        self.add_module("channel_reduce", ConvBlock(20, 12, size=1, bias=True))
        for name, (c_in, c_out) in zip(("block5", "block6", "block7"), _pairs(12, 16, 16, 16), strict=True):
            self.add_module(name, ConvBlock(c_in, c_out, padding=1))
        self.add_module("gap", nn.AdaptiveAvgPool2d(1))
        self.add_module("final_conv", nn.Conv2d(16, 10, 1))
        self.add_module("flatten", nn.Flatten())


def _pairs(*channels: int) -> list[tuple[int, int]]:
    return list(itertools.pairwise(channels))


def make_step(
    net: nn.Module, optimizer: Any, scheduler: Any = None, forward: Callable[..., torch.Tensor] | None = None
) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """One step of the recipe, as `step(images, labels) -> (loss, gradient norm)`; `forward` may be a compiled `net`."""
    forward = forward or net

    def step(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(forward(images), labels, label_smoothing=0.1)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        return loss.detach(), grad_norm

    return step
