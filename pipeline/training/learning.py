"""Training of hypernetworks in one process, for few steps: the loop of adaptation and of conditioning.

`pipeline.training.loop` trains on a cluster, with checkpoints, and is the same to the last digit for any number of
workers; this loop is a task of a stage, which is computed again as a whole if it is lost.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn

from ghn.models.hypernetwork import Hypernetwork
from ghn.training.meta_batch import MetaBatchSettings, TrainingSet, sample_meta_batch
from ghn.training.schedules import cosine, warm_up
from ghn.training.step import MicroBatch, StepSettings, Stopwatch, accumulate_micro_batch
from pipeline.errors import UserError
from pipeline.images.batches import Augmentation, training_batch
from pipeline.images.dataset import Images

Model = TypeVar("Model", bound=nn.Module)


class NoFiniteLossError(UserError):
    """All architectures of all steps had a loss or gradient that was not finite."""


@dataclass(frozen=True)
class LearningSettings:
    """How a hypernetwork is trained.

    Attributes:
        steps: optimisation steps; the learning rate falls to 0 along a cosine over them.
        learning_rate: of Adam, after a warm-up over a tenth of the steps.
        batch: images per step, if there are as many.
        validate_every: steps between measurements on held-out images.
        meta_batch: which architectures a step samples.
        augmentation: random changes of the images.
        clip: largest norm of the whole gradient.
        seed: of all that is sampled.
    """

    steps: int
    learning_rate: float
    batch: int
    validate_every: int
    meta_batch: MetaBatchSettings
    augmentation: Augmentation
    clip: float
    seed: int


@dataclass(frozen=True, eq=False)
class KeptModel(Generic[Model]):
    """The weights of a model that did best in validation.

    Attributes:
        model: the model with them.
        step: the number of steps after which it had them.
        curve: pairs of a step and the accuracy in validation then, 0 to 1.
    """

    model: Model
    step: int
    curve: list[tuple[int, float]]


def learn(
    model: Model,
    at_step: Callable[[int], tuple[Hypernetwork, Images]],
    validate: Callable[[], float],
    training_set: TrainingSet,
    settings: LearningSettings,
    count_step: Callable[[], object] = lambda: None,
) -> KeptModel[Model]:
    """Train a model in place, and return a copy of it with the weights that did best in validation.

    Args:
        model: has the weights that are trained.
        at_step: the hypernetwork of a step, whose weights are those of the model or functions of them, and its images.
        validate: the accuracy of the model as it is.
        training_set: the architectures whose parameters are predicted.
        count_step: called after each step.

    Raises:
        NoFiniteLossError: no step could be taken.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(model.parameters(), settings.learning_rate, fused=True)
    step_settings = StepSettings(settings.seed, architecture_clip=1.0)
    best, best_step, any_finite = model, 0, False
    curve: list[tuple[int, float]] = []
    for step in range(settings.steps):
        ghn, images = at_step(step)
        meta_batch = sample_meta_batch(
            training_set, settings.meta_batch, settings.seed, step, images.test.side, len(images.classes)
        )
        micro_batch = MicroBatch.of(ghn, dict(enumerate(meta_batch)), range(len(meta_batch)))
        batch = max(2, min(settings.batch, len(images.train)))
        x_BCSS, labels_B = training_batch(images, settings.seed, step, batch, settings.augmentation)
        x_BCSS = x_BCSS.to(device, memory_format=torch.channels_last)
        optimizer.zero_grad()
        scores = accumulate_micro_batch(
            ghn, micro_batch, x_BCSS, labels_B.to(device), step, step_settings, Stopwatch(device)
        )
        if finite := sum(score.is_finite for score in scores.values()):
            any_finite = True
            _update(model, optimizer, settings, step, finite)
        if (step + 1) % settings.validate_every == 0 or step + 1 == settings.steps:
            top1 = validate()
            if not curve or top1 > max(accuracy for _, accuracy in curve):
                best, best_step = copy.deepcopy(model), step + 1
            curve.append((step + 1, top1))
        count_step()
    if not any_finite:
        raise NoFiniteLossError("no loss was finite: use a smaller learning rate")
    return KeptModel(best, best_step, curve)


def _update(
    model: nn.Module, optimizer: torch.optim.Optimizer, settings: LearningSettings, step: int, finite: int
) -> None:
    """Take a step with the mean gradient of the architectures whose loss and gradient were finite."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    torch._foreach_div_(gradients, finite)
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    rate = cosine(settings.learning_rate, step, settings.steps) * warm_up(step, settings.steps // 10)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
