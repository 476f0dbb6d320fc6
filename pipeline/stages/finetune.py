"""Stage `finetune`: is training on other images better started from predicted parameters than at random?

Few-shot transfer: networks are trained by SGD on n images per class of another data set. All initialisations have the
same budget, the same images in the same order, the same classification layers at the start, and the same search for a
learning rate.

The learning rate is chosen for each data set, number of images per class and initialisation: by the mean accuracy of
some architectures on held-out images, with the first seed alone. The search goes on until the best rate has a smaller
and a larger neighbour, neither of which is better, or a limit is reached. Held-out images are of the train part, and no
seed trains on them. The test part chooses nothing.
"""

from __future__ import annotations

import pandas as pd
from pandera.typing import DataFrame

from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.cached_tasks import clear_task_cache, named_when_interrupted, task_cache_folder
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.console import percent, print_table
from pipeline.evaluation.budgets import EARLY_BUDGET, compare_budgets
from pipeline.evaluation.checkpoint import trained_ghn
from pipeline.evaluation.finetuning import train_all
from pipeline.evaluation.first_networks import first_networks
from pipeline.evaluation.initialisations import INITIALISATIONS
from pipeline.evaluation.summaries import final_accuracies, prefix_of, summarise_curves
from pipeline.evaluation.tables import FinetuningBudgets, FinetuningSummary
from pipeline.evaluation.targets import load_targets
from pipeline.params import Params
from pipeline.results import results_folder
from pipeline.storage.tables import write_csv, write_json, write_parquet
from pipeline.tracking.mlflow_runs import StageRun, stage_run

FINETUNING_FORMAT = 3  # part of the settings hash: raise it whenever the same inputs would be trained differently


def finetune(params: Params) -> None:
    """Train the first architectures of split test on other data sets and write `results/finetune/`.

    Raises:
        UserError: the checkpoint is missing or damaged, or a data set has too few images.
    """
    settings = params.finetune
    with stage_run("finetune", params.model_dump(), experiment=params.tracking.experiment) as run:
        ghn, checkpoint = trained_ghn()
        targets = load_targets(settings, params)
        store = ArchitectureStore(params.storage)
        run.log_data("architectures", store.digest)
        for target in targets.values():
            run.log_data(target.images.name, target.images.settings_hash)
        networks = first_networks(store, "test", settings.architectures, params, "finetune.architectures")
        folder = task_cache_folder(params.storage, "finetuning", [FINETUNING_FORMAT, checkpoint])
        with named_when_interrupted(folder), ray_cluster(params.cluster.address, params.cluster.cpus):
            finetuned = train_all(networks, INITIALISATIONS, ghn, targets, settings, params.seed, folder)
        classes = {name: len(target.images.classes) for name, target in targets.items()}
        summary, budgets = summarise_curves(finetuned.curves, classes), compare_budgets(finetuned.curves)

        results = results_folder("finetune")
        write_parquet(results / "curves.parquet", finetuned.curves)
        write_csv(results / "summary.csv", summary)
        write_csv(results / "budgets.csv", budgets)
        write_csv(results / "learning_rates.csv", finetuned.rates)
        write_json(results / "metrics.json", metrics_of(summary))
        run.log_table(finetuned.curves, "curves")
        run.log_table(finetuned.rates, "learning_rates")
        _log_summary(run, summary, budgets)
    clear_task_cache(folder)
    _print_summary(summary)


def metrics_of(summary: DataFrame[FinetuningSummary]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the mean final accuracies, by data set, number of images per class and initialisation.

    Beside each is the share of the steps in which the mean reaches the baseline's final accuracy, if it does.
    """
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for row in summary.to_dict("records"):
        of_images = metrics.setdefault(row["dataset"], {}).setdefault(f"{row['images_per_class']}_images", {})
        of_images[f"{row['initialisation']}_top1"] = row["test_top1"]
        if not pd.isna(row["share_to_target"]):
            of_images[f"{row['initialisation']}_share_to_target"] = row["share_to_target"]
    return metrics


def _log_summary(run: StageRun, summary: DataFrame[FinetuningSummary], budgets: DataFrame[FinetuningBudgets]) -> None:
    """Log both tables, the final accuracies as headline figures, and the early and final comparisons as metrics."""
    run.log_table(summary, "summary")
    run.log_table(budgets, "budgets")
    run.summary(final_accuracies(summary))
    shown = budgets[budgets["budget"].isin((EARLY_BUDGET, 1.0))]
    figures = {
        f"{prefix_of(row)}_{figure.removeprefix('test_')}_at_{100 * row['budget']:g}": row[figure]
        for row in shown.to_dict("records")
        for figure in ("test_top1", "test_top1_error", "difference", "difference_error", "corrected_p_value")
    }
    figures |= {f"{prefix_of(row)}_share_to_target": row["share_to_target"] for row in summary.to_dict("records")}
    run.log_metrics({name: value for name, value in figures.items() if not pd.isna(value)})


def _print_summary(summary: DataFrame[FinetuningSummary]) -> None:
    rows = [
        {
            "images": f"{row.dataset} × {row.images_per_class}",
            "start": row.initialisation,
            "rate": f"{row.learning_rate:g}",
            "top-1": percent(row.test_top1, row.test_top1_error),
            "steps to target": "never" if pd.isna(row.share_to_target) else f"{row.share_to_target:.0%}",
        }
        for row in summary.itertuples()
    ]
    print_table("Test accuracy in % after training on images of a data set × images per class", rows)
