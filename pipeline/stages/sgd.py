"""Stage `sgd`: the test accuracy of networks that are trained by SGD, one by one: what a prediction is compared with.

Some architectures of each split are trained from random initialisation, at the width of stage evaluate, with each of
some budgets: see `pipeline.evaluation.trained_networks`. They are trained on all training images but the held-out ones,
which choose learning rates; with the default settings these are the images that the hypernetwork is trained on. The
stage needs no hypernetwork. Finished runs are kept under the storage, so that an interrupted stage goes on there.

Architectures of split train are the sources of nearest copies. Their parameters after the largest budget are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator
from typing import Any

import pandas as pd
from pandera.typing import DataFrame

from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.cached_tasks import clear_task_cache, named_when_interrupted, task_cache_folder
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.console import percent, print_bits, print_table
from pipeline.errors import UserError
from pipeline.evaluation.bits import add_bits, bits_a_byte
from pipeline.evaluation.learning_rates import tried_rates
from pipeline.evaluation.networks import Candidate, candidates_of
from pipeline.evaluation.stored_sources import write_sources
from pipeline.evaluation.tables import SgdLearningRates, SgdScores
from pipeline.evaluation.trained_networks import SOURCE_SPLIT, SgdSetup, TrainedNetworks, train_networks
from pipeline.images.batches import Augmentation
from pipeline.images.dataset import Images
from pipeline.images.load import load_images
from pipeline.params import Params
from pipeline.results import results_folder
from pipeline.storage.paths import storage_root
from pipeline.storage.tables import write_csv, write_json, write_parquet
from pipeline.tracking.mlflow_runs import StageRun, stage_run

log = logging.getLogger(__name__)

TUNING_SPLIT = "val"
"""The split whose architectures choose learning rates: none of them is evaluated."""

SGD_FORMAT = 1  # part of the settings hash: raise it whenever the same inputs would be trained or measured differently


def sgd(params: Params) -> None:
    """Train the architectures that the settings name and write `results/sgd/`.

    Raises:
        UserError: a split has too few architectures.
    """
    settings = params.sgd
    with stage_run("sgd", params.model_dump(), experiment=params.tracking.experiment) as run:
        images = load_images(params.dataset, params.images, params.storage)
        store = ArchitectureStore(params.storage)
        run.log_data("architectures", store.digest)
        run.log_data(images.name, images.settings_hash)
        candidates = [
            candidate
            for split, number in settings.wanted.items()
            for candidate in first_candidates(store, split, number, params)
        ]
        tuning_architectures = min(settings.tuning_architectures, len(store[TUNING_SPLIT]))
        tuning = first_candidates(store, TUNING_SPLIT, tuning_architectures, params)
        setup = setup_of(params, images)
        folder = task_cache_folder(params.storage, "sgd/tasks", [SGD_FORMAT, setup.settings_hash])
        with named_when_interrupted(folder), ray_cluster(params.cluster.address, params.cluster.cpus):
            trained = train_networks(candidates, tuning, setup, settings, folder)
        scores, rates = scores_table(trained), rates_table(trained)
        summary = summarise(scores)

        results = results_folder("sgd")
        write_parquet(results / "scores.parquet", scores)
        write_csv(results / "learning_rates.csv", rates)
        write_sources(trained.sources)
        metrics = metrics_of(summary)
        if params.is_text:
            bits = bits_a_byte(scores, "epochs", images.bytes_per_token)
            run.log_metrics(add_bits(metrics, bits, "epochs", prefix="sgd_"))
        write_json(results / "metrics.json", metrics)
        run.log_table(scores, "scores")
        run.log_table(rates, "learning_rates")
        _log_metrics(run, summary)
    clear_task_cache(folder)
    if params.is_text:
        print_bits("Bits per byte of test text after training from random initialisation", bits, "epochs")
    _print_summary(summary)


def first_candidates(store: ArchitectureStore, split: str, number: int, params: Params) -> list[Candidate]:
    """Return the first architectures of a split, at the width at which they are evaluated.

    Raises:
        UserError: there are not so many.
    """
    stored = len(store[split])
    if number > stored:
        setting = "sources" if split == SOURCE_SPLIT else f"architectures.{split}"
        raise UserError(f"sgd.{setting} = {number}: must be at most {stored}, as split {split} has that many")
    return candidates_of(split, store.networks(split, number), params.evaluate, params.images.size)


def setup_of(params: Params, images: Images) -> SgdSetup:
    """Return what all runs share."""
    return SgdSetup(
        images=images.place,
        images_hash=images.settings_hash,
        held_out=params.sgd.held_out,
        augmentation=Augmentation(params.images.shift, params.images.flip),
        batch=params.sgd.batch,
        converged_at=params.sgd.converged_at,
        test_images=params.evaluate.images,
        test_batch=params.evaluate.batch,
        storage=storage_root(params.storage),
        seed=params.seed,
    )


# Tables


def scores_table(trained: TrainedNetworks) -> DataFrame[SgdScores]:
    """Return a row for each network and budget."""
    chosen = trained.chosen
    rows = [{**network, **chosen[network["epochs"]]._asdict()} for network in trained.networks]
    table = pd.DataFrame(rows).rename(columns={"is_inside": "rate_is_inside"})
    return SgdScores.validate(table)[list(SgdScores.to_schema().columns)]


def rates_table(trained: TrainedNetworks) -> DataFrame[SgdLearningRates]:
    """Return a row for each budget and learning rate that was tried, rates in increasing order."""
    rows = [{"epochs": epochs, **rate} for epochs, rate in tried_rates(trained.rates)]
    return SgdLearningRates.validate(pd.DataFrame(rows))


def summarise(scores: DataFrame[SgdScores]) -> pd.DataFrame:
    """Return a row for each (split, epochs), in the order of the table, over the split's networks.

    `top1_error` is the standard error of `top1`, missing for a single network; `converged` the share of the networks
    that converged. All other figures are means.
    """
    groups = scores.groupby(["split", "epochs"], sort=False)
    return pd.DataFrame(
        {
            "networks": groups.size(),
            "learning_rate": groups["learning_rate"].first(),
            "top1": groups["top1"].mean(),
            "top1_error": groups["top1"].sem(),
            "running_top1": groups["running_top1"].mean(),
            "noisy_top1": groups["noisy_top1"].mean(),
            "converged": groups["convergence_steps"].count() / groups.size(),
            "train_seconds": groups["train_seconds"].mean(),
        }
    ).reset_index()


def metrics_of(summary: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the mean accuracies and the mean seconds of training, by split and budget."""
    metrics: dict[str, dict[str, float]] = {}
    for row in summary.to_dict("records"):
        metrics.setdefault(row["split"], {}).update(_figures(row))
    return metrics


def _figures(row: dict[Hashable, Any]) -> Iterator[tuple[str, float]]:
    """Yield the figures of a row of the summary, by names such as `sgd_3_top1`, after 3 epochs."""
    for figure in ("top1", "running_top1", "noisy_top1", "train_seconds"):
        yield f"sgd_{row['epochs']}_{figure}", row[figure]


def _log_metrics(run: StageRun, summary: pd.DataFrame) -> None:
    """Log all figures; the mean accuracies on split test are headline figures."""
    for row in summary.to_dict("records"):
        figures = {f"{row['split']}_{name}": value for name, value in _figures(row)}
        run.log_metrics(figures)
        if row["split"] == "test":
            run.summary({f"test_sgd_{row['epochs']}_top1": row["top1"]})


def _print_summary(summary: pd.DataFrame) -> None:
    rows = [
        {
            "split": "sources" if row.split == SOURCE_SPLIT else row.split,
            "n": str(row.networks),
            "epochs": str(row.epochs),
            "rate": f"{row.learning_rate:g}",
            "top-1": percent(row.top1, row.top1_error),
            "running": percent(row.running_top1),
            "noisy": percent(row.noisy_top1),
            "converged": f"{row.converged:.0%}",
            "s": f"{row.train_seconds:.1f}",
        }
        for row in summary.itertuples()
    ]
    print_table("Test accuracy in % after training from random initialisation", rows)
