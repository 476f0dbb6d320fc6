"""Average precision of detections as COCO defines it, computed by pycocotools.

Dimensions: O objects or detections of a picture; a box is (left, top, right, bottom) in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import NamedTuple

import numpy as np

from pipeline.images.scenes import Scene


class Detections(NamedTuple):
    """What a detector finds in a picture: boxes float (O, 4), labels int (O,) from 0, scores float (O,), 0 to 1."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


class AveragePrecision(NamedTuple):
    """Mean over classes, 0 to 1: `ap` over the thresholds of overlap 0.5, 0.55, … 0.95, `ap50` at 0.5 alone."""

    ap: float
    ap50: float


def average_precision(scenes: Sequence[Scene], found: Sequence[Detections], classes: int) -> AveragePrecision:
    """Return how well detections fit the objects of the same scenes.

    Raises:
        ValueError: the numbers of scenes differ, or no scene has an object.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if len(scenes) != len(found):
        raise ValueError(f"{len(found)} detections: must be {len(scenes)}, one for each scene")
    truth = [
        {"image_id": image, "category_id": int(label), **_box(box), "iscrowd": 0}
        for image, scene in enumerate(scenes)
        for box, label in zip(scene.boxes, scene.labels, strict=True)
    ]
    if not truth:
        raise ValueError("no scene has an object")
    detections = [
        {"image_id": image, "category_id": int(label), **_box(box), "score": float(score)}
        for image, own in enumerate(found)
        for box, label, score in zip(*own, strict=True)
    ]
    with redirect_stdout(io.StringIO()):  # it prints what it does
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in range(len(scenes))],
            "categories": [{"id": label} for label in range(classes)],
            "annotations": [{"id": number, **annotation} for number, annotation in enumerate(truth, start=1)],
        }
        coco.createIndex()
        if not detections:
            return AveragePrecision(0.0, 0.0)
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50, *_ = evaluation.stats
    return AveragePrecision(float(ap), float(ap50))


def _box(box: np.ndarray) -> dict[str, object]:
    left, top, right, bottom = (float(number) for number in box)
    width, height = right - left, bottom - top
    return {"bbox": [left, top, width, height], "area": width * height}
