"""How similar the nearest training architecture is to each evaluated network, and whether that decides accuracy.

A hypernetwork that only remembers is better on networks that are similar to those of its training. One that generalises
is not.

Dimensions: Q networks that are evaluated, A training architectures, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import pandas as pd
import ray
from pandera.typing import DataFrame

from ghn.models.hypernetwork import Hypernetwork
from ghn.similarity import cosine
from ghn.similarity.weisfeiler_lehman import Features, features, similarities
from pipeline.cluster.cached_tasks import clear_task_cache, read_task_cache, run_cached_tasks, task_cache_folder
from pipeline.cluster.ray_cluster import run_tasks
from pipeline.evaluation.embeddings import NETWORKS_AT_ONCE, StoredArchitectures, embed, stored_embeddings
from pipeline.evaluation.nearest import SIMILARITIES
from pipeline.evaluation.networks import Candidate
from pipeline.evaluation.rank_correlation import interval_of, resample_counts, resampled_rhos, spearman_rho
from pipeline.evaluation.tables import ALL_SPLITS, ArchitectureScores, SimilarityCorrelations, SimilarityToTraining

SIMILARITY_FORMAT = 1  # part of the settings hash: raise it whenever the same inputs would give other similarities

ROWS_IN_TASK = 1000
"""Architectures that a task compares with all networks; they take about a second."""

RESAMPLES = 1000
"""Bootstrap resamples of the networks, whose correlations give an interval."""

FEWEST_NETWORKS = 5
"""Of fewer networks no correlation is computed."""


class Nearest(TypedDict):
    """The similarity of each network to the most similar of some training architectures, and its index, as JSON."""

    similarity: list[float]
    index: list[int]


def similarity_to_training(
    candidates: Sequence[Candidate],
    embeddings_QH: np.ndarray,
    training: StoredArchitectures,
    ghn: Hypernetwork,
    checkpoint: str,
) -> DataFrame[SimilarityToTraining]:
    """Return the nearest training architecture of each candidate, by each similarity.

    This process must be connected to a cluster. Comparisons of an interrupted run are not repeated, nor are embeddings
    of training architectures computed again for the same checkpoint.

    Args:
        embeddings_QH: those of the candidates.
        checkpoint: the digest of the hypernetwork's files.
    """
    found = {
        "wl": nearest_by_kernel(candidates, training),
        "embedding": nearest_by_embedding(embeddings_QH, stored_embeddings(training, ghn, checkpoint)),
    }
    rows = [
        {
            "split": candidate.split,
            "index": candidate.index,
            "by": by,
            "similarity": found[by]["similarity"][number],
            "nearest": found[by]["index"][number],
        }
        for number, candidate in enumerate(candidates)
        for by in SIMILARITIES
    ]
    return SimilarityToTraining.validate(pd.DataFrame(rows))


def nearest_by_kernel(candidates: Sequence[Candidate], training: StoredArchitectures) -> Nearest:
    """Return each candidate's nearest training architecture by the Weisfeiler-Lehman kernel."""
    keys = [candidate.key for candidate in candidates]
    folder = task_cache_folder(training.storage, "similarities", [SIMILARITY_FORMAT, training.origin, keys])
    tables = [candidate.network.node_table(training.image_size, training.classes) for candidate in candidates]
    queries = ray.put(features(tables))
    ranges = {f"{first}-{last}": (first, last) for first, last in training.ranges(ROWS_IN_TASK)}
    done: dict[str, Nearest] = {name: part for name, part in read_task_cache(folder).items() if name in ranges}
    todo = {name: (queries, training, *rows) for name, rows in ranges.items() if name not in done}
    amounts = [ranges[name][1] - ranges[name][0] for name in todo]
    done |= run_cached_tasks(compare_rows, todo, folder, description="compare", unit="architecture", amounts=amounts)
    clear_task_cache(folder)
    parts = [done[name] for name in ranges]
    similarity_PQ, index_PQ = (np.array([part[key] for part in parts]) for key in ("similarity", "index"))
    best_1Q = similarity_PQ.argmax(axis=0)[None]
    return {
        "similarity": np.take_along_axis(similarity_PQ, best_1Q, axis=0)[0].tolist(),
        "index": np.take_along_axis(index_PQ, best_1Q, axis=0)[0].tolist(),
    }


def compare_rows(queries: Features, training: StoredArchitectures, first: int, last: int) -> Nearest:
    """Return the nearest of some training architectures by the Weisfeiler-Lehman kernel, for each query."""
    networks = training.read(first, last)
    tables = [network.node_table(training.image_size, training.classes) for network in networks]
    similarity_QA = similarities(queries, features(tables))
    nearest_Q = similarity_QA.argmax(axis=1)
    return {"similarity": similarity_QA.max(axis=1).tolist(), "index": (first + nearest_Q).tolist()}


def candidate_embeddings(
    candidates: Sequence[Candidate], ghn: Hypernetwork, image_size: int, classes: int
) -> np.ndarray:
    """Return the embeddings of all candidates, float32 (Q, H), computed in tasks on the cluster."""
    shared, networks = ray.put(ghn.cpu()), [candidate.network for candidate in candidates]
    groups = [networks[start : start + NETWORKS_AT_ONCE] for start in range(0, len(networks), NETWORKS_AT_ONCE)]
    tasks = [(group, shared, image_size, classes) for group in groups]
    amounts = [len(group) for group in groups]
    done = dict(run_tasks(embed, tasks, description="embed", unit="architecture", amounts=amounts))
    return np.concatenate([done[number] for number in range(len(groups))])


def nearest_by_embedding(queries_QH: np.ndarray, embeddings_AH: np.ndarray) -> Nearest:
    """Return the nearest training architecture of each candidate by the cosine of embeddings."""
    cosines_Q1, places_Q1 = cosine.nearest(queries_QH, embeddings_AH)
    return {"similarity": cosines_Q1[:, 0].tolist(), "index": places_Q1[:, 0].tolist()}


# Accuracy against similarity


def correlate_accuracy(
    scores: DataFrame[ArchitectureScores], similarity: DataFrame[SimilarityToTraining], seed: int = 0
) -> DataFrame[SimilarityCorrelations]:
    """Return the rank correlation of accuracy with similarity, for each split, initialisation and similarity.

    Split `all` has the networks of all splits.
    """
    joined = scores.merge(similarity, on=["split", "index"])
    joined = pd.concat([joined, joined.assign(split=ALL_SPLITS)])
    rows = []
    for (split, initialisation, by), own in joined.groupby(["split", "initialisation", "by"], sort=False):
        rho, low, high = spearman(own["similarity"].to_numpy(), own["top1"].to_numpy(), seed)
        key = {"split": split, "initialisation": initialisation, "by": by, "architectures": len(own)}
        rows.append(key | {"rho": rho, "low": low, "high": high})
    return SimilarityCorrelations.validate(pd.DataFrame(rows))


def spearman(x_N: np.ndarray, y_N: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Return Spearman's ρ of two values of each network, and the bounds of its 95 % interval by the bootstrap.

    They are not numbers for fewer than `FEWEST_NETWORKS` networks, or if all of x or all of y are equal.
    """
    rho = spearman_rho(x_N, y_N)
    if len(x_N) < FEWEST_NETWORKS or np.isnan(rho):
        return np.nan, np.nan, np.nan
    low, high = interval_of(resampled_rhos(x_N, y_N, resample_counts(len(x_N), RESAMPLES, seed)))
    return rho, low, high
