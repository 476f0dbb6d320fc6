"""Adaptation: a trained hypernetwork is itself trained on a few images of a new data set, in one process.

All its weights are trained, with new rows of classes. Images that are held out decide which step's weights are kept.
The hypernetwork then predicts parameters for the new data set, of networks that it has never seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ghn.deepnets1m.architecture import Architecture
from ghn.deepnets1m.sampling import sample_architecture, samples
from ghn.models.hypernetwork import Hypernetwork
from ghn.models.new_classes import with_new_classes
from ghn.training.meta_batch import MetaBatchSettings, TrainingSet
from pipeline.images.batches import Augmentation
from pipeline.images.dataset import Images
from pipeline.images.subsets import few_and_held_out
from pipeline.training.learning import KeptModel, LearningSettings, learn
from pipeline.training.validation import Validation

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


def adapt_to_few_images(
    before: Hypernetwork,
    images: Images,
    per_class: int,
    steps: int,
    learning_rate: float,
    seed: int,
    count_step: Callable[[], object],
) -> KeptModel[Hypernetwork]:
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
    settings = LearningSettings(
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
    networks = _sampled(seed, "test", MEASURED)
    return Validation(networks, images.test, images, BATCH).top1_of_each(ghn, images.test)


def adapt_hypernetwork(
    ghn: Hypernetwork,
    training_set: TrainingSet,
    images: Images,
    validation: Validation,
    settings: LearningSettings,
    count_step: Callable[[], object] = lambda: None,
) -> KeptModel[Hypernetwork]:
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
    kept = learn(ghn, lambda step: (ghn, images), lambda: validation.top1(ghn), training_set, settings, count_step)
    kept.model.eval()
    return kept


def _sampled(seed: int, split: str, count: int) -> list[Architecture]:
    return [sample_architecture(seed, split, index).with_width(WIDTH, HEAD_WIDTH) for index in range(count)]


def sampled_training_set(seed: int, count: int) -> TrainingSet:
    """Return the first architectures of split train of a seed, where none are stored."""
    sampled = [next(samples(seed, "train", index)) for index in range(count)]
    architectures = [sample.architecture for sample in sampled]
    return TrainingSet(
        nodes=np.array([sample.summary.nodes for sample in sampled]),
        parameters=np.array([sample.summary.num_parameters for sample in sampled]),
        norm_free=np.array([architecture.norm is None for architecture in architectures]),
        read=architectures.__getitem__,
    )
