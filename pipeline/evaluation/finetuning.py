"""Few-shot training of networks from each initialisation, in tasks on the cluster.

Dimensions: B images of a batch, C channels, S image side in pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import pandas as pd
import ray
from pandera.typing import DataFrame
from torch import nn

from ghn.models.hypernetwork import Hypernetwork
from ghn.networks.network import Network
from pipeline.evaluation.budgets import steps_at_budgets
from pipeline.evaluation.cached_runs import CachedRuns, Function
from pipeline.evaluation.initialisations import Initialisation, InitialisationContext, load_body
from pipeline.evaluation.learning_rates import ChosenRate, best_rate, rate_rows, search_rates
from pipeline.evaluation.networks import available_device, fresh_module, seed_of
from pipeline.evaluation.scores import score
from pipeline.evaluation.sgd import Measure, SgdRun, classifier, train_by_sgd
from pipeline.evaluation.tables import FinetuningCurves, LearningRates
from pipeline.evaluation.targets import Target
from pipeline.images.batches import Augmentation, evaluation_batches
from pipeline.images.dataset import ImageSubset
from pipeline.images.subsets import digest
from pipeline.params import FinetuneSettings, settings_hash

EVALUATION_BATCH = 64
"""Images per batch when the accuracy is measured."""


class Competition(NamedTuple):
    """What has a learning rate of its own: an initialisation on some images of a data set."""

    dataset: str
    images_per_class: int
    initialisation: str


@dataclass(frozen=True)
class FinetuneRun:
    """One training run: `architecture` is an index in split test, `seed` counts from 0."""

    dataset: str
    images_per_class: int
    architecture: int
    initialisation: str
    learning_rate: float
    seed: int

    @property
    def competition(self) -> Competition:
        """What the run's learning rate was chosen for."""
        return Competition(self.dataset, self.images_per_class, self.initialisation)


@dataclass(frozen=True, eq=False)
class RunInputs:
    """What a run is trained with, beside the hypernetwork and the data set, which Ray shares between tasks.

    `seed` is that of the pipeline.
    """

    run: FinetuneRun
    network: Network
    initialisation: Initialisation
    settings: FinetuneSettings
    seed: int


Curve = list[tuple[int, float]]
"""Pairs of a step and the test accuracy then."""


class Finetuned(NamedTuple):
    """The results of all runs: `curves` of those with the chosen learning rates, and `rates`, all that were tried."""

    curves: DataFrame[FinetuningCurves]
    rates: DataFrame[LearningRates]


def train_all(
    networks: Sequence[Network],
    initialisations: Mapping[str, Initialisation],
    ghn: Hypernetwork,
    targets: Mapping[str, Target],
    settings: FinetuneSettings,
    seed: int,
    folder: str,
) -> Finetuned:
    """Choose a learning rate for each competition, train all runs with it, and return their results.

    Runs that an interrupted stage has left in `folder` are read from there. The others are trained on the cluster, to
    which this process must be connected.

    Args:
        networks: those that are trained; the first ones choose the learning rates.
        initialisations: by name.
        ghn: the hypernetwork, which may be for another number of classes.
        targets: by the name of their data set.
        settings: those of the stage.
        seed: of the pipeline; the seeds of the runs are functions of it.
        folder: where finished runs keep their results.
    """
    shared_ghn = ray.put(ghn.cpu())
    shared_targets = {name: ray.put(target) for name, target in targets.items()}
    digests = {name: digests_of(target) for name, target in targets.items()}

    def inputs_of(run: FinetuneRun) -> RunInputs:
        return RunInputs(run, networks[run.architecture], initialisations[run.initialisation], settings, seed)

    def name_of_run(function: Function, run: FinetuneRun) -> str:
        return name_of(function, inputs_of(run), digests[run.dataset][run.images_per_class, run.seed])

    cached: CachedRuns[FinetuneRun] = CachedRuns(
        folder,
        name_of_run,
        arguments_of=lambda run: (inputs_of(run), shared_ghn, shared_targets[run.dataset]),
        cost_of=lambda run: networks[run.architecture].summary(32, 10).flops,
    )

    def held_out_accuracies(pairs: Sequence[tuple[Competition, float]]) -> dict[tuple[Competition, float], float]:
        architectures = min(settings.tuning_architectures, len(networks))
        runs = {pair: tuning_runs(*pair, architectures) for pair in pairs}
        return cached.means(held_out_accuracy, runs, "finetune: learning rates")

    competitions = [
        Competition(dataset, number, initialisation)
        for dataset, target in targets.items()
        for number in target.shots
        for initialisation in initialisations
    ]
    tried = search_rates(competitions, settings.learning_rates, settings.learning_rate_limits, held_out_accuracies)
    chosen = {competition: best_rate(accuracies) for competition, accuracies in tried.items()}
    runs = [
        FinetuneRun(dataset, number, architecture, initialisation, rate.learning_rate, repetition)
        for (dataset, number, initialisation), rate in chosen.items()
        for architecture in range(len(networks))
        for repetition in range(settings.seeds)
    ]
    curves = cached.results(fine_tune, runs, "finetune: all seeds")
    return Finetuned(curves_table(curves, chosen), rates_table(tried))


def tuning_runs(competition: Competition, learning_rate: float, architectures: int) -> list[FinetuneRun]:
    """Return the runs whose mean accuracy on held-out images is that of a learning rate."""
    dataset, number, initialisation = competition
    return [
        FinetuneRun(dataset, number, architecture, initialisation, learning_rate, 0)
        for architecture in range(architectures)
    ]


# Tables


def curves_table(
    curves: Mapping[FinetuneRun, Curve], chosen: Mapping[Competition, ChosenRate]
) -> DataFrame[FinetuningCurves]:
    """Return a row for each run and step, in this order."""
    rows = [
        {**asdict(run), "rate_is_inside": chosen[run.competition].is_inside, "step": step, "test_top1": top1}
        for run, curve in curves.items()
        for step, top1 in curve
    ]
    return FinetuningCurves.validate(pd.DataFrame(rows))


def rates_table(tried: Mapping[Competition, Mapping[float, float]]) -> DataFrame[LearningRates]:
    """Return a row for each competition and learning rate that was tried, rates in increasing order."""
    return LearningRates.validate(pd.DataFrame(rate_rows(tried)))


# One run


def digests_of(target: Target) -> dict[tuple[int, int], str]:
    """Return a digest of the images of a run, by its number of images per class and its seed."""
    measured_on = digest(target.images, target.held_out)
    return {
        (number, repetition): settings_hash([measured_on, digest(replace(target.images, test=shots))], 24)
        for number, of_seeds in target.shots.items()
        for repetition, shots in enumerate(of_seeds)
    }


def name_of(function: Function, inputs: RunInputs, images_digest: str) -> str:
    """Return a name of a task that changes with every input of it beside the checkpoint.

    Learning rates, seeds and data sets of other runs leave it as it is.
    """
    settings = inputs.settings
    budget = (settings.steps, settings.batch, settings.evaluate_every)
    network = inputs.network.to_dict()
    return settings_hash([function.__name__, asdict(inputs.run), network, images_digest, budget, inputs.seed], 24)


def fine_tune(inputs: RunInputs, ghn: Hypernetwork, target: Target) -> Curve:
    """Train a network from an initialisation and return its test accuracy at the measured steps."""
    steps = measured_steps(inputs.settings.steps, inputs.settings.evaluate_every)
    curve: Curve = []

    def measure(step: int, module: nn.Module) -> None:
        if step in steps:
            curve.append((step, accuracy(module, target.images.test, target)))

    _train(inputs, ghn, target, measure)
    return curve


def held_out_accuracy(inputs: RunInputs, ghn: Hypernetwork, target: Target) -> float:
    """Train a network from an initialisation and return its accuracy on held-out images at the end.

    A learning rate at which training diverges has the accuracy of wrong answers.
    """
    module = _train(inputs, ghn, target)
    return accuracy(module, target.held_out, target)


def measured_steps(steps: int, every: int) -> set[int]:
    """Return the steps at which test accuracy is measured: before the first one, regularly, and at each budget."""
    return {0, *range(every, steps + 1, every), *steps_at_budgets(steps)}


def _train(inputs: RunInputs, ghn: Hypernetwork, target: Target, measure: Measure | None = None) -> nn.Module:
    """Train a network by SGD and return it; `measure` is that of `train_by_sgd`.

    Every random number is a function of (seed, run.seed, run.architecture). So all initialisations start with the same
    classification layer and have the same images and dropout masks.
    """
    run, settings = inputs.run, inputs.settings
    images = replace(target.images, train=target.shots[run.images_per_class][run.seed])
    key = seed_of(inputs.seed, "finetune", run.seed, run.architecture)
    size = images.test.side
    module = fresh_module(inputs.network, size, len(images.classes), key)
    # For as many classes as the hypernetwork was trained with: the classification layer is not loaded.
    context = InitialisationContext(ghn.cpu(), size, ghn.config.num_classes, key)
    load_body(module, inputs.initialisation, inputs.network, context)
    sgd = SgdRun(run.learning_rate, settings.steps, settings.batch, key, Augmentation())
    train_by_sgd(module, images, sgd, measure)
    return module


def accuracy(module: nn.Module, subset: ImageSubset, target: Target) -> float:
    """Return the share of a subset's images that the module classifies correctly."""
    batches = evaluation_batches(subset, target.images, EVALUATION_BATCH)
    return score(classifier(module), batches, available_device()).top1
