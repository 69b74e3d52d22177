"""The original's augmentation: torchvision's RandomRotation and RandomAffine as they treat a PIL image."""

import random

import numpy as np
from PIL import Image

from benchmarks.speed.suite import Work


def warp(pixels: np.ndarray) -> np.ndarray:
    """`RandomRotation(18)`, then `RandomAffine(0, translate=(0.1, 0.1), scale=(0.8, 1.2))`, of one uint8 image.

    https://github.com/pytorch/vision/blob/main/torchvision/transforms/transforms.py
    """
    image = Image.fromarray(pixels)
    image = image.rotate(random.uniform(-18, 18), Image.Resampling.NEAREST, fillcolor=0)
    width, height = image.size
    across, down = (round(random.uniform(-0.1 * side, 0.1 * side)) for side in image.size)
    zoom = 1 / random.uniform(0.8, 1.2)
    inverse = zoom, 0, width / 2 - zoom * (width / 2 + across), 0, zoom, height / 2 - zoom * (height / 2 + down)
    return np.asarray(
        image.transform(image.size, Image.Transform.AFFINE, inverse, Image.Resampling.NEAREST, fillcolor=0)
    )


def augmentation(name: str) -> dict[str, Work]:
    """One image after the other, on the host."""
    images = np.random.RandomState(0).randint(0, 256, (124, 28, 28)).astype(np.uint8)
    return {name: Work(lambda: [warp(image) for image in images], 124)}
