"""Stage `finetune`: is training on other images better started from predicted parameters than at random?

Few-shot transfer: networks are trained by SGD on n images a class of another data set. All initialisations have the
same budget, the same images in the same order, the same classification layers at the start, and the same learning rates
to choose from.

The learning rate is chosen for each data set and initialisation by the mean accuracy of all architectures on held-out
images, with the first seed alone. Held-out images are of the train part and not among the few training images of that
seed. The test part chooses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product

import pandas as pd
import ray
from pandera.typing import DataFrame

from ghn.models.hypernetwork import Hypernetwork
from ghn.networks.network import Network
from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.cached_tasks import clear_task_cache, read_task_cache, run_cached_tasks, task_cache_folder
from pipeline.cluster.ray_cluster import capacity, ray_cluster
from pipeline.console import percent, print_table
from pipeline.errors import UserError
from pipeline.evaluation.finetuning import FinetuneResult, FinetuneRun, Target, fine_tune, name_of, target_of
from pipeline.evaluation.initialisations import INITIALISATIONS, Initialisation
from pipeline.evaluation.networks import GPU_SHARE, at_width, trained_ghn
from pipeline.evaluation.summaries import summarise_curves
from pipeline.evaluation.tables import FinetuningCurves, FinetuningSummary
from pipeline.images.load import load_images
from pipeline.images.subsets import digest
from pipeline.params import EvaluateSettings, FinetuneSettings, ImageSettings, Params
from pipeline.results import results_folder
from pipeline.storage.tables import write_csv, write_json, write_parquet
from pipeline.tracking.mlflow_runs import stage_run

FINETUNING_FORMAT = 1  # part of the settings hash: raise it whenever the same inputs would be trained differently


def finetune(params: Params) -> None:
    """Train the first architectures of split test on other data sets and write `results/finetune/`.

    Raises:
        UserError: the checkpoint is missing or damaged, or a data set has too few images.
    """
    settings = params.finetune
    with stage_run("finetune", params.model_dump(), experiment=params.tracking.experiment) as run:
        ghn, checkpoint = trained_ghn()
        targets = load_targets(settings, params.images, params.storage, params.seed)
        store = ArchitectureStore(params.storage)
        run.log_data("architectures", store.digest)
        for target in targets.values():
            run.log_data(target.images.name, target.images.settings_hash)
        networks = networks_to_train(store, settings.architectures, params.evaluate, params.images.size)
        folder = task_cache_folder(params.storage, "finetuning", [FINETUNING_FORMAT, checkpoint])
        with ray_cluster(params.cluster.address, params.cluster.cpus):
            curves = train_all(networks, INITIALISATIONS, ghn, targets, settings, params.seed, folder)
        summary = summarise_curves(curves, {name: len(target.images.classes) for name, target in targets.items()})

        results = results_folder("finetune")
        write_parquet(results / "curves.parquet", curves)
        write_csv(results / "summary.csv", summary)
        write_json(results / "metrics.json", metrics_of(summary))
        run.log_table(curves, "curves")
        run.log_table(summary, "summary")
        run.summary({f"{row.dataset}_{row.initialisation}_top1": row.test_top1 for row in summary.itertuples()})
    clear_task_cache(folder)
    _print_summary(summary, settings.images_per_class)


def load_targets(settings: FinetuneSettings, images: ImageSettings, storage: str, seed: int) -> dict[str, Target]:
    """Return the data sets to transfer to, by name, in memory.

    Raises:
        UserError: a class has no training image left to hold out.
    """
    return {
        dataset: target_of(load_images(dataset, images, storage), settings.images_per_class, settings.seeds, seed)
        for dataset in settings.datasets
    }


def networks_to_train(
    store: ArchitectureStore, architectures: int, settings: EvaluateSettings, image_size: int
) -> list[Network]:
    """Return the first architectures of split test at the evaluation's width.

    Raises:
        UserError: the split has fewer architectures.
    """
    if architectures > len(store["test"]):
        raise UserError(
            f"finetune.architectures = {architectures}: must be at most {len(store['test'])}, "
            "the number of architectures of split test"
        )
    return [at_width(store.read("test", index), settings, image_size) for index in range(architectures)]


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


def metrics_of(summary: DataFrame[FinetuningSummary]) -> dict[str, dict[str, float]]:
    """Return the mean final accuracy of each data set and initialisation."""
    metrics: dict[str, dict[str, float]] = {}
    for row in summary.to_dict("records"):
        metrics.setdefault(row["dataset"], {})[f"{row['initialisation']}_top1"] = row["test_top1"]
    return metrics


def _print_summary(summary: DataFrame[FinetuningSummary], images_per_class: int) -> None:
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
