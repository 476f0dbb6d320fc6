"""Networks trained by SGD from random initialisation, in tasks on the cluster: the other end of the scale.

A run is one network and one budget, a number of epochs: it has a cosine schedule and a learning rate of its own. All
runs of a network begin at the parameters that initialisation `random` of stage evaluate has, and see the images in the
same order.

Learning rates are chosen for each budget by the mean accuracy of some architectures of split val on held-out images,
which no run trains on. Neither test images nor test architectures choose anything.

Dimensions: B images or texts of a batch, C channels, S image side in pixels, T tokens of a text.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.cached_runs import CachedRuns, Function
from pipeline.evaluation.learning_rates import ChosenRate, best_rate, search_rates
from pipeline.evaluation.networks import (
    Candidate,
    NetworkRow,
    available_device,
    fresh_module,
    network_row,
    seed_of,
)
from pipeline.evaluation.running_statistics import score_with_running_statistics, statistics_images
from pipeline.evaluation.scores import score
from pipeline.evaluation.sgd import MEMORY_FORMAT, SgdRun, classifier, train_by_sgd
from pipeline.evaluation.stored_sources import StoredSource, intact_size_and_checksum, write_tensors
from pipeline.images.batches import Augmentation, evaluation_batches
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.load import open_images
from pipeline.images.subsets import balanced_choice, hold_out
from pipeline.params import SgdSettings, settings_hash
from pipeline.storage.paths import source_file

log = logging.getLogger(__name__)

SOURCE_SPLIT = "train"
"""The split of the sources of nearest copies."""

NOISE = 0.08
"""Standard deviation of the noise on test images, on a scale of 0 to 1.

It is what the published property "accuracy on noisy images" has on CIFAR-10: medium severity of the corruption
benchmark of Hendrycks and Dietterich (ICLR 2019).
"""

RUNNING_STEPS = 16
"""Steps over which the training accuracy is averaged: 1,024 images of 64 a step know it to about a percent."""


@dataclass(frozen=True)
class SgdSetup:
    """What all runs of the stage share, in plain values: a task may run on another node.

    Attributes:
        images: the place of the decoded images.
        images_hash: their settings hash.
        held_out: share of the training images that are not trained on.
        augmentation: of the images that are trained on.
        batch: images per step.
        converged_at: training accuracy at which a network counts as converged.
        test_images: number of test images; None: all.
        test_batch: images per batch of an evaluation.
        storage: the place of the storage, where the tensors of sources are kept, as a worker reaches it.
        seed: of the pipeline.
    """

    images: str
    images_hash: str
    held_out: float
    augmentation: Augmentation
    batch: int
    converged_at: float
    test_images: int | None
    test_batch: int
    storage: str
    seed: int

    @property
    def settings_hash(self) -> str:
        """Digits that change with everything here that a result depends on; places do not count."""
        return settings_hash(asdict(self) | {"images": None, "storage": None})


@dataclass(frozen=True)
class TrainingRun:
    """One network, the epochs that it is trained for, the learning rate, and whether its tensors are kept."""

    candidate: Candidate
    epochs: int
    learning_rate: float
    is_kept: bool = False

    @property
    def name(self) -> str:
        """Digits that change with everything here."""
        network = self.candidate.network.to_dict()
        return settings_hash([*self.candidate.key, network, self.epochs, self.learning_rate, self.is_kept], 24)


class TrainedNetwork(NetworkRow):
    """What is measured of a run, as JSON: a row of `pipeline.evaluation.tables.SgdScores` without the learning rate."""

    epochs: int
    top1: float
    top5: float
    loss: float | None
    running_top1: float
    noisy_top1: float
    convergence_steps: int | None
    steps: int
    train_seconds: float
    seconds: float


class TrainedNetworks(NamedTuple):
    """The results of all runs.

    `rates` has the accuracy on held-out images of each learning rate that was tried, by budget in epochs.
    """

    networks: list[TrainedNetwork]
    sources: list[StoredSource]
    rates: dict[int, dict[float, float]]

    @property
    def chosen(self) -> dict[int, ChosenRate]:
        """The learning rate of each budget."""
        return {epochs: best_rate(accuracies) for epochs, accuracies in self.rates.items()}


def train_networks(
    candidates: Sequence[Candidate],
    tuning: Sequence[Candidate],
    setup: SgdSetup,
    settings: SgdSettings,
    folder: str,
) -> TrainedNetworks:
    """Choose a learning rate for each budget, train each candidate with each budget, and return what is measured.

    Runs that an interrupted stage has left in `folder` are read from there, but for those of sources whose tensors are
    missing or damaged. The others are trained on the cluster, to which this process must be connected.

    Args:
        candidates: those of split train are sources: their tensors after the largest budget are kept. One that
            diverges is none.
        tuning: the networks that choose learning rates.
        folder: where finished runs keep their results.
    """
    cached = CachedRuns(folder, _task_name, lambda run: (run, setup), _cost)

    def held_out_accuracies(pairs: Sequence[tuple[int, float]]) -> dict[tuple[int, float], float]:
        tuning_runs = {pair: [TrainingRun(candidate, *pair) for candidate in tuning] for pair in pairs}
        return cached.means(held_out_accuracy, tuning_runs, "sgd: learning rates")

    rates = search_rates(settings.epochs, settings.learning_rates, settings.learning_rate_limits, held_out_accuracies)
    chosen = {epochs: best_rate(accuracies).learning_rate for epochs, accuracies in rates.items()}
    last = settings.epochs[-1]
    runs = [
        TrainingRun(candidate, epochs, chosen[epochs], is_kept=candidate.split == SOURCE_SPLIT and epochs == last)
        for candidate in candidates
        for epochs in settings.epochs
    ]
    kept = [run for run in runs if run.is_kept]
    cached.forget(train_and_measure, [run for run in kept if find_source(run, setup) is None])
    trained = cached.results(train_and_measure, runs, "sgd: all networks")
    for run in kept:
        if trained[run]["loss"] is None:
            log.warning("architecture %d of split train has diverged: it is no source", run.candidate.index)
    sources = [_stored_source(run, setup, trained[run]) for run in kept if trained[run]["loss"] is not None]
    return TrainedNetworks([trained[run] for run in runs], sources, rates)


def _task_name(function: Function, run: TrainingRun) -> str:
    return f"{function.__name__}-{run.name}"


def _cost(run: TrainingRun) -> int:
    """Return what the time of a run grows with."""
    return run.epochs * run.candidate.network.summary(32, 10).flops


# Sources


def find_source(run: TrainingRun, setup: SgdSetup) -> tuple[int, str] | None:
    """Return the size and the checksum of the tensors that a run has kept, if they are intact."""
    return intact_size_and_checksum(setup.storage, _source_file(run, setup), setup.settings_hash)


def _stored_source(run: TrainingRun, setup: SgdSetup, trained: TrainedNetwork) -> StoredSource:
    found = find_source(run, setup)
    assert found is not None, f"{_source_file(run, setup)} was removed while the stage ran"
    size, checksum = found
    return StoredSource(
        index=run.candidate.index,
        network_hash=run.candidate.network_hash,
        file=_source_file(run, setup),
        checksum=checksum,
        size=size,
        top1=trained["top1"],
        train_seconds=trained["train_seconds"],
        images_hash=setup.images_hash,
    )


def _source_file(run: TrainingRun, setup: SgdSetup) -> str:
    return source_file(setup.settings_hash, run.name)


# One run


def held_out_accuracy(run: TrainingRun, setup: SgdSetup) -> float:
    """Train a network and return its accuracy on held-out images.

    A learning rate at which training diverges has the accuracy of wrong answers.
    """
    images, held_out = _images(setup)
    module = _fresh(run, setup, images)
    train_by_sgd(module, images, _sgd_run(run, setup, images))
    return score(classifier(module), evaluation_batches(held_out, images, setup.test_batch), available_device()).top1


def train_and_measure(run: TrainingRun, setup: SgdSetup) -> TrainedNetwork:
    """Train a network and measure it on test images: as they are, with noise, and with running statistics.

    The tensors of a source are kept in the storage first.
    """
    start = time.perf_counter()
    candidate, device = run.candidate, available_device()
    images, _ = _images(setup)
    module, sgd = _fresh(run, setup, images), _sgd_run(run, setup, images)
    program = candidate.network.program(images.test.side, len(images.classes))
    train_start = time.perf_counter()
    train_top1 = train_by_sgd(module, images, sgd)
    train_seconds = time.perf_counter() - train_start
    if run.is_kept:
        write_tensors(setup.storage, _source_file(run, setup), module.state_dict(), setup.settings_hash)
    classify = classifier(module)
    scores = score(classify, evaluation_batches(images.test, images, setup.test_batch), device)
    noisy = score(classify, with_noise(evaluation_batches(images.test, images, setup.test_batch), images), device)
    running = score_with_running_statistics(
        module, statistics_images(images.train), images, setup.test_batch, device, MEMORY_FORMAT
    )
    return TrainedNetwork(
        **network_row(candidate, program),
        epochs=run.epochs,
        top1=scores.top1,
        top5=scores.top5,
        loss=scores.loss,
        running_top1=running.top1,
        noisy_top1=noisy.top1,
        convergence_steps=convergence_step(train_top1, setup.converged_at),
        steps=sgd.steps,
        train_seconds=train_seconds,
        seconds=time.perf_counter() - start,
    )


def _fresh(run: TrainingRun, setup: SgdSetup, images: Images) -> torch.nn.Module:
    return fresh_module(run.candidate.network, images.test.side, len(images.classes), _seed(run, setup))


def _sgd_run(run: TrainingRun, setup: SgdSetup, images: Images) -> SgdRun:
    steps = max(1, round(run.epochs * len(images.train) / setup.batch))
    return SgdRun(run.learning_rate, steps, setup.batch, _seed(run, setup), setup.augmentation)


def _seed(run: TrainingRun, setup: SgdSetup) -> int:
    """Return the seed that stage evaluate gives the network's random initialisation."""
    return seed_of(setup.seed, run.candidate.split, run.candidate.index)


def _images(setup: SgdSetup) -> tuple[Images, ImageSubset]:
    return _opened(setup.images, setup.held_out, setup.test_images)


@lru_cache(maxsize=1)
def _opened(place: str, held_out_share: float, test_images: int | None) -> tuple[Images, ImageSubset]:
    """Return a data set, its train part without the held-out images, and these."""
    images, held_out = hold_out(open_images(place), held_out_share)
    if test_images is not None:
        images = replace(images, test=images.test.only(balanced_choice(images.test.labels, test_images)))
    return images, held_out


def with_noise(batches: Iterator[tuple[Tensor, Tensor]], images: Images) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of normalised images with Gaussian noise on their pixels, which stay within 0 to 1.

    Of text, the same share of the tokens that a network reads is replaced by others. All networks get the same noise.
    """
    if images.test.is_text:
        yield from _with_misread_tokens(batches, len(images.classes))
        return
    mean_C11, std_C11 = (torch.tensor(values)[:, None, None] for values in (images.mean, images.std))
    for position, (x_BCSS, labels_B) in enumerate(batches):
        noise_BCSS = torch.randn(x_BCSS.shape, generator=torch.Generator().manual_seed(seed_of("noise", position)))
        pixels_BCSS = (x_BCSS * std_C11 + mean_C11 + NOISE * noise_BCSS).clip(0, 1)
        yield (pixels_BCSS - mean_C11) / std_C11, labels_B


def _with_misread_tokens(batches: Iterator[tuple[Tensor, Tensor]], vocabulary: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of text in which a share `NOISE` of the tokens (B, T) is replaced by tokens at random."""
    for position, (tokens_BT, next_BT) in enumerate(batches):
        generator = torch.Generator().manual_seed(seed_of("noise", position))
        is_misread_BT = torch.rand(tokens_BT.shape, generator=generator) < NOISE
        others_BT = torch.randint(vocabulary, tokens_BT.shape, generator=generator)
        yield torch.where(is_misread_BT, others_BT, tokens_BT), next_BT


def convergence_step(train_top1: Sequence[float], level: float) -> int | None:
    """Return the first step at which the mean training accuracy of the last `RUNNING_STEPS` steps reaches a level.

    None if it never does. Steps count from 1.
    """
    total = np.cumsum([0.0, *train_top1])
    means = (total[RUNNING_STEPS:] - total[:-RUNNING_STEPS]) / RUNNING_STEPS
    reached = np.flatnonzero(means >= level)
    return RUNNING_STEPS + int(reached[0]) if len(reached) else None
