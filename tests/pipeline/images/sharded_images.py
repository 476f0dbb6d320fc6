"""Images in small shards, and comparisons of sets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.images import load
from pipeline.images import order as image_order
from pipeline.images import shards as image_shards
from pipeline.images.batches import Augmentation, evaluation_batches, training_batch
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.shards import PixelShards, write_image_shard

PLAIN = Augmentation()
FACE = 3 * 8 * 8  # bytes of an image of `faces` at 8×8 pixels, of which 160 are to train and 40 to test


def windows_of(shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make small windows, so that a small set has several."""
    for module in (load, image_order):
        monkeypatch.setattr(module, "WINDOW", shards)


def use_shards(patch: pytest.MonkeyPatch, images_of_8_pixels: int, window: int = 16) -> None:
    """Make shards as small, and windows of as many shards."""
    patch.setattr(image_shards, "SHARD_BYTES", images_of_8_pixels * FACE)
    for module in (image_shards, load, image_order):
        patch.setattr(module, "WINDOW", window)


def set_folder(cache: Path) -> Path:
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


def contents(cache: Path) -> dict[str, bytes]:
    """Return all files of the one set in a folder, by name."""
    folder = set_folder(cache)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_images(one: Images, other: Images) -> bool:
    parts = ((one.train, other.train), (one.test, other.test))
    same_parts = all(np.array_equal(a.pixels, b.pixels) and np.array_equal(a.labels, b.labels) for a, b in parts)
    return same_parts and (one.classes, one.mean, one.std) == (other.classes, other.mean, other.std)


def same_batches(one: Images, other: Images) -> bool:
    augmentation = Augmentation(shift=2, flip=True)
    training = [[training_batch(loaded, 3, step, 50, augmentation) for step in range(5)] for loaded in (one, other)]
    evaluation = [list(evaluation_batches(loaded.test, loaded, 16)) for loaded in (one, other)]
    pairs = [*zip(*training, strict=True), *zip(*evaluation, strict=True)]
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


def numbered(folder: Path, sizes: list[int], side: int = 2) -> Images:
    """Write a set in shards of these sizes whose images say which one they are, in their labels and in three bytes."""
    labels = np.arange(sum(sizes))
    channels = np.stack([labels % 256, labels // 256, 7 * labels % 256], axis=1).astype(np.uint8)
    pixels = np.broadcast_to(channels[:, :, None, None], (len(labels), 3, side, side))
    parts = np.split(pixels, np.cumsum(sizes)[:-1])
    shards = [write_image_shard(str(folder), f"train-{number:05d}.npy", part) for number, part in enumerate(parts)]
    part = ImageSubset(PixelShards(str(folder), side, shards), labels)
    return Images("numbered", "0", ("a", "b"), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), part, part)


def pictures(folder: Path, count: int, side: int = 12, kinds: tuple[str, ...] = ("cats", "dogs")) -> Path:
    random = np.random.default_rng(0)
    for name in kinds:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)
