"""Stage `adapt`: the trained hypernetwork itself learns from a few images of another data set.

It then predicts parameters of networks that it has never seen, for classes that it has never seen. Compared on the same
networks of split test: a hypernetwork from scratch with the same images and steps, each network trained by itself from
what the hypernetwork predicts, and, if `adapt.all_images`, all of them with all images.

Each has a learning rate of its own, chosen on held-out images, which choose the step too. The test part chooses
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from pandera.typing import DataFrame

from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.cached_tasks import clear_task_cache, named_when_interrupted, task_cache_folder
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.console import percent, print_table
from pipeline.evaluation.checkpoint import trained_ghn
from pipeline.evaluation.targets import load_targets
from pipeline.params import Params
from pipeline.results import results_folder
from pipeline.storage.tables import write_csv, write_json, write_parquet
from pipeline.tracking.mlflow_runs import stage_run
from pipeline.training.adaptation_runs import AdaptResult, AdaptRun, AdaptSetup, Competition, adapt_all, train_alone
from pipeline.training.adaptation_tables import (
    ADAPTED,
    ALONE,
    COMPETITION,
    SCRATCH,
    AdaptationScores,
    AdaptationSummary,
    adapted_accuracies,
    summarise_adaptation,
)

ADAPTATION_FORMAT = 1  # part of the settings hash: raise it whenever the same inputs would be trained differently


def adapt(params: Params) -> None:
    """Adapt the trained hypernetwork to other data sets and write `results/adapt/`.

    Raises:
        UserError: the checkpoint is missing or damaged, or a data set has too few images.
    """
    settings = params.adapt
    with stage_run("adapt", params.model_dump(), experiment=params.tracking.experiment) as run:
        ghn, checkpoint = trained_ghn()
        targets = load_targets(settings, params, settings.all_images)
        store = ArchitectureStore(params.storage)
        run.log_data("architectures", store.digest)
        for target in targets.values():
            run.log_data(target.images.name, target.images.settings_hash)
        setup = AdaptSetup.of(params, store)
        folder = task_cache_folder(params.storage, "adaptation", [ADAPTATION_FORMAT, checkpoint])
        with named_when_interrupted(folder), ray_cluster(params.cluster.address, params.cluster.cpus):
            adapted = adapt_all(setup, ghn, targets, folder)
            alone = train_alone(setup, params.finetune, ghn, targets, folder)
        scores = AdaptationScores.validate(pd.concat([adapted.scores, alone], ignore_index=True))
        summary = summarise_adaptation(
            scores,
            {name: len(target.images.classes) for name, target in targets.items()},
            {name: target.all_images for name, target in targets.items()},
            network_images(params),
            mean_seconds(adapted.results),
        )
        results = results_folder("adapt")
        write_parquet(results / "networks.parquet", scores)
        write_csv(results / "summary.csv", summary)
        write_csv(results / "learning_rates.csv", adapted.rates)
        write_json(results / "metrics.json", metrics_of(summary))
        run.log_table(scores, "networks")
        run.log_table(summary, "summary")
        run.log_table(adapted.rates, "learning_rates")
        run.summary(adapted_accuracies(summary))
    clear_task_cache(folder)
    _print_summary(summary)


def network_images(params: Params) -> dict[str, int]:
    """Return the cost of each start: the images that networks are trained on, of all networks together."""
    settings = params.adapt
    adapted = settings.steps * params.meta_batch * settings.batch
    alone = settings.alone_steps * params.finetune.batch * settings.architectures
    return {ADAPTED: adapted, SCRATCH: adapted, ALONE: alone}


def mean_seconds(results: Mapping[AdaptRun, AdaptResult]) -> dict[Competition, float]:
    """Return the mean time of a run, by data set, number of images per class and start."""
    seconds: dict[Competition, list[float]] = {}
    for run, result in results.items():
        seconds.setdefault(run.competition, []).append(result["seconds"])
    return {competition: float(np.mean(of_seeds)) for competition, of_seeds in seconds.items()}


def metrics_of(summary: DataFrame[AdaptationSummary]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the mean accuracies, by data set, number of images per class and start."""
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for (dataset, number, start), top1 in summary.set_index(COMPETITION)["test_top1"].items():
        metrics.setdefault(dataset, {}).setdefault(f"{number}_images", {})[f"{start}_top1"] = top1
    return metrics


def _print_summary(summary: DataFrame[AdaptationSummary]) -> None:
    rows = [
        {
            "images": f"{row.dataset} × {'all' if row.is_all else row.images_per_class}",
            "parameters": row.start,
            "rate": f"{row.learning_rate:g}",
            "top-1": percent(row.test_top1, row.test_top1_error),
        }
        for row in summary.itertuples()
    ]
    print_table("Test accuracy in %, data set × images per class", rows)
