"""Measuring networks on test images in each initialisation, in tasks on the cluster."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

import ray
import torch

from ghn.models.hypernetwork import Hypernetwork
from pipeline.cluster.cached_tasks import read_task_cache, run_cached_tasks
from pipeline.cluster.ray_cluster import capacity
from pipeline.evaluation.initialisations import Initialisation, InitialisationContext, initialised_module
from pipeline.evaluation.networks import GPU_SHARE, Candidate, seed_of
from pipeline.evaluation.scores import score
from pipeline.images.batches import evaluation_batches
from pipeline.images.dataset import Images
from pipeline.params import settings_hash

log = logging.getLogger(__name__)

ARCHITECTURES_PER_TASK = 8  # at most


class Measurement(TypedDict):
    """One network in one initialisation, as JSON: a row of `pipeline.evaluation.tables.ArchitectureScores`."""

    split: str
    index: int
    name: str
    identity: str
    parameters: int
    nodes: int
    initialisation: str
    top1: float
    top5: float
    loss: float | None
    seconds: float


def measure_all(
    candidates: Sequence[Candidate],
    initialisations: Mapping[str, Initialisation],
    ghn: Hypernetwork,
    images: Images,
    batch: int,
    seed: int,
    folder: str,
) -> list[Measurement]:
    """Return the measurements of each candidate in each initialisation, in their order.

    Those that an interrupted run has left in `folder` are read from there. The others are measured on the cluster, to
    which this process must be connected. The tasks get the initialisations' functions, because a worker process knows
    no entry that was added to the registry of this process.

    Args:
        batch: images per batch.
        seed: of the pipeline; with split and index it determines the random initialisation.
        folder: where finished tasks keep their measurements.
    """
    done = _by_candidate(row for rows in read_task_cache(folder).values() for row in rows)
    todo = [candidate for candidate in candidates if candidate.key not in done]
    if len(todo) < len(candidates):
        before = len(candidates) - len(todo)
        log.info("%d of %d architectures were evaluated before: kept in %s", before, len(candidates), folder)
    size, classes = images.test.side, len(images.classes)
    groups = group_by_cost(todo, [candidate.network.program(size, classes).flops for candidate in todo])
    shared = (dict(initialisations), ray.put(ghn.cpu()), ray.put(images))
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
        done |= _by_candidate(rows)
    return [row for candidate in candidates for row in done[candidate.key]]


def _by_candidate(rows: Iterable[Measurement]) -> dict[tuple[str, int, str], list[Measurement]]:
    by_candidate = defaultdict(list)
    for row in rows:
        by_candidate[row["split"], row["index"], row["identity"]].append(row)
    return by_candidate


def group_by_cost(candidates: Sequence[Candidate], costs: Sequence[int]) -> list[list[Candidate]]:
    """Return groups of candidates of similar cost, the most expensive first, so that the last ones end together.

    A group has at most `ARCHITECTURES_PER_TASK` candidates. It costs at most as much as the most expensive candidate.
    """
    groups: list[list[Candidate]] = []
    limit, spent = max(costs, default=0), 0
    for position in sorted(range(len(candidates)), key=lambda position: -costs[position]):
        spent += costs[position]
        if not groups or spent > limit or len(groups[-1]) == ARCHITECTURES_PER_TASK:
            groups.append([])
            spent = costs[position]
        groups[-1].append(candidates[position])
    return groups


def measure_group(
    candidates: Sequence[Candidate],
    initialisations: Mapping[str, Initialisation],
    ghn: Hypernetwork,
    images: Images,
    batch: int,
    seed: int,
) -> list[Measurement]:
    """Return the measurements of several candidates, one candidate after the other."""
    return [row for candidate in candidates for row in measure(candidate, initialisations, ghn, images, batch, seed)]


@torch.no_grad()
def measure(
    candidate: Candidate,
    initialisations: Mapping[str, Initialisation],
    ghn: Hypernetwork,
    images: Images,
    batch: int,
    seed: int,
) -> list[Measurement]:
    """Return a measurement of a candidate for each initialisation, on all test images.

    Args:
        batch: images per batch.
        seed: of the pipeline; with split and index it determines the random initialisation.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    context = InitialisationContext(
        ghn.to(device), images.test.side, len(images.classes), seed_of(seed, candidate.split, candidate.index)
    )
    program = candidate.network.program(context.image_size, context.classes)
    rows = []
    for name, initialisation in initialisations.items():
        start = time.perf_counter()
        module = initialised_module(initialisation, candidate.network, context).to(device).eval()
        scores = score(module, evaluation_batches(images.test, images, batch), device)
        del module  # the parameters of two initialisations are never in memory together
        rows.append(
            Measurement(
                split=candidate.split,
                index=candidate.index,
                name=candidate.name,
                identity=candidate.network_hash,
                parameters=program.num_parameters,
                nodes=len(program.graph.nodes),
                initialisation=name,
                top1=scores.top1,
                top5=scores.top5,
                loss=scores.loss,
                seconds=time.perf_counter() - start,
            )
        )
    return rows
