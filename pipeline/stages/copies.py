"""Stage `copies`: the test accuracy of networks with the parameters of the most similar trained network.

A baseline for predictions. Stage sgd has trained the sources, architectures of split train. The first architectures of
each split are measured with a copy from the source that is most similar by its graph, and from the one that is by its
embedding, on the images and in the ways of stage evaluate. Finished architectures are kept under the storage, so that
an interrupted stage goes on there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
from pandera.typing import DataFrame

from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.cached_tasks import clear_task_cache, named_when_interrupted, task_cache_folder
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.console import percent, print_table
from pipeline.evaluation.checkpoint import require_fit, trained_ghn
from pipeline.evaluation.copies import COPIES, measure_copies, require_sources, sources_of
from pipeline.evaluation.measurement import measured_images
from pipeline.evaluation.networks import evaluated_candidates
from pipeline.evaluation.stored_sources import StoredSource, read_sources
from pipeline.evaluation.tables import CopyScores
from pipeline.images.load import load_images
from pipeline.images.subsets import digest
from pipeline.params import Params
from pipeline.results import results_folder
from pipeline.storage.paths import storage_root
from pipeline.storage.tables import write_json, write_parquet
from pipeline.tracking.mlflow_runs import StageRun, stage_run

COPIES_FORMAT = 1  # part of the settings hash: raise it whenever the same inputs would be measured differently

FIGURES = ("top1", "running_top1", "similarity", "share_copied", "source_top1")
"""The means of each split that are metrics of DVC and MLflow."""


def copies(params: Params) -> None:
    """Measure the first architectures of each split with copied parameters and write `results/copies/`.

    Raises:
        UserError: the checkpoint is missing, damaged, or made for other images; or there are no sources, they were
            trained on other images, or their parameters are missing or damaged.
    """
    with stage_run("copies", params.model_dump(), experiment=params.tracking.experiment) as run:
        ghn, checkpoint = trained_ghn()
        images = load_images(params.dataset, params.images, params.storage)
        require_fit(ghn, images, params.images.size)
        store, stored = ArchitectureStore(params.storage), read_sources()
        require_sources(stored, store, images)
        run.log_data("architectures", store.digest)
        run.log_data(images.name, images.settings_hash)
        images = measured_images(images, params.evaluate)
        size, most = params.images.size, params.copies.architectures
        candidates = evaluated_candidates(store, params.evaluate, size, most)
        # The storage's place for the workers, which have other working directories.
        sources = sources_of(stored, store, params.evaluate, images, storage_root(params.storage))
        measured_as = params.evaluate.model_dump(exclude={"similarity"})
        data = [checkpoint, digest(images, images.train), [asdict(source) for source in stored]]
        folder = task_cache_folder(params.storage, "copies", [COPIES_FORMAT, *data, measured_as, params.seed])
        with named_when_interrupted(folder), ray_cluster(params.cluster.address, params.cluster.cpus):
            rows = measure_copies(candidates, sources, ghn, images, params.evaluate, params.seed, folder)
        scores = CopyScores.validate(pd.DataFrame(rows))
        summary = summarise(scores)

        results = results_folder("copies")
        write_parquet(results / "architectures.parquet", scores)
        write_json(results / "metrics.json", metrics_of(summary, stored))
        run.log_table(scores, "architectures")
        _log_metrics(run, summary, stored)
    clear_task_cache(folder)
    _print_summary(summary, stored)


def summarise(scores: DataFrame[CopyScores]) -> pd.DataFrame:
    """Return a row for each (split, initialisation), in the order of the table, with means over the split's networks.

    `top1_error` is the standard error of `top1`, missing for a single network. `sources` is the number of sources that
    were copied from.
    """
    groups = scores.groupby(["split", "initialisation"], sort=False)
    means = groups[list(FIGURES)].mean()
    means.insert(1, "top1_error", groups["top1"].sem())
    return means.assign(networks=groups.size(), sources=groups["source"].nunique()).reset_index()


def metrics_of(summary: pd.DataFrame, stored: Sequence[StoredSource]) -> dict[str, dict[str, float]]:
    """Return the means of each split, by names such as `copy_wl_top1`, and the number and cost of all sources."""
    metrics: dict[str, dict[str, float]] = {}
    for row in summary.to_dict("records"):
        metrics.setdefault(row["split"], {}).update(_figures(row))
    return {**metrics, "sources": costs_of(stored)}


def costs_of(stored: Sequence[StoredSource]) -> dict[str, float]:
    """Return the number of sources, and the seconds that their training took in all."""
    return {"number": len(stored), "train_seconds": sum(source.train_seconds for source in stored)}


def _figures(row: Mapping[Any, Any]) -> Iterator[tuple[str, float]]:
    """Yield the figures of a row of the summary by name, but for what was not measured."""
    for figure in FIGURES:
        if not math.isnan(row[figure]):
            yield f"{row['initialisation']}_{figure}", row[figure]


def _log_metrics(run: StageRun, summary: pd.DataFrame, stored: Sequence[StoredSource]) -> None:
    """Log all figures; the mean accuracies on split test are headline figures."""
    for row in summary.to_dict("records"):
        figures = {f"{row['split']}_{name}": value for name, value in _figures(row)}
        run.log_metrics(figures)
        if row["split"] == "test":
            run.summary({f"{row['initialisation']}_top1": row["top1"]})
    run.log_metrics({f"sources_{name}": value for name, value in costs_of(stored).items()})


def _print_summary(summary: pd.DataFrame, stored: Sequence[StoredSource]) -> None:
    rows = [
        {
            "split": row["split"],
            "networks": str(row["networks"]),
            "nearest by": COPIES[row["initialisation"]],
            "top-1": percent(row["top1"], row["top1_error"]),
            "running statistics": "" if math.isnan(row["running_top1"]) else percent(row["running_top1"]),
            "copied": f"{row['share_copied']:.0%}",
            "similarity": f"{row['similarity']:.2f}",
            "sources": str(row["sources"]),
            "their top-1": percent(row["source_top1"]),
        }
        for row in summary.to_dict("records")
    ]
    costs = costs_of(stored)
    trained = f"{costs['number']} trained networks, {costs['train_seconds']:,.0f} s of training"
    print_table(f"Test accuracy in % with the parameters of the nearest of {trained}", rows)
