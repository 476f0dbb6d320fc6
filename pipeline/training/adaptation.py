"""Adaptation: a trained hypernetwork is itself trained on a few images of a new data set, in one process.

All its weights are trained, with new rows of classes. Images that are held out decide which step's weights are kept.
The hypernetwork then predicts parameters for the new data set, of networks that it has never seen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import nn

from ghn.deepnets1m.architecture import Architecture
from ghn.deepnets1m.sampling import sample_architecture, samples
from ghn.models.hypernetwork import Hypernetwork
from ghn.models.new_classes import with_new_classes
from ghn.training.meta_batch import MetaBatchSettings, TrainingSet, sample_meta_batch
from ghn.training.schedules import cosine, warm_up
from ghn.training.step import MicroBatch, StepSettings, Stopwatch, accumulate_micro_batch
from pipeline.errors import UserError
from pipeline.images.batches import Augmentation, training_batch
from pipeline.images.dataset import Images
from pipeline.images.subsets import few_and_held_out
from pipeline.training.validation import Validation

Model = TypeVar("Model", bound=nn.Module)

CLIP = 5.0
"""Largest norm of the whole gradient, as in training."""

BATCH = 64
"""Most images of a step, and of a measurement."""

WIDTH, HEAD_WIDTH = 16, 64
"""At which networks are measured."""

META_BATCH = MetaBatchSettings(size=4, widths=(16, 24, 32, 64), head_widths=(64, 128), max_nodes=2200, norm_free=0.15)
"""Of a step, where no settings say it: as the default settings train."""

TRAINING_ARCHITECTURES, VALIDATED_ON, MEASURED = 1000, 8, 10
"""How many architectures meta-batches are sampled from, choose the weights, and are measured at the end."""

HELD_OUT, VALIDATIONS = 500, 8
"""Images that choose the weights, at most, and how often they are measured."""


class NoFiniteLossError(UserError):
    """All architectures of all steps had a loss or gradient that was not finite."""


@dataclass(frozen=True)
class AdaptationSettings:
    """How a hypernetwork is adapted.

    Attributes:
        steps: optimisation steps; the learning rate falls to 0 along a cosine over them.
        learning_rate: of Adam, after a warm-up over a tenth of the steps.
        batch: images a step, if there are as many.
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
class AdaptedHypernetwork:
    """The weights that did best on held-out images.

    Attributes:
        ghn: the hypernetwork with them.
        step: the number of steps after which it had them.
        curve: pairs of a step and the mean top-1 on held-out images then, 0 to 1.
    """

    ghn: Hypernetwork
    step: int
    curve: list[tuple[int, float]]


def adapt_to_few_images(
    before: Hypernetwork,
    images: Images,
    per_class: int,
    steps: int,
    learning_rate: float,
    seed: int,
    count_step: Callable[[], object],
) -> AdaptedHypernetwork:
    """Return a trained hypernetwork that is adapted to a few images of each class, as `ghn adapt` does.

    Args:
        images: the data set, of the size that the hypernetwork was trained on.
        per_class: training images of each class that it is adapted to; at most `HELD_OUT` others choose the weights.
        steps: optimisation steps.
        learning_rate: of Adam.
        seed: of all that is sampled: images, new rows of classes, architectures.
        count_step: called after each step.

    Raises:
        UserError: a class has too few images, or no loss was finite.
    """
    few, held_out = few_and_held_out(images, per_class, HELD_OUT, seed)
    images = replace(images, train=few)
    settings = AdaptationSettings(
        steps=steps,
        learning_rate=learning_rate,
        batch=BATCH,
        validate_every=max(1, steps // VALIDATIONS),
        meta_batch=META_BATCH,
        augmentation=Augmentation(shift=1),
        clip=CLIP,
        seed=seed,
    )
    return adapt_hypernetwork(
        with_new_classes(before, len(images.classes), seed),
        sampled_training_set(seed, TRAINING_ARCHITECTURES),
        images,
        Validation(_sampled(seed, "val", VALIDATED_ON), held_out, images, BATCH),
        settings,
        count_step,
    )


def accuracies_of_unseen(ghn: Hypernetwork, images: Images, seed: int) -> list[float]:
    """Return top-1 on test images, 0 to 1, of networks that no training has seen."""
    return [
        Validation([network], images.test, images, BATCH).measure(ghn, 0, 1)["val_top1"]
        for network in _sampled(seed, "test", MEASURED)
    ]


def adapt_hypernetwork(
    ghn: Hypernetwork,
    training_set: TrainingSet,
    images: Images,
    validation: Validation,
    settings: AdaptationSettings,
    count_step: Callable[[], object] = lambda: None,
) -> AdaptedHypernetwork:
    """Train all weights of a hypernetwork in place, and return the ones that did best on held-out images.

    The result is a function of the arguments: of the weights, the images and the settings.

    Args:
        ghn: with as many classes as the images have.
        training_set: the architectures whose parameters are predicted.
        images: those of the train part are trained on.
        validation: the networks and the images that are held out.
        count_step: called after each step.

    Raises:
        NoFiniteLossError: no step could be taken.
    """

    def held_out_top1() -> float:
        return validation.measure(ghn, 0, 1)["val_top1"]

    kept = learn(ghn, lambda step: (ghn, images), held_out_top1, training_set, settings, count_step)
    return AdaptedHypernetwork(kept.model.eval(), kept.step, kept.curve)


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
    settings: AdaptationSettings,
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
    watch = Stopwatch(device)
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
        scores = accumulate_micro_batch(ghn, micro_batch, x_BCSS, labels_B.to(device), step, step_settings, watch)
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
    model: nn.Module, optimizer: torch.optim.Optimizer, settings: AdaptationSettings, step: int, finite: int
) -> None:
    """Take a step with the mean gradient of the architectures whose loss and gradient were finite."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    torch._foreach_div_(gradients, finite)
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    rate = cosine(settings.learning_rate, step, settings.steps) * warm_up(step, settings.steps // 10)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _sampled(seed: int, split: str, count: int) -> list[Architecture]:
    return [sample_architecture(seed, split, index).with_width(WIDTH, HEAD_WIDTH) for index in range(count)]


def sampled_training_set(seed: int, count: int) -> TrainingSet:
    """Return the first architectures of split train of a seed, where none are stored."""
    drawn = [next(samples(seed, "train", index)) for index in range(count)]
    architectures = [sample.architecture for sample in drawn]
    return TrainingSet(
        nodes=np.array([sample.summary.nodes for sample in drawn]),
        parameters=np.array([sample.summary.num_parameters for sample in drawn]),
        norm_free=np.array([architecture.norm is None for architecture in architectures]),
        read=architectures.__getitem__,
    )
