"""Training of a detector from an initialisation of its backbone, and what it finds.

Dimensions: B pictures of a batch, H×W pixels of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torchvision.models.detection import FasterRCNN

from pipeline.evaluation.average_precision import AveragePrecision, Detections, average_precision
from pipeline.evaluation.networks import available_device
from pipeline.evaluation.sgd import MOMENTUM, WEIGHT_DECAY
from pipeline.images.order import keyed_rng
from pipeline.images.scenes import Scene, ScenesInMemory

CLIP = 10.0
"""Largest norm of a gradient: the first proposals of a random head can be far off."""

SCENE_ORDER = 20216
"""Part of the keys of the random order of scenes."""


@dataclass(frozen=True)
class DetectorTraining:
    """How a detector is trained: SGD with momentum, a warm-up in the first epoch, then a cosine down to 0."""

    learning_rate: float
    epochs: int
    batch: int
    seed: int


def train_detector(
    model: FasterRCNN,
    scenes: ScenesInMemory,
    training: DetectorTraining,
    measure: Callable[[int, FasterRCNN], None] = lambda epoch, model: None,
) -> bool:
    """Train a detector in place, on a GPU where there is one, and return whether all of its losses were finite.

    It ends at the first loss that is not.

    Args:
        scenes: those that it is trained on.
        measure: called after each epoch with its number, from 1; it may leave the detector in evaluation mode.
    """
    device = available_device()
    model.to(device)
    optimizer = SGD(
        [p for p in model.parameters() if p.requires_grad],
        training.learning_rate,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    )
    per_epoch = math.ceil(len(scenes) / training.batch)
    steps = training.epochs * per_epoch
    schedule = LambdaLR(optimizer, lambda step: _rate(step, per_epoch, steps))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)  # of the boxes that losses are computed for
        for epoch in range(training.epochs):
            order = keyed_rng(SCENE_ORDER, training.seed, epoch).permutation(len(scenes))
            for first in range(0, len(scenes), training.batch):
                batch = [scenes[int(index)] for index in order[first : first + training.batch]]
                losses = model.train()(
                    [as_image(scene, device) for scene in batch], [as_target(scene, device) for scene in batch]
                )
                loss = sum(losses.values())
                if not torch.isfinite(loss):
                    return False
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                schedule.step()
            measure(epoch + 1, model)
    return True


def _rate(step: int, per_epoch: int, steps: int) -> float:
    """Return the factor of the learning rate: a line up over the first epoch, a cosine down over all steps."""
    return min(1.0, (step + 1) / per_epoch) * 0.5 * (1 + math.cos(math.pi * step / steps))


def as_image(scene: Scene, device: torch.device) -> Tensor:
    """Return the picture (3, H, W) of a scene, 0 to 1."""
    return torch.from_numpy(scene.pixels.copy()).to(device).float() / 255


def as_target(scene: Scene, device: torch.device) -> dict[str, Tensor]:
    """Return the objects of a scene as torchvision wants them: class 0 is the background."""
    return {
        "boxes": torch.from_numpy(scene.boxes).to(device),
        "labels": torch.from_numpy(scene.labels).to(device) + 1,
    }


@torch.inference_mode()
def detect(model: FasterRCNN, scenes: ScenesInMemory, batch: int) -> list[Detections]:
    """Return what a detector, which is left in evaluation mode, finds in each scene."""
    model.eval()
    device = next(model.parameters()).device
    found = []
    for first in range(0, len(scenes), batch):
        images = [as_image(scenes[index], device) for index in range(first, min(first + batch, len(scenes)))]
        for result in model(images):
            boxes, labels, scores = (result[name].cpu().numpy() for name in ("boxes", "labels", "scores"))
            has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) if len(boxes) else np.zeros(0, bool)
            found.append(Detections(boxes[has_area], labels[has_area] - 1, scores[has_area]))
    return found


def precision_of(model: FasterRCNN, scenes: ScenesInMemory, batch: int) -> AveragePrecision:
    """Return the average precision of a detector on scenes."""
    found = detect(model, scenes, batch)
    return average_precision([scenes[index] for index in range(len(scenes))], found, len(scenes.classes))
