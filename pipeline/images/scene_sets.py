"""The scenes that detectors are trained and measured on, in memory: composed ones, or pictures from files.

Dimensions: S pixels of the longest side that pictures are scaled to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.errors import UserError
from pipeline.images.load import load_cached_images
from pipeline.images.order import keyed_rng
from pipeline.images.scene_folders import ScenesInFiles, find_coco, find_penn_fudan
from pipeline.images.scenes import SCENES, Scene, ScenesInMemory, compose_scenes
from pipeline.params import DetectSettings, settings_hash
from pipeline.storage.paths import image_cache
from pipeline.workspace import from_workspace

SCENES_FORMAT = 1
"""Part of the digest of scenes: raise it when the same settings would give other scenes."""

OBJECT_SET, OBJECT_SIDE = "mnist_5k", 28
"""The data set whose images composed scenes are made of, and their side in pixels."""

FOLDERS = {"penn_fudan": find_penn_fudan, "coco": find_coco}


@dataclass(frozen=True, eq=False)
class DetectionScenes:
    """Scenes to train on, to choose learning rates, and to measure.

    Attributes:
        mean, std: of the channels of the training scenes, on a scale of 0..1.
        digest: changes with every scene.
    """

    train: ScenesInMemory
    held_out: ScenesInMemory
    test: ScenesInMemory
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    digest: str


def load_scenes(settings: DetectSettings, storage: str, seed: int) -> DetectionScenes:
    """Return the scenes that the settings name.

    Raises:
        UserError: the folder is missing or not in the format, or has too few pictures.
    """
    held_out = max(1, round(settings.held_out * settings.images))
    train, test, source = _composed(settings, storage, seed) if settings.dataset == "scenes" else _read(settings, seed)
    first, last = train.scenes[: settings.images - held_out], train.scenes[settings.images - held_out :]
    mean, std = channel_statistics(first)
    identity = [SCENES_FORMAT, source, settings.size, settings.images, settings.test_images, held_out, seed]
    return DetectionScenes(
        ScenesInMemory(train.classes, first),
        ScenesInMemory(train.classes, last),
        test,
        mean,
        std,
        settings_hash(identity, 24),
    )


def find_scenes(settings: DetectSettings) -> ScenesInFiles | None:
    """Return the scenes of the settings' folder, without decoding a picture; None for composed ones.

    Raises:
        UserError: the folder is missing or not in the format, or has too few pictures.
    """
    if settings.dataset == "scenes":
        return None
    folder = from_workspace(settings.folder or "")
    if settings.folder is None or not folder.is_dir():
        raise UserError(f"detect.folder = {settings.folder}: must be a folder, where {settings.dataset} lies")
    found = FOLDERS[settings.dataset](Path(folder))
    wanted = settings.images + settings.test_images
    if len(found) < wanted:
        raise UserError(
            f"detect.images + detect.test_images = {wanted}: must be at most {len(found)}, the pictures of {folder}"
        )
    return found


def _composed(settings: DetectSettings, storage: str, seed: int) -> tuple[ScenesInMemory, ScenesInMemory, str]:
    images = load_cached_images(OBJECT_SET, OBJECT_SIDE, image_cache(storage))
    train = compose_scenes(images.train, images.classes, settings.images, settings.size, seed)
    test = compose_scenes(images.test, images.classes, settings.test_images, settings.size, seed + 1)
    return train, test, images.settings_hash


def _read(settings: DetectSettings, seed: int) -> tuple[ScenesInMemory, ScenesInMemory, str]:
    found = find_scenes(settings)
    assert found is not None
    order = keyed_rng(SCENES, seed).permutation(len(found))[: settings.images + settings.test_images]
    scenes = [scaled(found[int(index)], settings.size) for index in order]
    source = settings_hash(
        [
            [path.name, path.stat().st_size, boxes.tolist(), labels.tolist()]
            for path, boxes, labels in zip(found.pictures, found.boxes, found.labels, strict=True)
        ]
    )
    train, test = scenes[: settings.images], scenes[settings.images :]
    return ScenesInMemory(found.classes, train), ScenesInMemory(found.classes, test), source


def scaled(scene: Scene, size: int) -> Scene:
    """Return a scene whose longest side has `size` pixels."""
    height, width = scene.pixels.shape[1:]
    factor = size / max(height, width)
    sides = max(1, round(width * factor)), max(1, round(height * factor))
    picture = Image.fromarray(scene.pixels.transpose(1, 2, 0)).resize(sides, Image.Resampling.BILINEAR)
    pixels = np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))
    ratios = np.array([sides[0] / width, sides[1] / height] * 2, np.float32)
    return Scene(pixels, scene.boxes * ratios, scene.labels)


def channel_statistics(
    scenes: Sequence[Scene],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation of the three channels over all pixels, on a scale of 0..1."""
    sums, squares, count = np.zeros(3), np.zeros(3), 0
    for scene in scenes:
        values = scene.pixels.reshape(3, -1) / 255
        sums, squares, count = sums + values.sum(1), squares + (values**2).sum(1), count + values.shape[1]
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))
    return tuple(mean.tolist()), tuple(std.tolist())
