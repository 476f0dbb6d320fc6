"""Stage `finetune`: is training on other images better started from predicted parameters than at random?

Few-shot transfer: networks are trained by SGD on n images a class of another data set. All initialisations have the
same budget, the same images in the same order, the same classification layers at the start, and the same learning rates
to choose from.

The learning rate is chosen for each data set and initialisation by the mean accuracy of all architectures on held-out
images, with the first seed alone. Held-out images are of the train part and not among the few training images of that
seed. The test part chooses nothing.
"""

from __future__ import annotations

import pandas as pd
from pandera.typing import DataFrame

from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.cached_tasks import clear_task_cache, task_cache_folder
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.console import percent, print_table
from pipeline.errors import UserError
from pipeline.evaluation.finetuning import Target, target_of, train_all
from pipeline.evaluation.initialisations import INITIALISATIONS
from pipeline.evaluation.networks import at_width, trained_ghn
from pipeline.evaluation.summaries import summarise_curves
from pipeline.evaluation.tables import FinetuningSummary
from pipeline.images.load import load_images
from pipeline.params import FinetuneSettings, ImageSettings, Params
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
        _require_architectures(store, settings.architectures)
        networks = [
            at_width(store.read("test", index), params.evaluate, params.images.size)
            for index in range(settings.architectures)
        ]
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


def _require_architectures(store: ArchitectureStore, count: int) -> None:
    if count > len(store["test"]):
        raise UserError(
            f"finetune.architectures = {count}: must be at most {len(store['test'])}, "
            "the number of architectures of split test"
        )


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
