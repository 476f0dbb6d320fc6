"""Scenes in files as they are published: Penn-Fudan's pedestrians, and any data set in COCO's format.

Everything about the files is checked when they are found; pictures are decoded when they are asked for.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import UserError
from pipeline.images.scenes import Scene

PEDESTRIAN = "pedestrian"

COCO_ANNOTATIONS = "annotations.json"
"""The file of boxes of a folder in COCO's format, beside the folder `images`."""


@dataclass(frozen=True, eq=False)
class ScenesInFiles:
    """Scenes whose pictures are in files.

    Attributes:
        classes: names by label.
        pictures: the files.
        boxes: float32 (O, 4) of each picture: left, top, right, bottom in pixels.
        labels: int64 (O,) of each picture.
    """

    classes: tuple[str, ...]
    pictures: tuple[Path, ...]
    boxes: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Scene:
        """Return a scene.

        Raises:
            UserError: the picture cannot be decoded, or is smaller than a box of it says.
        """
        path, boxes, labels = self.pictures[index], self.boxes[index], self.labels[index]
        try:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"{path} cannot be decoded: {error}") from error
        require_within(boxes, pixels.shape[2], pixels.shape[1], str(path))
        return Scene(np.ascontiguousarray(pixels), boxes, labels)


def require_within(boxes: np.ndarray, width: int, height: int, source: str) -> None:
    """Check that boxes (O, 4) are not empty and lie within a picture of that size.

    Raises:
        UserError: one does not.
    """
    for left, top, right, bottom in boxes.tolist():
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise UserError(
                f"{source}: box ({left:g}, {top:g}) to ({right:g}, {bottom:g}) must have an area and lie within the "
                f"picture, which is {width}×{height}"
            )


# Penn-Fudan


def find_penn_fudan(folder: Path) -> ScenesInFiles:
    """Return the scenes of Penn-Fudan's folder (Wang et al., ACCV 2007), of which `Annotation/` has a file a picture.

    Its boxes count pixels from 1 and include the last one.

    Raises:
        UserError: the folder lacks a part, or a file is not as published.
    """
    annotations = sorted((folder / "Annotation").glob("*.txt"))
    if not annotations:
        raise UserError(f"{folder} has no Annotation/*.txt: must be the folder PennFudanPed as published")
    pictures, boxes, labels = [], [], []
    for file in annotations:
        text = file.read_text()
        size = re.search(r"Image size \(X x Y x C\) : (\d+) x (\d+) x \d+", text)
        if size is None:
            raise UserError(f"{file} names no image size: must be as published")
        found = re.findall(r"\(Xmin, Ymin\) - \(Xmax, Ymax\) : \((\d+), (\d+)\) - \((\d+), (\d+)\)", text)
        own = np.array(found, np.float32).reshape(-1, 4) - np.array([1, 1, 0, 0], np.float32)
        require_within(own, int(size[1]), int(size[2]), str(file))
        picture = folder / "PNGImages" / f"{file.stem}.png"
        if not picture.is_file():
            raise UserError(f"{picture} is missing, which {file.name} describes")
        pictures.append(picture)
        boxes.append(own)
        labels.append(np.zeros(len(own), np.int64))
    return ScenesInFiles((PEDESTRIAN,), tuple(pictures), tuple(boxes), tuple(labels))


# COCO


def find_coco(folder: Path) -> ScenesInFiles:
    """Return the scenes of a folder in COCO's format: `annotations.json`, and pictures below `images/`.

    Crowds, which have no single box, are left out, and so are pictures without a box. Categories may have any
    identifiers; classes are in the order of these.

    Raises:
        UserError: a file is missing or is not in the format, or a box does not lie within its picture.
    """
    path = folder / COCO_ANNOTATIONS
    if not path.is_file():
        raise UserError(f"{path} not found: a folder in COCO's format has {COCO_ANNOTATIONS} and images/")
    try:
        content = json.loads(path.read_text())
        names = {int(category["id"]): str(category["name"]) for category in content["categories"]}
        pictures = {int(picture["id"]): picture for picture in content["images"]}
        objects: dict[int, list[tuple[list[float], int]]] = {}
        for annotation in content["annotations"]:
            if not annotation.get("iscrowd", 0):
                box = [float(number) for number in annotation["bbox"]]
                objects.setdefault(int(annotation["image_id"]), []).append((box, int(annotation["category_id"])))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not in COCO's format: {type(error).__name__} {error}") from error
    label_of = {identifier: label for label, identifier in enumerate(sorted(names))}
    files, boxes, labels = [], [], []
    for identifier, own in sorted(objects.items()):
        if identifier not in pictures:
            raise UserError(f"{path}: an annotation is of image {identifier}, which is not among the images")
        if unknown := [category for _, category in own if category not in label_of]:
            raise UserError(f"{path}: an annotation has category {unknown[0]}, which is not among the categories")
        files.append(_picture_file(folder, pictures[identifier], path))
        corners = np.array([box for box, _ in own], np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        require_within(corners, int(pictures[identifier]["width"]), int(pictures[identifier]["height"]), str(files[-1]))
        boxes.append(corners)
        labels.append(np.array([label_of[category] for _, category in own], np.int64))
    if not files:
        raise UserError(f"{path} has no boxes")
    return ScenesInFiles(tuple(names[key] for key in sorted(names)), tuple(files), tuple(boxes), tuple(labels))


def _picture_file(folder: Path, picture: dict[str, Any], path: Path) -> Path:
    if not {"file_name", "width", "height"} <= picture.keys():
        raise UserError(f"{path} is not in COCO's format: an image lacks file_name, width or height")
    file = folder / "images" / str(picture["file_name"])
    if not file.is_file():
        raise UserError(f"{file} is missing, which {path.name} names")
    return file
