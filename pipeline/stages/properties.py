"""Stage `properties`: how well the hypernetwork's embeddings of networks predict properties of these networks.

A regression is fitted on the networks of split val that stage sgd has trained, and scored on those of split test: by
Kendall's τ between predicted and true accuracy after SGD, accuracy on noisy images, convergence time, and inference
time, which this stage measures. Beside the embeddings stand two baselines that need no hypernetwork. The published
results of single architectures go through the same regressions, if the settings name them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd
from pandera.typing import DataFrame

from pipeline.architectures.paper_results import read_paper_results, require_imported_networks
from pipeline.architectures.store import ArchitectureStore
from pipeline.console import print_table
from pipeline.contracts import read_table
from pipeline.errors import UserError
from pipeline.evaluation.checkpoint import trained_ghn
from pipeline.evaluation.networks import Candidate, candidates_of
from pipeline.evaluation.property_features import EMBEDDING
from pipeline.evaluation.property_regression import (
    FITTED_SPLIT,
    SCORED_SPLIT,
    MeasuredNetworks,
    PropertyResults,
    analyse_properties,
    joined_results,
)
from pipeline.evaluation.property_tables import PropertyScores
from pipeline.evaluation.property_targets import KEYS, other_properties, sgd_targets, time_targets, trained_candidates
from pipeline.evaluation.tables import ArchitectureScores, SgdScores
from pipeline.params import Params
from pipeline.results import CHECKPOINT, RESULTS, results_folder
from pipeline.storage.tables import write_csv, write_json, write_parquet
from pipeline.tracking.mlflow_runs import StageRun, stage_run

SPLITS = (FITTED_SPLIT, SCORED_SPLIT)

SGD_SCORES = RESULTS / "sgd" / "scores.parquet"
EVALUATION = RESULTS / "evaluate" / "architectures.parquet"

PUBLISHED = "published_"
"""What the names of published properties begin with."""


def properties(params: Params) -> None:
    """Measure inference times, fit and score all regressions, and write `results/properties/`.

    Raises:
        UserError: the checkpoint or the results of stages sgd or evaluate are missing, damaged or of other networks, or
            published results are not those of the stored architectures.
    """
    with stage_run("properties", params.model_dump(), experiment=params.tracking.experiment) as run:
        ghn, _ = trained_ghn()
        store = ArchitectureStore(params.storage)
        run.log_data("architectures", store.digest)
        size, classes = ghn.config.image_size, ghn.config.num_classes
        measured = [trained_networks(params, store, size, classes)]
        if params.properties.published is not None:
            measured.append(published_networks(params.storage, params.properties.published, store, size, classes))
        resamples = params.properties.resamples
        found = joined_results([analyse_properties(each, ghn, resamples, params.seed) for each in measured])

        results = results_folder("properties")
        write_csv(results / "scores.csv", found.scores)
        write_parquet(results / "predictions.parquet", found.predictions)
        write_csv(results / "correlations.csv", found.correlations)
        write_json(results / "metrics.json", metrics_of(found.scores))
        _log_results(run, found)
    _print_scores(found.scores)


def trained_networks(params: Params, store: ArchitectureStore, image_size: int, classes: int) -> MeasuredNetworks:
    """Return the networks that stage sgd has trained, at the evaluation's width; their inference time is measured here.

    Args:
        image_size, classes: what the hypernetwork was trained for.
    """
    if image_size != params.images.size:
        raise UserError(
            f"{CHECKPOINT} was trained for image size {image_size}, images.size is {params.images.size}: "
            "must be the same"
        )
    trained = read_table(SGD_SCORES, "sgd", SgdScores)
    trained = trained[trained["split"].isin(SPLITS)]
    if trained.empty:
        raise UserError(f"{SGD_SCORES} has no network of split {' or '.join(SPLITS)}: stage sgd must train some")
    evaluated = read_table(EVALUATION, "evaluate", ArchitectureScores)
    stored = [c for split in SPLITS for c in candidates_of(split, store.networks(split), params.evaluate, image_size)]
    candidates = trained_candidates(trained, stored, SGD_SCORES)
    settings = params.properties
    times = time_targets(candidates, image_size, classes, settings.batch, settings.repeats)
    return MeasuredNetworks(candidates, sgd_targets(trained).join(times), other_properties(trained, evaluated))


def published_networks(
    storage: str, address: str, store: ArchitectureStore, image_size: int, classes: int
) -> MeasuredNetworks:
    """Return the published networks at their own width; the names of their properties begin with `published_`.

    Args:
        address: that of the results, below the storage.
        image_size, classes: what the hypernetwork was trained for.
    """
    results = read_paper_results(storage, address)
    require_imported_networks(results, store, image_size, classes)
    candidates = [
        Candidate(split, index, "", network.network_hash, network)
        for split in SPLITS
        for index, network in enumerate(store.networks(split))
    ]
    properties = results.set_index(KEYS)
    others = properties[["parameters", "predicted_top1"]]
    targets = properties.drop(columns=others.columns)
    return MeasuredNetworks(candidates, targets.add_prefix(PUBLISHED), others.add_prefix(PUBLISHED))


def metrics_of(scores: DataFrame[PropertyScores]) -> dict[str, dict[str, float]]:
    """Return for each target the numbers of networks and, where there is a figure, τ of each kind of features."""
    metrics: dict[str, dict[str, float]] = {}
    for row in scores.to_dict("records"):
        of_target = metrics.setdefault(row["target"], {"fitted": row["fitted"], "scored": row["scored"]})
        if not pd.isna(row["tau"]):
            of_target[f"{row['features']}_tau"] = row["tau"]
    return metrics


def _log_results(run: StageRun, found: PropertyResults) -> None:
    """Log all tables and each τ; those of the embeddings are headline figures."""
    run.log_table(found.scores, "scores")
    run.log_table(found.predictions, "predictions")
    run.log_table(found.correlations, "correlations")
    known = found.scores.dropna(subset="tau").to_dict("records")
    run.summary({f"{row['target']}_tau": row["tau"] for row in known if row["features"] == EMBEDDING})
    run.log_metrics(
        {f"{row['target']}_{row['features']}_tau": row["tau"] for row in known if row["features"] != EMBEDDING}
    )


def _print_scores(scores: DataFrame[PropertyScores]) -> None:
    rows = [
        {
            "target": row["target"],
            "features": row["features"],
            "fitted, scored": f"{row['fitted']}, {row['scored']}",
            "τ": _with_interval(row, "tau") or row["reason"],
            "embedding's lead": _with_interval(row, "difference"),
        }
        for row in scores.to_dict("records")
    ]
    print_table("Kendall's τ between predicted and true properties, with 95 % intervals", rows)


def _with_interval(row: Mapping[Hashable, Any], name: str) -> str:
    """Return a figure and its interval as text, empty if it is missing."""
    if pd.isna(row[name]):
        return ""
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
