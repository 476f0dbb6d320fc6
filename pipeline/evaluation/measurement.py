"""Measuring networks on test images in each initialisation, in tasks on the cluster."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import ray
import torch

from ghn.models.hypernetwork import Hypernetwork
from pipeline.cluster.cached_tasks import read_task_cache, run_cached_tasks
from pipeline.evaluation.initialisations import Initialisation, InitialisationContext, initialised_module
from pipeline.evaluation.networks import Candidate, NetworkRow, available_device, gpus_of_task, network_row, seed_of
from pipeline.evaluation.running_statistics import score_with_running_statistics, statistics_images
from pipeline.evaluation.scores import score
from pipeline.images.batches import evaluation_batches
from pipeline.images.dataset import Images
from pipeline.images.subsets import in_memory, without_train_part
from pipeline.params import EvaluateSettings, settings_hash

log = logging.getLogger(__name__)

ARCHITECTURES_PER_TASK = 8  # at most


class Measurement(NetworkRow):
    """One network in one initialisation, as JSON: a row of `pipeline.evaluation.tables.ArchitectureScores`."""

    initialisation: str
    top1: float
    top5: float
    loss: float | None
    running_top1: float | None
    initialise_seconds: float
    seconds: float


Row = TypeVar("Row", bound=Measurement)


def measured_images(images: Images, settings: EvaluateSettings) -> Images:
    """Return the data set in memory, with the test images that are measured.

    Its train part has the images that running statistics are estimated from, none if they are not measured.
    """
    train = in_memory(images.train, []) if settings.running_statistics == 0 else statistics_images(images.train)
    return replace(without_train_part(images, settings.images), train=train)


def measure_all(
    candidates: Sequence[Candidate],
    initialisations: Mapping[str, Initialisation],
    ghn: Hypernetwork,
    images: Images,
    settings: EvaluateSettings,
    seed: int,
    folder: str,
) -> list[Measurement]:
    """Return the measurements of each candidate in each initialisation, in their order.

    See `measure_in_groups`. The tasks get the initialisations' functions, because a worker process knows no entry that
    was added to the registry of this process.

    Args:
        images: those of the train part are what running statistics are estimated from.
        settings: those of the stage.
        seed: of the pipeline; with split and index it determines the random initialisation.
        folder: where finished tasks keep their measurements.
    """
    size, classes = images.test.side, len(images.classes)
    shared = (dict(initialisations), ray.put(ghn.cpu()), ray.put(images), settings, seed)
    return measure_in_groups(measure_group, candidates, shared, size, classes, folder, description="evaluate")


def measure_in_groups(
    function: Callable[..., list[Row]],
    candidates: Sequence[Candidate],
    shared: tuple,
    image_size: int,
    classes: int,
    folder: str,
    description: str,
) -> list[Row]:
    """Return what `function(group, *shared)` measures of groups of candidates, in the order of the candidates.

    Candidates that an interrupted run has left in `folder` are read from there. The others are measured on the cluster,
    to which this process must be connected.

    Args:
        shared: arguments that are the same for all groups; large ones as references of Ray.
        folder: where finished tasks keep their measurements.
        description: of the progress bar.
    """
    done = _by_candidate(row for rows in read_task_cache(folder).values() for row in rows)
    todo = [candidate for candidate in candidates if candidate.key not in done]
    if len(todo) < len(candidates):
        before = len(candidates) - len(todo)
        log.info("%d of %d architectures were measured before: kept in %s", before, len(candidates), folder)
    groups = group_by_cost(todo, [candidate.network.program(image_size, classes).flops for candidate in todo])
    finished = run_cached_tasks(
        function,
        {settings_hash([candidate.key for candidate in group]): (group, *shared) for group in groups},
        folder,
        description=description,
        unit="architecture",
        amounts=[len(group) for group in groups],
        num_gpus=gpus_of_task(),
    )
    for _, rows in finished:
        done |= _by_candidate(rows)
    return [row for candidate in candidates for row in done[candidate.key]]


def _by_candidate(rows: Iterable[Row]) -> dict[tuple[str, int, str], list[Row]]:
    by_candidate = defaultdict(list)
    for row in rows:
        by_candidate[row["split"], row["index"], row["identity"]].append(row)
    return dict(by_candidate)


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
    settings: EvaluateSettings,
    seed: int,
) -> list[Measurement]:
    """Return the measurements of several candidates, one candidate after the other."""
    return [row for candidate in candidates for row in measure(candidate, initialisations, ghn, images, settings, seed)]


@torch.no_grad()
def measure(
    candidate: Candidate,
    initialisations: Mapping[str, Initialisation],
    ghn: Hypernetwork,
    images: Images,
    settings: EvaluateSettings,
    seed: int,
) -> list[Measurement]:
    """Return a measurement of a candidate for each initialisation, on all test images.

    The first candidates of a split are measured with running statistics too, as the settings say.

    Args:
        images: those of the train part are what running statistics are estimated from.
        settings: those of the stage.
        seed: of the pipeline; with split and index it determines the random initialisation.
    """
    device = available_device()
    context = InitialisationContext(
        ghn.to(device), images.test.side, len(images.classes), seed_of(seed, candidate.split, candidate.index)
    )
    program = candidate.network.program(context.image_size, context.classes)
    rows = []
    for name, initialisation in initialisations.items():
        start = time.perf_counter()
        module = initialised_module(initialisation, candidate.network, context).to(device).eval()
        initialise_seconds = time.perf_counter() - start
        scores = score(module, evaluation_batches(images.test, images, settings.batch), device)
        seconds, running_top1 = time.perf_counter() - start, None
        if settings.running_statistics is None or candidate.index < settings.running_statistics:
            running_top1 = score_with_running_statistics(module, images.train, images, settings.batch, device).top1
        del module  # the parameters of two initialisations are never in memory together
        rows.append(
            Measurement(
                **network_row(candidate, program),
                initialisation=name,
                top1=scores.top1,
                top5=scores.top5,
                loss=scores.loss,
                running_top1=running_top1,
                initialise_seconds=initialise_seconds,
                seconds=seconds,
            )
        )
    return rows
