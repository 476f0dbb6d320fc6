"""Stage `evaluate`: the test accuracy of networks with predicted parameters, beside other initialisations.

Every architecture of `EVALUATED_SPLITS` is measured on all test images in each initialisation, in parallel over the
whole cluster. The result is a function of the architecture, the checkpoint and the settings, not of the workers.
Finished architectures are kept under the storage, so that an interrupted run continues where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pandas as pd
from pandera.typing import DataFrame

from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.cached_tasks import clear_task_cache, task_cache_folder
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.console import percent, print_table
from pipeline.evaluation.initialisations import HEADLINE, INITIALISATIONS, evaluated_initialisations
from pipeline.evaluation.measurement import Measurement, measure_all
from pipeline.evaluation.networks import candidates_of, require_fit, trained_ghn
from pipeline.evaluation.summaries import initialisations_of, summarise_architectures
from pipeline.evaluation.tables import ArchitectureScores, SplitSummary
from pipeline.images.load import load_images
from pipeline.images.subsets import digest, without_train_part
from pipeline.params import Params
from pipeline.results import results_folder
from pipeline.storage.tables import write_csv, write_json, write_parquet
from pipeline.tracking.mlflow_runs import StageRun, stage_run

log = logging.getLogger(__name__)

EVALUATED_SPLITS = ("test", "wide", "deep", "dense", "bn_free", "predefined")
"""The splits whose architectures are measured, in the order of the tables."""

EVALUATION_FORMAT = 2  # part of the settings hash: raise it whenever the same inputs would be measured differently


def evaluate(params: Params) -> None:
    """Measure all architectures of `EVALUATED_SPLITS` in each evaluated initialisation and write `results/evaluate/`.

    Raises:
        UserError: the checkpoint is missing, damaged, or made for other images.
    """
    with stage_run("evaluate", params.model_dump(), experiment=params.tracking.experiment) as run:
        ghn, checkpoint = trained_ghn()
        images = without_train_part(load_images(params.dataset, params.images, params.storage))
        require_fit(ghn, images, params.images.size)
        store = ArchitectureStore(params.storage)
        run.log_data("architectures", store.digest)
        run.log_data(images.name, images.settings_hash)
        candidates = [
            candidate
            for split in EVALUATED_SPLITS
            for candidate in candidates_of(split, store.networks(split), params.evaluate, params.images.size)
        ]
        settings = [EVALUATION_FORMAT, checkpoint, digest(images), params.evaluate.model_dump(), params.seed]
        initialisations = evaluated_initialisations()
        folder = task_cache_folder(params.storage, "evaluations", [*settings, list(initialisations)])
        with ray_cluster(params.cluster.address, params.cluster.cpus):
            measured = measure_all(candidates, initialisations, ghn, images, params.evaluate.batch, params.seed, folder)
        architectures = architectures_table(measured)
        summary = summarise_architectures(architectures)

        results = results_folder("evaluate")
        write_parquet(results / "architectures.parquet", architectures)
        write_csv(results / "summary.csv", summary)
        write_json(results / "metrics.json", metrics_of(summary))
        run.log_table(architectures, "architectures")
        run.log_table(summary, "summary")
        _log_metrics(run, summary)
    clear_task_cache(folder)
    _print_summary(summary)


def architectures_table(measured: Sequence[Measurement]) -> DataFrame[ArchitectureScores]:
    """Return a row for each measurement; a loss that is not finite is missing."""
    return ArchitectureScores.validate(pd.DataFrame(measured))


def metrics_of(summary: DataFrame[SplitSummary]) -> dict[str, dict[str, float]]:
    """Return the headline figures of each split: mean and best top-1 accuracy of each initialisation."""
    columns = [f"{name}_{figure}" for name in initialisations_of(summary) for figure in ("top1", "top1_max")]
    return {row["split"]: {name: row[name] for name in [*columns, "nonfinite"]} for row in summary.to_dict("records")}


def _log_metrics(run: StageRun, summary: DataFrame[SplitSummary]) -> None:
    """Log the mean accuracies; those of the headline's initialisation have no initialisation in their names."""
    by_split = summary.set_index("split")
    run.summary({f"{split}_top1": top1 for split, top1 in by_split[f"{HEADLINE}_top1"].items()})
    for name in initialisations_of(summary):
        if name != HEADLINE:
            run.log_metrics({f"{split}_{name}_top1": top1 for split, top1 in by_split[f"{name}_top1"].items()})
    run.log_metrics({f"{split}_nonfinite": count for split, count in by_split["nonfinite"].items()})


def _print_summary(summary: DataFrame[SplitSummary]) -> None:
    rows = [
        {
            "split": row["split"],
            "networks": str(row["architectures"]),
            "initialisation": name,
            "top-1": percent(row[f"{name}_top1"], row[f"{name}_top1_error"]),
            "best": percent(row[f"{name}_top1_max"]),
            "top-5": percent(row[f"{name}_top5"]),
        }
        for row in summary.to_dict("records")
        for name in initialisations_of(summary)
    ]
    print_table("Test accuracy in %", rows)
    for name in initialisations_of(summary):
        if nonfinite := summary[f"{name}_nonfinite"].sum():
            total, label = summary["architectures"].sum(), INITIALISATIONS[name].label
            log.warning("%d of %d networks: no finite loss with %s", nonfinite, total, label)
