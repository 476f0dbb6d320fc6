"""Stage `evaluate`: the test accuracy of networks with predicted parameters, beside other initialisations.

Every architecture of the evaluated splits is measured on test images in each initialisation, in parallel over the whole
cluster. The result is a function of the architecture, the checkpoint and the settings, not of the workers.
Finished architectures are kept under the storage, so that an interrupted run continues where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pandas as pd
from pandera.typing import DataFrame

from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.cached_tasks import clear_task_cache, named_when_interrupted, task_cache_folder
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.console import percent, print_bits, print_table
from pipeline.evaluation.bits import add_bits, bits_a_byte
from pipeline.evaluation.checkpoint import require_fit, trained_ghn
from pipeline.evaluation.embeddings import StoredArchitectures
from pipeline.evaluation.initialisations import HEADLINE, INITIALISATIONS, evaluated_initialisations
from pipeline.evaluation.measurement import Measurement, measure_all, measured_images
from pipeline.evaluation.networks import evaluated_candidates
from pipeline.evaluation.similarity import candidate_embeddings, correlate_accuracy, similarity_to_training
from pipeline.evaluation.summaries import initialisations_of, summarise_architectures
from pipeline.evaluation.tables import ALL_SPLITS, ArchitectureScores, SimilarityCorrelations, SplitSummary
from pipeline.evaluation.traits import describe_networks, trait_effects
from pipeline.images.load import load_images
from pipeline.images.subsets import digest
from pipeline.params import Params
from pipeline.results import results_folder
from pipeline.storage.paths import storage_root
from pipeline.storage.tables import write_csv, write_json, write_parquet
from pipeline.tracking.mlflow_runs import StageRun, stage_run

log = logging.getLogger(__name__)

EVALUATION_FORMAT = 3  # part of the settings hash: raise it whenever the same inputs would be measured differently


def evaluate(params: Params) -> None:
    """Measure all architectures of the evaluated splits in each evaluated initialisation and write `results/evaluate/`.

    The results are accuracies, how similar the nearest training architecture is to each of the networks, and the traits
    of the networks with what they go along with.

    Raises:
        UserError: the checkpoint is missing, damaged, or made for other images.
    """
    with stage_run("evaluate", params.model_dump(), experiment=params.tracking.experiment) as run:
        ghn, checkpoint = trained_ghn()
        images = measured_images(load_images(params.dataset, params.images, params.storage), params.evaluate)
        require_fit(ghn, images, params.images.size)
        store = ArchitectureStore(params.storage)
        run.log_data("architectures", store.digest)
        run.log_data(images.name, images.settings_hash)
        candidates = evaluated_candidates(store, params.evaluate, params.images.size)
        data = digest(images, images.train)
        settings = [EVALUATION_FORMAT, checkpoint, data, params.evaluate.model_dump(), params.seed]
        initialisations = evaluated_initialisations()
        folder = task_cache_folder(params.storage, "evaluations", [*settings, list(initialisations)])
        with named_when_interrupted(folder), ray_cluster(params.cluster.address, params.cluster.cpus):
            measured = measure_all(candidates, initialisations, ghn, images, params.evaluate, params.seed, folder)
            classes = len(images.classes)
            embeddings = candidate_embeddings(candidates, ghn, params.images.size, classes)
            training = training_architectures(params, store, classes)
            similarity = similarity_to_training(candidates, embeddings, training, ghn, checkpoint)
        architectures = architectures_table(measured)
        correlations = correlate_accuracy(architectures, similarity, params.seed)
        networks = describe_networks(candidates, embeddings, params.images.size, classes)
        effects = trait_effects(architectures, networks, params.seed)
        summary = summarise_architectures(architectures)

        results = results_folder("evaluate")
        write_parquet(results / "architectures.parquet", architectures)
        write_csv(results / "summary.csv", summary)
        write_parquet(results / "similarity.parquet", similarity)
        write_csv(results / "similarity.csv", correlations)
        write_parquet(results / "networks.parquet", networks)
        write_csv(results / "traits.csv", effects)
        metrics = metrics_of(summary)
        if params.is_text:
            bits = bits_a_byte(architectures, "initialisation", images.bytes_per_token)
            run.log_metrics(add_bits(metrics, bits, "initialisation"))
        write_json(results / "metrics.json", metrics)
        run.log_table(architectures, "architectures")
        run.log_table(summary, "summary")
        run.log_table(similarity, "similarity")
        run.log_table(effects, "traits")
        _log_metrics(run, summary)
        _log_correlations(run, correlations)
    clear_task_cache(folder)
    if params.is_text:
        print_bits("Bits per byte of test text", bits, "initialisation")
    _print_summary(summary)
    _print_correlations(correlations, training.count)


def training_architectures(params: Params, store: ArchitectureStore, classes: int) -> StoredArchitectures:
    """Return the training architectures that all others are compared with, at the evaluation's width."""
    return StoredArchitectures(
        storage=storage_root(params.storage),  # workers have other working directories
        manifest=store.manifest,
        split="train",
        count=min(params.evaluate.similarity, len(store["train"])),
        width=params.evaluate.width,
        head_width=params.evaluate.head_width,
        image_size=params.images.size,
        classes=classes,
    )


def architectures_table(measured: Sequence[Measurement]) -> DataFrame[ArchitectureScores]:
    """Return a row for each measurement; a loss that is not finite is missing."""
    return ArchitectureScores.validate(pd.DataFrame(measured))


def metrics_of(summary: DataFrame[SplitSummary]) -> dict[str, dict[str, float]]:
    """Return the headline figures of each split: mean and best top-1 accuracy of each initialisation.

    Beside them is the mean with running statistics, where it was measured.
    """
    figures = ("top1", "top1_max", "running_top1")
    columns = [f"{name}_{figure}" for name in initialisations_of(summary) for figure in figures]
    return {
        row["split"]: {name: row[name] for name in [*columns, "nonfinite"] if not pd.isna(row[name])}
        for row in summary.to_dict("records")
    }


def _log_metrics(run: StageRun, summary: DataFrame[SplitSummary]) -> None:
    """Log the mean accuracies; those of the headline's initialisation have no initialisation in their names."""
    by_split = summary.set_index("split")
    run.summary({f"{split}_top1": top1 for split, top1 in by_split[f"{HEADLINE}_top1"].items()})
    for name in initialisations_of(summary):
        if name != HEADLINE:
            run.log_metrics({f"{split}_{name}_top1": top1 for split, top1 in by_split[f"{name}_top1"].items()})
    run.log_metrics({f"{split}_nonfinite": count for split, count in by_split["nonfinite"].items()})


def _log_correlations(run: StageRun, correlations: DataFrame[SimilarityCorrelations]) -> None:
    """Log the headline's correlations over all splits, but those that are missing."""
    own = correlations[(correlations["initialisation"] == HEADLINE) & (correlations["split"] == ALL_SPLITS)]
    run.log_metrics({f"similarity_{by}_rho": rho for by, rho in zip(own["by"], own["rho"], strict=True) if rho == rho})


def _print_correlations(correlations: DataFrame[SimilarityCorrelations], count: int) -> None:
    """Print the headline's correlations with the similarity of the nearest of `count` training architectures."""
    rows = [
        {
            "split": row["split"],
            "by": row["by"],
            "networks": str(row["architectures"]),
            "ρ": f"{row['rho']:.2f}",
            "95 % interval": f"{row['low']:.2f} to {row['high']:.2f}",
        }
        for row in correlations[correlations["initialisation"] == HEADLINE].dropna().to_dict("records")
    ]
    if rows:
        print_table(f"Accuracy against similarity to the nearest of {count:,} training architectures", rows)


def _print_summary(summary: DataFrame[SplitSummary]) -> None:
    rows = [
        {
            "split": row["split"],
            "networks": str(row["architectures"]),
            "initialisation": name,
            "top-1": percent(row[f"{name}_top1"], row[f"{name}_top1_error"]),
            "best": percent(row[f"{name}_top1_max"]),
            "top-5": percent(row[f"{name}_top5"]),
            "running statistics": percent(running) if (running := row[f"{name}_running_top1"]) >= 0 else "",
        }
        for row in summary.to_dict("records")
        for name in initialisations_of(summary)
    ]
    print_table("Test accuracy in %", rows)
    for name in initialisations_of(summary):
        if nonfinite := summary[f"{name}_nonfinite"].sum():
            total, label = summary["architectures"].sum(), INITIALISATIONS[name].label
            log.warning("%d of %d networks: no finite loss with %s", nonfinite, total, label)
