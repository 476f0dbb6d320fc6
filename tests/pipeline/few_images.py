"""A folder of a few images as users have it, and a small hypernetwork for other classes beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ghn import GHN, GHNConfig

CLASSES = ["bright", "dark", "striped"]


def write_images(folder: Path, per_class: int = 10) -> Path:
    """Write a folder of images for each of three classes, and return the folder of them."""
    rng = np.random.default_rng(0)
    for kind in CLASSES:
        (folder / kind).mkdir(parents=True)
        for index in range(per_class):
            picture(kind, rng).save(folder / kind / f"{index}.png")
    return folder


def picture(kind: str, rng: np.random.Generator) -> Image.Image:
    pixels = rng.integers(0, 60, size=(12, 12, 3))
    if kind == "bright":
        pixels += 180
    if kind == "striped":
        pixels[::2] += 180
    return Image.fromarray(pixels.astype(np.uint8))


def write_checkpoint(folder: Path) -> Path:
    """Write an untrained hypernetwork for ten classes, and return the folder of its checkpoint."""
    torch.manual_seed(0)
    GHN(GHNConfig(10, 8, hidden=16, kernel=5, dirac=True)).save(folder)
    return folder
