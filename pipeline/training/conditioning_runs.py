"""One hypernetwork for several data sets, and one for each of them, in tasks on the cluster.

The one for several is told by statistics of a few images which data set it predicts for, also for data sets that it
never learned from (`ghn.models.conditioned`). All are measured on networks that they never trained for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypedDict

import pandas as pd
import ray
import torch
from pandera.typing import DataFrame

from ghn.models.conditioned import ConditionedHypernetwork
from ghn.models.config import GHNConfig
from ghn.models.hypernetwork import Hypernetwork
from ghn.networks.network import ScalableNetwork
from ghn.training.meta_batch import TrainingSet
from pipeline.architectures.store import ArchitectureStore, Manifest
from pipeline.evaluation.cached_runs import CachedRuns, Function
from pipeline.evaluation.networks import available_device, seed_of
from pipeline.images.batches import Augmentation
from pipeline.images.class_statistics import COUNT, class_statistics
from pipeline.images.dataset import Images
from pipeline.images.subsets import balanced_choice, hold_out, in_memory
from pipeline.params import ConditionSettings, Params, settings_hash
from pipeline.storage.paths import storage_root
from pipeline.training.adaptation import adapt_hypernetwork
from pipeline.training.conditioning_tables import SINGLE, TOGETHER, ConditioningScores
from pipeline.training.job import RunSettings
from pipeline.training.learning import LearningSettings, Model, learn
from pipeline.training.step_loader import meta_batch_settings, training_set_of
from pipeline.training.validation import Validation

HELD_OUT, MOST_HELD_OUT = 0.1, 200
"""Share of the training images of a data set that choose the step, and how many at most."""

CONDITION = 20218
"""Part of the keys of the statistics that measure, so that their images are chosen apart from those of the steps."""


@dataclass(frozen=True)
class ConditionRun:
    """A hypernetwork that learns from one data set or from several; `seed` counts from 0."""

    datasets: tuple[str, ...]
    seed: int


class ConditionResult(TypedDict):
    """What is measured of a run, as JSON.

    `step` is the one whose weights are kept, `seconds` the time of the training, `test_top1` has for each data set a
    number for each measured network.
    """

    step: int
    seconds: float
    test_top1: dict[str, list[float]]


@dataclass(frozen=True, eq=False)
class LearnedSet:
    """A data set to learn from, in memory: its train part without what is held out, and what is held out."""

    images: Images
    validation: Validation


@dataclass(frozen=True, eq=False)
class ConditionSetup:
    """What all runs of a stage have in common.

    Attributes:
        settings: those of the stage.
        learned: those of training, of which architectures, augmentation and the hypernetwork are taken.
        storage: the place of the storage, as a worker reaches it.
        manifest: the content of the manifest of architectures.
        measured: the networks that a run is measured on.
        sets: the data sets by name.
    """

    settings: ConditionSettings
    learned: RunSettings
    storage: str
    manifest: Manifest
    measured: Sequence[ScalableNetwork]
    sets: Mapping[str, LearnedSet]

    @classmethod
    def of(
        cls,
        params: Params,
        store: ArchitectureStore,
        images: Mapping[str, Images],
        validated: Sequence[ScalableNetwork],
        measured: Sequence[ScalableNetwork],
    ) -> ConditionSetup:
        """Return the setup of the settings.

        Args:
            images: all data sets by name.
            validated: the networks that choose the step.
            measured: the networks that a run is measured on.
        """
        sets = {name: learned_set(own, validated, params.condition.batch) for name, own in images.items()}
        return cls(
            params.condition, RunSettings.of(params), storage_root(params.storage), store.manifest, measured, sets
        )


def learned_set(images: Images, validated: Sequence[ScalableNetwork], batch: int) -> LearnedSet:
    """Return a data set in memory, with a part of its train part held out."""
    rest, held_out = hold_out(images, HELD_OUT)
    few = held_out.only(balanced_choice(held_out.labels, MOST_HELD_OUT))
    own = replace(images, train=in_memory(rest.train), test=in_memory(images.test))
    return LearnedSet(own, Validation(validated, in_memory(few), own, batch))


def condition_all(setup: ConditionSetup, folder: str) -> dict[ConditionRun, ConditionResult]:
    """Train one hypernetwork for all learned data sets and one for each of them, with all seeds.

    Runs that an interrupted stage has left in `folder` are read from there. The others are trained on the cluster, to
    which this process must be connected.
    """
    settings, shared = setup.settings, ray.put(setup)

    def name_of_run(function: Function, run: ConditionRun) -> str:
        sets = [setup.sets[name].images.settings_hash for name in (*settings.datasets, *settings.unseen)]
        networks = [network.to_dict() for network in setup.measured]
        learned = [setup.learned.model_dump(), setup.manifest["splits"]["train"], setup.manifest["splits"]["val"]]
        own = settings.model_dump(exclude={"seeds", "datasets", "unseen"})
        return settings_hash([function.__name__, asdict(run), sets, networks, learned, own], 24)

    cached: CachedRuns[ConditionRun] = CachedRuns(
        folder, name_of_run, arguments_of=lambda run: (run, shared), cost_of=lambda run: len(run.datasets)
    )
    runs = [
        ConditionRun(datasets, seed)
        for datasets in (tuple(settings.datasets), *((name,) for name in settings.datasets))
        for seed in range(settings.seeds)
    ]
    return cached.results(learn_and_measure, runs, "condition")


def scores_table(results: Mapping[ConditionRun, ConditionResult]) -> DataFrame[ConditioningScores]:
    """Return a row for each run, data set that it is measured on, and network."""
    rows = [
        {
            "dataset": dataset,
            "hypernetwork": TOGETHER if len(run.datasets) > 1 else SINGLE,
            "is_learned": dataset in run.datasets,
            "seed": run.seed,
            "architecture": architecture,
            "test_top1": top1,
        }
        for run, result in results.items()
        for dataset, of_set in result["test_top1"].items()
        for architecture, top1 in enumerate(of_set)
    ]
    return ConditioningScores.validate(pd.DataFrame(rows))


# One run


def learn_and_measure(run: ConditionRun, setup: ConditionSetup) -> ConditionResult:
    """Train a hypernetwork on the data sets of a run, and measure it on networks that it never trained for.

    One that learns from several data sets takes them in turn, and is measured on the unseen ones too. Every random
    number is a function of (seed, run.seed).
    """
    started = time.perf_counter()
    learned = setup.learned
    key = seed_of(learned.seed, "condition", run.seed)
    store = ArchitectureStore(setup.storage, setup.manifest)
    training_set = training_set_of(store["train"], learned.train.architectures)
    train = _together if len(run.datasets) > 1 else _alone
    step, ghns = train(run, setup, training_set, key)
    return ConditionResult(
        step=step,
        seconds=time.perf_counter() - started,
        test_top1={name: _tested(ghn, setup.sets[name], setup.measured) for name, ghn in ghns.items()},
    )


def _alone(
    run: ConditionRun, setup: ConditionSetup, training_set: TrainingSet, key: int
) -> tuple[int, dict[str, Hypernetwork]]:
    """Return the step that is kept and the hypernetwork of one data set, by its name."""
    (name,) = run.datasets
    own = setup.sets[name]
    ghn = _seeded(lambda: Hypernetwork(_config(setup, own.images)), key)
    adapted = adapt_hypernetwork(ghn, training_set, own.images, own.validation, _learning(run, setup, key))
    return adapted.step, {name: adapted.model}


def _together(
    run: ConditionRun, setup: ConditionSetup, training_set: TrainingSet, key: int
) -> tuple[int, dict[str, Hypernetwork]]:
    """Return the step that is kept and the hypernetworks of all data sets, also of the unseen ones, by name."""
    per_class = setup.settings.images_per_class
    sets = [setup.sets[name] for name in run.datasets]
    model = _seeded(lambda: ConditionedHypernetwork(_config(setup, sets[0].images), COUNT), key)
    device = next(model.parameters()).device

    def at_step(step: int) -> tuple[Hypernetwork, Images]:
        images = sets[step % len(sets)].images
        return model.for_statistics(class_statistics(images, per_class, key, step).to(device)), images

    def mean_top1() -> float:
        accuracies = [one.validation.top1(specialised(model, one.images, per_class, key)) for one in sets]
        return sum(accuracies) / len(sets)

    kept = learn(model, at_step, mean_top1, training_set, _learning(run, setup, key))
    names = (*run.datasets, *setup.settings.unseen)
    return kept.step, {name: specialised(kept.model, setup.sets[name].images, per_class, key) for name in names}


def _config(setup: ConditionSetup, images: Images) -> GHNConfig:
    return setup.learned.hypernetwork.config(len(images.classes), images.test.side)


def _seeded(make: Callable[[], Model], key: int) -> Model:
    """Return a model whose initial weights are a function of the key, on the device where it is trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key)
        model = make()
    return model.to(available_device())


def _learning(run: ConditionRun, setup: ConditionSetup, key: int) -> LearningSettings:
    """Return how a run is trained: with as many steps on each of its data sets as another run has on one."""
    settings, learned = setup.settings, setup.learned
    return LearningSettings(
        steps=settings.steps * len(run.datasets),
        learning_rate=settings.learning_rate,
        batch=settings.batch,
        validate_every=settings.validate_every * len(run.datasets),
        meta_batch=meta_batch_settings(learned),
        augmentation=Augmentation(learned.images.shift, learned.images.flip),
        clip=learned.train.clip,
        seed=key,
    )


def specialised(model: ConditionedHypernetwork, images: Images, per_class: int, seed: int) -> Hypernetwork:
    """Return the hypernetwork for a data set, by statistics of a few of its training images."""
    device = next(model.parameters()).device
    return model.specialised(class_statistics(images, per_class, CONDITION, seed).to(device))


def _tested(ghn: Hypernetwork, one: LearnedSet, networks: Sequence[ScalableNetwork]) -> list[float]:
    """Return the accuracy of each network on the test images of a data set."""
    return replace(one.validation, architectures=networks).top1_of_each(ghn, one.images.test)
