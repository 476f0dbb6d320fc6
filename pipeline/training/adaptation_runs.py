"""Hypernetworks that learn from few images of another data set, in tasks on the cluster.

A run begins with the trained hypernetwork, or with one from scratch, and is measured on networks that it never trained
for. Held-out images choose its learning rate and the step whose weights are kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple, TypedDict

import pandas as pd
import ray
import torch
from pandera.typing import DataFrame

from ghn.models.hypernetwork import Hypernetwork
from ghn.models.new_classes import with_new_classes
from ghn.networks.network import ScalableNetwork
from pipeline.architectures.store import ArchitectureStore, Manifest
from pipeline.evaluation.cached_runs import CachedRuns, Function
from pipeline.evaluation.finetuning import digests_of, train_all
from pipeline.evaluation.first_networks import first_networks
from pipeline.evaluation.initialisations import HEADLINE, INITIALISATIONS
from pipeline.evaluation.learning_rates import ChosenRate, best_rate, rate_rows, search_rates
from pipeline.evaluation.networks import available_device, seed_of
from pipeline.evaluation.targets import Target
from pipeline.images.batches import Augmentation
from pipeline.params import AdaptSettings, FinetuneSettings, Params, settings_hash
from pipeline.storage.paths import storage_root
from pipeline.training.adaptation import adapt_hypernetwork
from pipeline.training.adaptation_tables import ADAPTED, ALONE, SCRATCH, AdaptationRates, AdaptationScores
from pipeline.training.job import RunSettings
from pipeline.training.learning import LearningSettings, NoFiniteLossError
from pipeline.training.step_loader import meta_batch_settings, training_set_of
from pipeline.training.validation import Validation

STARTS = (ADAPTED, SCRATCH)


class Competition(NamedTuple):
    """What has a learning rate of its own: a start on some images of a data set."""

    dataset: str
    images_per_class: int
    start: str


@dataclass(frozen=True)
class AdaptRun:
    """A hypernetwork that learns from few images; `seed` counts from 0."""

    dataset: str
    images_per_class: int
    start: str
    learning_rate: float
    seed: int

    @property
    def competition(self) -> Competition:
        """What the run's learning rate was chosen for."""
        return Competition(self.dataset, self.images_per_class, self.start)


class AdaptResult(TypedDict):
    """What is measured of a run, as JSON.

    `held_out_top1` is that of the kept weights, which are those after `step` steps, `seconds` the time of all steps
    and their preparation, `test_top1` a number for each measured network.
    """

    held_out_top1: float
    step: int
    seconds: float
    test_top1: list[float]


@dataclass(frozen=True, eq=False)
class AdaptSetup:
    """What all runs of a stage have in common.

    Attributes:
        settings: those of the stage.
        learned: those by which the hypernetwork was trained; its architectures and augmentation are those of a run too.
        storage: the place of the storage, as a worker reaches it.
        manifest: the content of the manifest of all stored architectures.
        validated: the networks that choose learning rate and step.
        measured: the networks that a run is measured on.
    """

    settings: AdaptSettings
    learned: RunSettings
    storage: str
    manifest: Manifest
    validated: Sequence[ScalableNetwork]
    measured: Sequence[ScalableNetwork]

    @classmethod
    def of(cls, params: Params, store: ArchitectureStore) -> AdaptSetup:
        """Return the setup of the settings, with the first architectures of splits val and test.

        Raises:
            UserError: split test has fewer than the settings want.
        """
        validated = min(params.adapt.tuning_architectures, len(store["val"]))
        return cls(
            params.adapt,
            RunSettings.of(params),
            storage_root(params.storage),
            store.manifest,
            first_networks(store, "val", validated, params),
            first_networks(store, "test", params.adapt.architectures, params, "adapt.architectures"),
        )


class Adapted(NamedTuple):
    """The results of all runs: of those with the chosen learning rates, and all rates that were tried."""

    scores: DataFrame[AdaptationScores]
    rates: DataFrame[AdaptationRates]
    results: dict[AdaptRun, AdaptResult]


def adapt_all(setup: AdaptSetup, ghn: Hypernetwork, targets: Mapping[str, Target], folder: str) -> Adapted:
    """Choose a learning rate for each start on each set of images, train all seeds with it, and return what they do.

    Runs that an interrupted stage has left in `folder` are read from there. The others are trained on the cluster, to
    which this process must be connected.

    Args:
        ghn: the trained hypernetwork.
        targets: by the name of their data set.
        folder: where finished runs keep their results.
    """
    settings = setup.settings
    shared_ghn, shared_setup = ray.put(ghn.cpu()), ray.put(setup)
    shared_targets = {name: ray.put(target) for name, target in targets.items()}
    digests = {name: digests_of(target) for name, target in targets.items()}

    def name_of_run(function: Function, run: AdaptRun) -> str:
        images = digests[run.dataset][run.images_per_class, run.seed]
        networks = [network.to_dict() for network in (*setup.validated, *setup.measured)]
        budget = (settings.steps, settings.batch, settings.validate_every)
        learned = [setup.learned.model_dump(), setup.manifest["splits"]["train"]]
        return settings_hash([function.__name__, asdict(run), images, networks, budget, learned], 24)

    cached: CachedRuns[AdaptRun] = CachedRuns(
        folder,
        name_of_run,
        arguments_of=lambda run: (run, shared_setup, shared_ghn, shared_targets[run.dataset]),
        cost_of=lambda _: settings.steps,
    )

    def held_out_accuracies(pairs: Sequence[tuple[Competition, float]]) -> dict[tuple[Competition, float], float]:
        runs = {pair: AdaptRun(*pair[0], pair[1], seed=0) for pair in pairs}
        results = cached.results(adapt_and_measure, list(runs.values()), "adapt: learning rates")
        return {pair: results[run]["held_out_top1"] for pair, run in runs.items()}

    competitions = [
        Competition(dataset, number, start)
        for dataset, target in targets.items()
        for number in target.shots
        for start in STARTS
    ]
    tried = search_rates(competitions, settings.learning_rates, settings.learning_rate_limits, held_out_accuracies)
    chosen = {competition: best_rate(accuracies) for competition, accuracies in tried.items()}
    runs = [
        AdaptRun(*competition, rate.learning_rate, repetition)
        for competition, rate in chosen.items()
        for repetition in range(settings.seeds)
    ]
    results = cached.results(adapt_and_measure, runs, "adapt: all seeds")
    return Adapted(scores_table(results, chosen), rates_table(tried), results)


def train_alone(
    setup: AdaptSetup, settings: FinetuneSettings, ghn: Hypernetwork, targets: Mapping[str, Target], folder: str
) -> DataFrame[AdaptationScores]:
    """Return the accuracies of the measured networks when each is trained by itself, as stage finetune trains.

    Args:
        settings: those of stage finetune, but for networks, seeds and steps.
        ghn: the hypernetwork that predicts the parameters to start from.
        targets: by the name of their data set.
        folder: where finished runs keep their results.
    """
    own = setup.settings
    budget = {"architectures": own.architectures, "seeds": own.seeds, "steps": own.alone_steps}
    alone = settings.model_copy(update=budget | {"evaluate_every": own.alone_steps})
    predicted = {HEADLINE: INITIALISATIONS[HEADLINE]}
    curves = train_all(setup.measured, predicted, ghn, targets, alone, setup.learned.seed, folder).curves
    final = curves[curves["step"] == own.alone_steps].drop(columns=["initialisation", "step"])
    return AdaptationScores.validate(final.assign(start=ALONE))


def scores_table(
    results: Mapping[AdaptRun, AdaptResult], chosen: Mapping[Competition, ChosenRate]
) -> DataFrame[AdaptationScores]:
    """Return a row for each run and measured network, in this order."""
    rows = [
        {
            **asdict(run),
            "rate_is_inside": chosen[run.competition].is_inside,
            "architecture": architecture,
            "test_top1": top1,
        }
        for run, result in results.items()
        for architecture, top1 in enumerate(result["test_top1"])
    ]
    return AdaptationScores.validate(pd.DataFrame(rows))


def rates_table(tried: Mapping[Competition, Mapping[float, float]]) -> DataFrame[AdaptationRates]:
    """Return a row for each competition and learning rate that was tried, rates in increasing order."""
    return AdaptationRates.validate(pd.DataFrame(rate_rows(tried)))


# One run


def adapt_and_measure(run: AdaptRun, setup: AdaptSetup, ghn: Hypernetwork, target: Target) -> AdaptResult:
    """Train a hypernetwork on the images of a run, and measure it on networks that it never trained for.

    Every random number is a function of (settings.seed, run.seed). So all starts have the same images and networks in
    the same order. A learning rate at which training diverges has the accuracy of wrong answers.
    """
    started = time.perf_counter()
    settings, learned, device = setup.settings, setup.learned, available_device()
    images = replace(target.images, train=target.shots[run.images_per_class][run.seed])
    key = seed_of(learned.seed, "adapt", run.seed)
    begun = with_new_classes(ghn, len(images.classes), key)
    if run.start == SCRATCH:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            begun = Hypernetwork(begun.config)
    validation = Validation(setup.validated, target.held_out, images, settings.batch)
    store = ArchitectureStore(setup.storage, setup.manifest)
    try:
        adapted = adapt_hypernetwork(
            begun.to(device).train(),
            training_set_of(store["train"], learned.train.architectures),
            images,
            validation,
            LearningSettings(
                steps=settings.steps,
                learning_rate=run.learning_rate,
                batch=settings.batch,
                validate_every=settings.validate_every,
                meta_batch=meta_batch_settings(learned),
                augmentation=Augmentation(learned.images.shift, learned.images.flip),
                clip=learned.train.clip,
                seed=key,
            ),
        )
    except NoFiniteLossError:
        seconds = time.perf_counter() - started
        return AdaptResult(held_out_top1=0.0, step=0, seconds=seconds, test_top1=[0.0] * len(setup.measured))
    seconds = time.perf_counter() - started
    return AdaptResult(
        held_out_top1=dict(adapted.curve)[adapted.step],
        step=adapted.step,
        seconds=seconds,
        test_top1=replace(validation, architectures=setup.measured).top1_of_each(adapted.model, images.test),
    )
