"""Scenes: pictures of several objects, with the box and the class of each, for detection.

`compose_scenes` makes them of the images of a data set, so that detection can be tried without a download.

Dimensions: N scenes, O objects of a scene, S×S pixels of a scene, H×W pixels of one from a file, D×D of an object. A
box is (left, top, right, bottom) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.images.dataset import ImageSubset
from pipeline.images.order import keyed_rng

SCENES = 20215
"""Part of the keys of the random numbers of scenes."""

OBJECTS = (2, 5)
"""Least and most objects that a composed scene is given; one that finds no free place is left out."""

OBJECT_SIZES = (0.18, 0.45)
"""Smallest and largest side of an object's image, as a share of the scene's."""

MOST_COVERED = 0.1
"""Share of a box that boxes before it may cover."""

PLACES_TRIED = 20

VISIBLE = 64
"""The brightness, 0 to 255, from which a pixel of an object's image belongs to the object."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and its objects.

    Attributes:
        pixels: uint8 (3, H, W).
        boxes: float32 (O, 4), each within the picture and not empty.
        labels: int64 (O,), from 0.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class ScenesInMemory:
    """Scenes that are in memory."""

    classes: tuple[str, ...]
    scenes: Sequence[Scene]

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Scene:
        return self.scenes[index]


def compose_scenes(objects: ImageSubset, classes: tuple[str, ...], count: int, size: int, seed: int) -> ScenesInMemory:
    """Return scenes of images of bright objects on dark ground, put at random places and sizes on textures.

    Scene i is a function of (objects, size, seed, i): more scenes begin with the same ones.

    Args:
        objects: the images, such as digits.
        classes: names by label.
        count: number of scenes.
        size: their side S, in pixels.
        seed: of all that is random.
    """
    return ScenesInMemory(classes, [compose_scene(objects, size, keyed_rng(SCENES, seed, i)) for i in range(count)])


def compose_scene(objects: ImageSubset, size: int, rng: np.random.Generator) -> Scene:
    """Return one scene; its box is that of an object's visible pixels."""
    canvas_SS3 = texture(size, rng)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for index in rng.integers(len(objects), size=rng.integers(OBJECTS[0], OBJECTS[1] + 1)):
        side = int(size * rng.uniform(*OBJECT_SIZES))
        mask_DD = np.asarray(Image.fromarray(objects.take([int(index)])[0, 0]).resize((side, side)))
        rows, columns = (np.flatnonzero((mask_DD >= VISIBLE).any(axis)) for axis in (1, 0))
        if not len(rows):
            continue
        color = rng.integers(140, 256, size=3)
        for _ in range(PLACES_TRIED):
            left, top = rng.integers(0, size - side + 1, size=2)
            box = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
            if all(covered(box, other) <= MOST_COVERED for other in boxes):
                opacity = (mask_DD / 255)[..., None]
                patch = canvas_SS3[top : top + side, left : left + side]
                patch[:] = (1 - opacity) * patch + opacity * color
                boxes.append(box)
                labels.append(int(objects.labels[index]))
                break
    pixels = np.ascontiguousarray(canvas_SS3.round().astype(np.uint8).transpose(2, 0, 1))
    return Scene(pixels, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64))


def texture(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a dark, smooth texture, float (S, S, 3), 0 to about 130: noise of a coarse, a middle and a fine grain."""
    total = np.zeros((size, size, 3))
    for grain, strength in ((3, 60), (8, 40), (24, 25)):
        noise = rng.integers(0, 256, size=(grain, grain, 3), dtype=np.uint8)
        smooth = Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
        total += strength * (np.asarray(smooth) / 255)
    return total


def covered(box: Sequence[float], other: Sequence[float]) -> float:
    """Return the share of a box's or of the other's area that both have in common, whichever is larger."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return float(width * height / min(areas))
