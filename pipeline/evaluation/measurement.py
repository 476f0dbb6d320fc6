"""Measuring networks on test images in each initialisation: the tasks of stage evaluate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch

from ghn.models.hypernetwork import Hypernetwork
from pipeline.evaluation.initialisations import Initialisation, InitialisationContext, initialised_module
from pipeline.evaluation.networks import Candidate, seed_of
from pipeline.evaluation.scores import score
from pipeline.images.batches import evaluation_batches
from pipeline.images.dataset import Images

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
