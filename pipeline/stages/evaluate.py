"""Stage `evaluate`: how well networks classify with predicted parameters, beside random initialisation.

Every architecture of the splits below is measured on all test images, in parallel over the whole cluster. The
result is a function of the architecture, the checkpoint and the settings, not of the workers. Finished
architectures are kept under the storage, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import pandas as pd
import ray
import torch
from torch import Tensor

from ghn.models.hypernetwork import Hypernetwork
from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.cached_tasks import clear_task_cache, read_task_cache, run_cached_tasks, task_cache_folder
from pipeline.cluster.ray_cluster import capacity, ray_cluster
from pipeline.console import percent, print_table
from pipeline.evaluation.networks import Candidate, candidates_of, fresh_module, require_fit, seed_of, trained_ghn
from pipeline.evaluation.scores import score
from pipeline.images.batches import evaluation_batches
from pipeline.images.dataset import Images
from pipeline.images.load import load_images
from pipeline.images.subsets import digest, in_memory
from pipeline.params import Params, settings_hash
from pipeline.results import results_folder
from pipeline.storage.tables import write_csv, write_json, write_parquet
from pipeline.tracking.mlflow_runs import stage_run

log = logging.getLogger(__name__)

SPLITS = ("test", "wide", "deep", "dense", "bn_free", "predefined")

EVALUATION_FORMAT = 1  # part of the settings hash: raise it whenever the same inputs would be measured differently
ARCHITECTURES_A_TASK = 8  # at most
GPU_SHARE = 0.25  # of a GPU for a task, where there are GPUs: one such network leaves most of a GPU idle


def evaluate(params: Params) -> None:
    """Measures all architectures of `SPLITS` and writes `results/evaluate/`.

    Raises UserError if the checkpoint is missing, damaged, or made for other images.
    """
    with stage_run("evaluate", params.model_dump(), experiment=params.tracking.experiment) as run:
        ghn, checkpoint = trained_ghn()
        images = test_images(params)
        require_fit(ghn, images, params.images.size)
        store = ArchitectureStore(params.storage)
        run.log_data("architectures", store.digest)
        run.log_data(images.name, images.settings_hash)
        candidates = [
            candidate
            for split in SPLITS
            for candidate in candidates_of(split, store.networks(split), params.evaluate, params.images.size)
        ]
        settings = [EVALUATION_FORMAT, checkpoint, digest(images), params.evaluate.model_dump(), params.seed]
        folder = task_cache_folder(params.storage, "evaluations", settings)
        with ray_cluster(params.cluster.address, params.cluster.cpus):
            rows = measure_all(candidates, ghn, images, params.evaluate.batch, params.seed, folder)
        architectures = architectures_table(rows)
        summary = summarise(architectures)

        results = results_folder("evaluate")
        write_parquet(results / "architectures.parquet", architectures)
        write_csv(results / "summary.csv", summary)
        write_json(results / "metrics.json", metrics_of(summary))
        run.log_table(architectures, "architectures")
        run.log_table(summary, "summary")
        run.summary({f"{row.split}_top1": row.predicted_top1 for row in summary.itertuples()})
        run.log_metrics({f"{row.split}_random_top1": row.random_top1 for row in summary.itertuples()})
        run.log_metrics({f"{row.split}_nonfinite": row.nonfinite for row in summary.itertuples()})
    clear_task_cache(folder)
    _print_summary(summary)


def test_images(params: Params) -> Images:
    """The data set of the pipeline with its train part left out, in memory."""
    images = load_images(params.dataset, params.images, params.storage)
    return replace(images, train=in_memory(images.train, []), test=in_memory(images.test))


def measure_all(
    candidates: Sequence[Candidate], ghn: Hypernetwork, images: Images, batch: int, seed: int, folder: str
) -> list[dict[str, Any]]:
    """A row for each candidate, in their order: measured on the cluster, or found in `folder`.

    Needs a connection to Ray.
    """
    done = {_key_of(row): row for rows in read_task_cache(folder).values() for row in rows}
    todo = [candidate for candidate in candidates if candidate.key not in done]
    if len(todo) < len(candidates):
        before = len(candidates) - len(todo)
        log.info("%d of %d architectures were evaluated before: kept in %s", before, len(candidates), folder)
    size, classes = images.test.side, len(images.classes)
    groups = group_by_cost(todo, [candidate.network.program(size, classes).flops for candidate in todo])
    shared = (ray.put(ghn.cpu()), ray.put(images))
    finished = run_cached_tasks(
        measure_group,
        {settings_hash([c.key for c in group]): (group, *shared, batch, seed) for group in groups},
        folder,
        description="evaluate",
        unit="architecture",
        amounts=[len(group) for group in groups],
        num_gpus=GPU_SHARE if capacity()["GPU"] else 0,
    )
    for _, rows in finished:
        done |= {_key_of(row): row for row in rows}
    return [done[candidate.key] for candidate in candidates]


def _key_of(row: dict[str, Any]) -> tuple[str, int, str]:
    return row["split"], row["index"], row["identity"]


def group_by_cost(candidates: Sequence[Candidate], costs: Sequence[int]) -> list[list[Candidate]]:
    """Groups of candidates of similar cost, the most expensive first: the last ones end together.

    A group has at most `ARCHITECTURES_A_TASK` candidates, and costs at most what the most expensive one does.
    """
    groups: list[list[Candidate]] = []
    limit, spent = max(costs, default=0), 0
    for position in sorted(range(len(candidates)), key=lambda position: -costs[position]):
        spent += costs[position]
        if not groups or spent > limit or len(groups[-1]) == ARCHITECTURES_A_TASK:
            groups.append([])
            spent = costs[position]
        groups[-1].append(candidates[position])
    return groups


def measure_group(
    candidates: Sequence[Candidate], ghn: Hypernetwork, images: Images, batch: int, seed: int
) -> list[dict[str, Any]]:
    """A row for each candidate."""
    return [measure(candidate, ghn, images, batch, seed) for candidate in candidates]


@torch.no_grad()
def measure(candidate: Candidate, ghn: Hypernetwork, images: Images, batch: int, seed: int) -> dict[str, Any]:
    """The row of one architecture.

    It is predicted alone, so that no other architecture can change its last digits.
    """
    start = time.perf_counter()
    network, size, classes = candidate.network, images.test.side, len(images.classes)
    program = network.program(size, classes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ghn.to(device)

    def predicted() -> Callable[[Tensor], Tensor]:
        (parameters,) = ghn.predict_parameters([network], size, classes)
        return lambda x_BCSS: network.forward(parameters, x_BCSS)

    def random() -> Callable[[Tensor], Tensor]:
        module = fresh_module(network, size, classes, seed_of(seed, candidate.split, candidate.index))
        return module.to(device).eval()

    # One after the other, so that the parameters of one network are in memory at a time.
    predicted_scores = score(predicted(), evaluation_batches(images.test, images, batch), device)
    random_scores = score(random(), evaluation_batches(images.test, images, batch), device)
    return {
        "split": candidate.split,
        "index": candidate.index,
        "name": candidate.name,
        "identity": candidate.network_hash,
        "parameters": program.num_parameters,
        "nodes": len(program.graph.nodes),
        **{f"predicted_{name}": value for name, value in asdict(predicted_scores).items()},
        **{f"random_{name}": value for name, value in asdict(random_scores).items()},
        "seconds": time.perf_counter() - start,
    }


def architectures_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row an architecture; a loss that is not finite is missing."""
    return pd.DataFrame(rows).astype({"predicted_loss": float, "random_loss": float})


def summarise(architectures: pd.DataFrame) -> pd.DataFrame:
    """A row a split: mean, standard error and maximum over its architectures.

    `nonfinite` counts the architectures whose loss with predicted parameters is not finite. A split of one
    architecture has no standard error.
    """
    splits = architectures.groupby("split", sort=False)
    predicted, random = splits["predicted_top1"], splits["random_top1"]
    summary = {
        "architectures": splits.size(),
        "predicted_top1": predicted.mean(),
        "predicted_top1_error": predicted.sem(),
        "predicted_top1_max": predicted.max(),
        "predicted_top5": splits["predicted_top5"].mean(),
        "random_top1": random.mean(),
        "random_top1_error": random.sem(),
        "random_top1_max": random.max(),
        "random_top5": splits["random_top5"].mean(),
        "nonfinite": architectures["predicted_loss"].isna().groupby(architectures["split"]).sum(),
    }
    return pd.DataFrame(summary).loc[list(splits.groups)].rename_axis("split").reset_index()


def metrics_of(summary: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The headline figures of each split."""
    columns = ("predicted_top1", "predicted_top1_max", "random_top1", "nonfinite")
    return {row["split"]: {name: row[name] for name in columns} for row in summary.to_dict("records")}


def _print_summary(summary: pd.DataFrame) -> None:
    rows = [
        {
            "split": row.split,
            "networks": str(row.architectures),
            "predicted": percent(row.predicted_top1, row.predicted_top1_error),
            "best": percent(row.predicted_top1_max),
            "top-5": percent(row.predicted_top5),
            "random": percent(row.random_top1, row.random_top1_error),
            "best ": percent(row.random_top1_max),
        }
        for row in summary.itertuples()
    ]
    print_table("Top-1 in % with predicted parameters and with random initialisation", rows)
    if summary["nonfinite"].any():
        counts = (summary["nonfinite"].sum(), summary["architectures"].sum())
        log.warning("%d of %d networks: no finite loss with predicted parameters", *counts)
