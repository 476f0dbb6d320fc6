"""Stage `finetune`: is training on other images better started from predicted parameters than at random?

Few-shot transfer: networks are trained by SGD on n images a class of another data set. Predicted parameters
(all but the classification layer's) and random initialisation have the same budget, the same images in the
same order, the same classification layers at the start, and the same learning rates to choose from.

The learning rate is chosen for each data set and initialisation by the mean accuracy of all architectures on
held-out images, with the first seed alone. Held-out images are of the train part and not among the few shots
of that seed. The test part chooses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import ray
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from ghn.models.hypernetwork import Hypernetwork
from ghn.networks.network import Network
from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.cached_tasks import clear_task_cache, read_task_cache, run_cached_tasks, task_cache_folder
from pipeline.cluster.ray_cluster import capacity, ray_cluster
from pipeline.console import percent, print_table
from pipeline.errors import UserError
from pipeline.evaluation.networks import at_width, fresh_module, seed_of, trained_ghn
from pipeline.evaluation.scores import score
from pipeline.images.batches import Augmentation, evaluation_batches, training_batch
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.load import load_images
from pipeline.images.subsets import digest, few_shot, in_memory
from pipeline.params import FinetuneSettings, Params, settings_hash
from pipeline.results import results_folder
from pipeline.stages.evaluate import GPU_SHARE
from pipeline.storage.tables import write_csv, write_json, write_parquet
from pipeline.tracking.mlflow_runs import stage_run

INITIALISATIONS = ("predicted", "random")

FINETUNING_FORMAT = 1  # part of the settings hash: raise it whenever the same inputs would be trained differently
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
HELD_OUT = 500  # images at most that choose the learning rate
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class FinetuneRun:
    """One training run: `architecture` is an index in split test, `seed` counts from 0."""

    dataset: str
    architecture: int
    initialisation: str
    learning_rate: float
    seed: int


@dataclass(frozen=True, eq=False)
class Target:
    """A data set to transfer to.

    `shots` are the training images of each seed, `held_out` those that choose the learning rate. `images` has
    the test part; its train part is empty.
    """

    images: Images
    shots: tuple[ImageSubset, ...]
    held_out: ImageSubset


def finetune(params: Params) -> None:
    """Trains the first architectures of split test on other data sets and writes `results/finetune/`.

    Raises UserError if the checkpoint is missing or damaged, or a data set has too few images.
    """
    settings = params.finetune
    with stage_run("finetune", params.model_dump(), experiment=params.tracking.experiment) as run:
        ghn, checkpoint = trained_ghn()
        targets = {name: load_target(name, params) for name in settings.datasets}
        store = ArchitectureStore(params.storage)
        run.log_data("architectures", store.digest)
        for target in targets.values():
            run.log_data(target.images.name, target.images.settings_hash)
        if settings.architectures > len(store["test"]):
            raise UserError(
                f"finetune.architectures = {settings.architectures}: must be at most {len(store['test'])}, "
                "the number of architectures of split test"
            )
        networks = [
            at_width(store.read("test", index), params.evaluate, params.images.size)
            for index in range(settings.architectures)
        ]
        folder = task_cache_folder(params.storage, "finetuning", [FINETUNING_FORMAT, checkpoint])
        with ray_cluster(params.cluster.address, params.cluster.cpus):
            curves = train_all(networks, ghn, targets, settings, params.seed, folder)
        summary = summarise(curves, {name: len(target.images.classes) for name, target in targets.items()})

        results = results_folder("finetune")
        write_parquet(results / "curves.parquet", curves)
        write_csv(results / "summary.csv", summary)
        write_json(results / "metrics.json", metrics_of(summary))
        run.log_table(curves, "curves")
        run.log_table(summary, "summary")
        run.summary({f"{row.dataset}_{row.initialisation}_top1": row.test_top1 for row in summary.itertuples()})
    clear_task_cache(folder)
    _print_summary(summary, settings.images_per_class)


def load_target(dataset: str, params: Params) -> Target:
    """What is needed of a data set, in memory.

    Raises UserError if a class has no image left to hold out.
    """
    images = load_images(dataset, params.images, params.storage)
    return target_of(images, params.finetune.images_per_class, params.finetune.seeds, params.seed)


def target_of(images: Images, images_per_class: int, seeds: int, seed: int) -> Target:
    """The data set with its few shots drawn, `images_per_class` for each of the seeds."""
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
        images=replace(images, train=in_memory(images.train, []), test=in_memory(images.test)),
        shots=tuple(in_memory(images.train, chosen) for chosen in shots),
        held_out=in_memory(images.train, np.sort(others[order[:HELD_OUT]])),
    )


def train_all(
    networks: Sequence[Network],
    ghn: Hypernetwork,
    targets: Mapping[str, Target],
    settings: FinetuneSettings,
    seed: int,
    folder: str,
) -> pd.DataFrame:
    """The test accuracy during training with the chosen learning rates: a row for each run and step.

    Runs that are finished are read from `folder`. Needs a connection to Ray.
    """
    shared_ghn = ray.put(ghn.cpu())
    shared_targets = {name: ray.put(target) for name, target in targets.items()}
    digests = {name: digest(target.images, target.held_out, *target.shots) for name, target in targets.items()}
    finished = read_task_cache(folder)

    def finish(runs: list[FinetuneRun], description: str) -> dict[FinetuneRun, dict[str, Any]]:
        names = {run: name_of(run, networks[run.architecture], digests[run.dataset], settings, seed) for run in runs}
        tasks = {
            name: (run, networks[run.architecture], shared_ghn, shared_targets[run.dataset], settings, seed)
            for run, name in names.items()
            if name not in finished
        }
        gpus = GPU_SHARE if capacity()["GPU"] else 0
        for name, result in run_cached_tasks(
            fine_tune, tasks, folder, description=description, unit="run", num_gpus=gpus
        ):
            finished[name] = result
        return {run: finished[name] for run, name in names.items()}

    starts = list(product(targets, range(len(networks)), INITIALISATIONS))
    tuning = [FinetuneRun(*start, rate, 0) for start in starts for rate in settings.learning_rates]
    tuned = finish(tuning, "finetune: learning rates")
    rates = chosen_rates({run: result["held_out"] for run, result in tuned.items()})
    runs = [
        FinetuneRun(dataset, architecture, initialisation, rates[dataset, initialisation], draw)
        for dataset, architecture, initialisation in starts
        for draw in range(settings.seeds)
    ]
    trained = finish(runs, "finetune: all seeds")
    return curves_table({run: trained[run]["curve"] for run in runs})


def name_of(run: FinetuneRun, network: Network, images: str, settings: FinetuneSettings, seed: int) -> str:
    """A name that changes with all that the result of a run depends on beside the checkpoint.

    `images` is a digest of the target. Other learning rates, seeds or data sets to try leave it as it is.
    """
    budget = (settings.steps, settings.batch, settings.evaluate_every)
    return settings_hash([asdict(run), network.to_dict(), images, budget, seed], 24)


def chosen_rates(held_out: Mapping[FinetuneRun, float]) -> dict[tuple[str, str], float]:
    """The learning rate of each (dataset, initialisation): the best on average over the runs given.

    The smaller one where two are equally good.
    """
    table = pd.DataFrame([{**asdict(run), "held_out": accuracy} for run, accuracy in held_out.items()])
    means = table.groupby(["dataset", "initialisation", "learning_rate"])["held_out"].mean()
    return {key: float(rates.idxmax()[-1]) for key, rates in means.groupby(["dataset", "initialisation"])}


def fine_tune(
    run: FinetuneRun, network: Network, ghn: Hypernetwork, target: Target, settings: FinetuneSettings, seed: int
) -> dict[str, Any]:
    """`curve`, pairs of a step and the test accuracy then, and `held_out`, the last accuracy there.

    All that is random is a function of (seed, run.seed, run.architecture), so both initialisations have the
    same classification layer, images and dropout.
    """
    images = replace(target.images, train=target.shots[run.seed])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    key = seed_of(seed, "finetune", run.seed, run.architecture)
    size = images.test.side
    module = fresh_module(network, size, len(images.classes), key)
    if run.initialisation == "predicted":
        load_predicted(module, ghn, network, size)
    module.to(device)
    optimizer = SGD(module.parameters(), run.learning_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = CosineAnnealingLR(optimizer, T_max=settings.steps)
    batch = min(settings.batch, len(images.train))
    curve = [(0, accuracy(module, images.test, images, device))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key)  # of dropout, which is drawn on the CPU
        for step in range(settings.steps):
            x_BCSS, labels_B = training_batch(images, key, step, batch, Augmentation())
            loss = F.cross_entropy(module.train()(x_BCSS.to(device)), labels_B.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % settings.evaluate_every == 0 or step + 1 == settings.steps:
                curve.append((step + 1, accuracy(module, images.test, images, device)))
    return {"curve": curve, "held_out": accuracy(module, target.held_out, images, device)}


@torch.no_grad()
def load_predicted(module: nn.Module, ghn: Hypernetwork, network: Network, image_size: int) -> None:
    """Gives the module its predicted parameters, all but those of the classification layer.

    They are predicted for as many classes as the hypernetwork was trained with.
    """
    (parameters,) = ghn.cpu().predict_parameters([network], image_size)
    classifier = {parameter.name for parameter in module.program.operations[-1].parameters}
    body = {name: tensor for name, tensor in parameters.items() if name not in classifier}
    left = module.load_state_dict(body, strict=False)
    assert set(left.missing_keys) == classifier and not left.unexpected_keys


def accuracy(module: nn.Module, part: ImageSubset, images: Images, device: torch.device) -> float:
    """The share of a part's images that the module classifies correctly."""
    return score(module.eval(), evaluation_batches(part, images, EVALUATION_BATCH), device).top1


def curves_table(curves: Mapping[FinetuneRun, Sequence[tuple[int, float]]]) -> pd.DataFrame:
    """A row for each run and step, in this order."""
    rows = [{**asdict(run), "step": step, "test_top1": top1} for run, curve in curves.items() for step, top1 in curve]
    columns = ["dataset", "architecture", "initialisation", "seed", "learning_rate", "step", "test_top1"]
    return pd.DataFrame(rows)[columns]


def summarise(curves: pd.DataFrame, classes: Mapping[str, int]) -> pd.DataFrame:
    """A row for each (dataset, initialisation), over all architectures and seeds.

    `classes` is the number of classes of each data set.

    `test_top1` is the mean final accuracy with its standard error over runs, `target_top1` that of random
    initialisation. `steps_to_target` is the first measured step at which the mean accuracy is at least the
    target, missing if there is none.
    """
    rows = []
    for (dataset, initialisation), own in curves.groupby(["dataset", "initialisation"], sort=False):
        random = mean_curve(curves[(curves["dataset"] == dataset) & (curves["initialisation"] == "random")])
        reached = mean_curve(own)[mean_curve(own) >= random.iloc[-1]]
        final = own[own["step"] == own["step"].max()]["test_top1"]
        rows.append(
            {
                "dataset": dataset,
                "initialisation": initialisation,
                "classes": classes[dataset],
                "learning_rate": own["learning_rate"].iloc[0],
                "runs": len(final),
                "test_top1": final.mean(),
                "test_top1_error": final.sem(),
                "steps_to_target": reached.index[0] if len(reached) else None,
                "target_top1": random.iloc[-1],
            }
        )
    return pd.DataFrame(rows).astype({"steps_to_target": "Int64"})


def mean_curve(curves: pd.DataFrame) -> pd.Series:
    """The mean accuracy over runs, by step in increasing order."""
    return curves.groupby("step")["test_top1"].mean()


def metrics_of(summary: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The mean final accuracy of each data set and initialisation."""
    metrics: dict[str, dict[str, float]] = {}
    for row in summary.to_dict("records"):
        metrics.setdefault(row["dataset"], {})[f"{row['initialisation']}_top1"] = row["test_top1"]
    return metrics


def _print_summary(summary: pd.DataFrame, images_per_class: int) -> None:
    rows = [
        {
            "data set": row.dataset,
            "start": row.initialisation,
            "rate": f"{row.learning_rate:g}",
            "runs": str(row.runs),
            "top-1": percent(row.test_top1, row.test_top1_error),
            "steps to target": "not reached" if pd.isna(row.steps_to_target) else str(row.steps_to_target),
            "target": percent(row.target_top1),
        }
        for row in summary.itertuples()
    ]
    print_table(f"Test accuracy in % after training on {images_per_class} images a class", rows)
