"""Few-shot training of networks from each initialisation, in tasks on the cluster.

Dimensions: B images of a batch, C channels, S image side in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TypedDict

import numpy as np
import pandas as pd
import ray
import torch
from pandera.typing import DataFrame
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from ghn.models.hypernetwork import Hypernetwork
from ghn.networks.network import Network
from pipeline.cluster.cached_tasks import read_task_cache, run_cached_tasks
from pipeline.cluster.ray_cluster import capacity
from pipeline.errors import UserError
from pipeline.evaluation.initialisations import Initialisation, InitialisationContext, load_body
from pipeline.evaluation.networks import GPU_SHARE, fresh_module, seed_of
from pipeline.evaluation.scores import score
from pipeline.evaluation.tables import FinetuningCurves
from pipeline.images.batches import Augmentation, evaluation_batches, training_batch
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.subsets import digest, few_shot, in_memory, without_train_part
from pipeline.params import FinetuneSettings, settings_hash

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
HELD_OUT_IMAGES = 500
"""Most images that choose the learning rate."""

EVALUATION_BATCH = 64
"""Images per batch when the accuracy is measured."""


@dataclass(frozen=True)
class FinetuneRun:
    """One training run: `architecture` is an index in split test, `seed` counts from 0."""

    dataset: str
    architecture: int
    initialisation: str
    learning_rate: float
    seed: int


class FinetuneResult(TypedDict):
    """The result of a run, as JSON.

    `curve` has pairs of a step and the test accuracy then. `held_out` is the last accuracy on held-out images.
    """

    curve: list[tuple[int, float]]
    held_out: float


@dataclass(frozen=True, eq=False)
class Target:
    """A data set to transfer to.

    `shots` are the training images of each seed, `held_out` those that choose the learning rate. `images` has the test
    part; its train part is empty.
    """

    images: Images
    shots: tuple[ImageSubset, ...]
    held_out: ImageSubset


def target_of(images: Images, images_per_class: int, seeds: int, seed: int) -> Target:
    """Return the data set with `images_per_class` training images sampled for each of the seeds, in memory.

    Raises:
        UserError: a class has no training image left to hold out.
    """
    labels, counts = np.unique(images.train.labels, return_counts=True)
    if counts.min() <= images_per_class:
        smallest = images.classes[labels[counts.argmin()]]
        raise UserError(
            f"finetune.images_per_class = {images_per_class}: must be less than {counts.min()}, because some "
            f"are held out,\nand class {smallest} of {images.name} has {counts.min()} training images"
        )
    shots = [few_shot(images.train.labels, images_per_class, seed_of(seed, "shots", s)) for s in range(seeds)]
    others = np.setdiff1d(np.arange(len(images.train)), shots[0])
    order = np.random.default_rng(seed_of(seed, "held out")).permutation(len(others))
    return Target(
        images=without_train_part(images),
        shots=tuple(in_memory(images.train, chosen) for chosen in shots),
        held_out=in_memory(images.train, np.sort(others[order[:HELD_OUT_IMAGES]])),
    )


def train_all(
    networks: Sequence[Network],
    initialisations: Mapping[str, Initialisation],
    ghn: Hypernetwork,
    targets: Mapping[str, Target],
    settings: FinetuneSettings,
    seed: int,
    folder: str,
) -> DataFrame[FinetuningCurves]:
    """Return the test accuracy during training with the chosen learning rates: a row for each run and step.

    Runs that an interrupted stage has left in `folder` are read from there. The others are trained on the cluster, to
    which this process must be connected.

    Args:
        targets: by the name of their data set.
        seed: of the pipeline; the seeds of the runs are functions of it.
        folder: where finished runs keep their results.
    """
    shared_ghn = ray.put(ghn.cpu())
    shared_targets = {name: ray.put(target) for name, target in targets.items()}
    digests = {name: digest(target.images, target.held_out, *target.shots) for name, target in targets.items()}
    finished: dict[str, FinetuneResult] = read_task_cache(folder)

    def finish(runs: Sequence[FinetuneRun], description: str) -> dict[FinetuneRun, FinetuneResult]:
        names = {run: name_of(run, networks[run.architecture], digests[run.dataset], settings, seed) for run in runs}
        tasks = {
            name: (
                run,
                networks[run.architecture],
                initialisations[run.initialisation],
                shared_ghn,
                shared_targets[run.dataset],
                settings,
                seed,
            )
            for run, name in names.items()
            if name not in finished
        }
        gpus = GPU_SHARE if capacity()["GPU"] else 0
        for name, result in run_cached_tasks(
            fine_tune, tasks, folder, description=description, unit="run", num_gpus=gpus
        ):
            finished[name] = result
        return {run: finished[name] for run, name in names.items()}

    starts = list(product(targets, range(len(networks)), initialisations))
    tuning = [FinetuneRun(*start, rate, 0) for start in starts for rate in settings.learning_rates]
    tuned = finish(tuning, "finetune: learning rates")
    rates = chosen_rates({run: result["held_out"] for run, result in tuned.items()})
    runs = [
        FinetuneRun(dataset, architecture, initialisation, rates[dataset, initialisation], repetition)
        for dataset, architecture, initialisation in starts
        for repetition in range(settings.seeds)
    ]
    trained = finish(runs, "finetune: all seeds")
    return curves_table({run: trained[run]["curve"] for run in runs})


def chosen_rates(held_out: Mapping[FinetuneRun, float]) -> dict[tuple[str, str], float]:
    """Return the learning rate of each (dataset, initialisation): the best on average over the runs given.

    Of two rates that are equally good it is the smaller one.
    """
    table = pd.DataFrame([{**asdict(run), "held_out": accuracy} for run, accuracy in held_out.items()])
    means = table.groupby(["dataset", "initialisation", "learning_rate"])["held_out"].mean()
    return {key: float(rates.idxmax()[-1]) for key, rates in means.groupby(["dataset", "initialisation"])}


def curves_table(curves: Mapping[FinetuneRun, Sequence[tuple[int, float]]]) -> DataFrame[FinetuningCurves]:
    """Return a row for each run and step, in this order."""
    rows = [{**asdict(run), "step": step, "test_top1": top1} for run, curve in curves.items() for step, top1 in curve]
    columns = ["dataset", "architecture", "initialisation", "seed", "learning_rate", "step", "test_top1"]
    return FinetuningCurves.validate(pd.DataFrame(rows)[columns])


def name_of(run: FinetuneRun, network: Network, target_digest: str, settings: FinetuneSettings, seed: int) -> str:
    """Return a name that changes with every input of a run beside the checkpoint.

    Learning rates, seeds and data sets of other runs leave it as it is.
    """
    budget = (settings.steps, settings.batch, settings.evaluate_every)
    return settings_hash([asdict(run), network.to_dict(), target_digest, budget, seed], 24)


def fine_tune(
    run: FinetuneRun,
    network: Network,
    initialisation: Initialisation,
    ghn: Hypernetwork,
    target: Target,
    settings: FinetuneSettings,
    seed: int,
) -> FinetuneResult:
    """Train a network from an initialisation by SGD and return its test accuracy on the way.

    Every random number is a function of (seed, run.seed, run.architecture). So all initialisations start with the same
    classification layer and have the same images and dropout masks.
    """
    images = replace(target.images, train=target.shots[run.seed])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    key = seed_of(seed, "finetune", run.seed, run.architecture)
    size = images.test.side
    module = fresh_module(network, size, len(images.classes), key)
    # For as many classes as the hypernetwork was trained with: the classification layer is not loaded.
    load_body(module, initialisation, network, InitialisationContext(ghn.cpu(), size, ghn.config.num_classes, key))
    module.to(device)
    optimizer = SGD(module.parameters(), run.learning_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = CosineAnnealingLR(optimizer, T_max=settings.steps)
    batch = min(settings.batch, len(images.train))
    curve = [(0, accuracy(module, images.test, images, device))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key)  # of dropout, whose masks are sampled on the CPU
        for step in range(settings.steps):
            x_BCSS, labels_B = training_batch(images, key, step, batch, Augmentation())
            loss = F.cross_entropy(module.train()(x_BCSS.to(device)), labels_B.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % settings.evaluate_every == 0 or step + 1 == settings.steps:
                curve.append((step + 1, accuracy(module, images.test, images, device)))
    return FinetuneResult(curve=curve, held_out=accuracy(module, target.held_out, images, device))


def accuracy(module: nn.Module, subset: ImageSubset, images: Images, device: torch.device) -> float:
    """Return the share of a subset's images that the module classifies correctly."""
    return score(module.eval(), evaluation_batches(subset, images, EVALUATION_BATCH), device).top1
