"""Which architectures a step holds, and who computes which.

Everything drawn is a function of (seed, step) alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ghn.architectures import Architecture
from ghn.costs import hypernetwork_seconds
from ghn.sampling import training_widths

ARCHITECTURES = 101
"""What random numbers are for: part of the key, so that no two uses share a stream."""

SLICE = 8
"""Architectures whose parameters are predicted together, at most: what the hypernetwork's memory grows with."""


@dataclass(frozen=True)
class TrainingSet:
    """What drawing a meta-batch needs to know of the training architectures: arrays (count,) and a reader."""

    nodes: np.ndarray
    parameters: np.ndarray
    read: Callable[[int], Architecture]


@dataclass(frozen=True)
class Drawn:
    """One architecture of a meta-batch, with its training widths; `index` is its place in the training set."""

    index: int
    architecture: Architecture


def draw_meta_batch(
    training_set: TrainingSet,
    seed: int,
    step: int,
    meta_batch: int,
    widths: Sequence[int],
    head_widths: Sequence[int],
    max_nodes: int,
) -> list[Drawn]:
    """The architectures of a step.

    A draw with more than `max_nodes` graph nodes in all is drawn again; beyond 8 architectures, in proportion.

    Raises:
        ValueError: a hundred draws in a row were too large.
    """
    count = len(training_set.nodes)
    for attempt in range(100):
        rng = np.random.Generator(
            np.random.Philox(np.random.SeedSequence(seed, spawn_key=(ARCHITECTURES, step, attempt)))
        )
        indices = rng.choice(count, meta_batch, replace=meta_batch > count)
        if training_set.nodes[indices].sum() <= max_nodes * max(1, meta_batch / 8):
            break
    else:
        raise ValueError(f"max_nodes = {max_nodes}: too few for {meta_batch} architectures a step")
    drawn = []
    for index, draw in zip(indices.tolist(), rng.random((meta_batch, 2)), strict=True):
        architecture = training_set.read(index)
        architecture = training_widths(architecture, training_set.parameters[index], widths, head_widths, draw)
        drawn.append(Drawn(index, architecture))
    return drawn


@dataclass(frozen=True)
class Share:
    """What a worker computes of a part, by positions in the meta-batch.

    The parameters of all its architectures are predicted together, which makes them the same to the last digit whoever
    computes them; `mine` are the positions whose target networks the worker then runs. `number` is the part's.
    """

    number: int
    part: list[int]
    mine: list[int]


def count_parts(meta_batch: int, slices: int) -> int:
    """Parts that a meta-batch is cut into: `slices`, or more so that none has more than `SLICE` architectures."""
    return min(meta_batch, max(slices, math.ceil(meta_batch / SLICE)))


def shares_whole_parts(workers: int, slices: int) -> bool:
    """Whether so many workers compute whole parts each, or else share the networks within parts."""
    return workers <= slices


def share_meta_batch(costs: Sequence[float], nodes: Sequence[int], workers: int, slices: int) -> list[list[Share]]:
    """For each worker what it computes of a meta-batch, so that all have about as much to do.

    The parts that it is cut into do not depend on the workers. Up to `slices` workers share whole parts: the gradient
    of a part is then the same to the last digit whoever computes it. More of them share the networks within parts, and
    their gradients add up to the same but for the rounding.

    Args:
        costs: predicted seconds of each target network.
        nodes: of each graph.
    """
    parts = share_out(costs, count_parts(len(costs), slices), most=SLICE)
    part_of = {position: number for number, part in enumerate(parts) for position in part}
    prediction = [hypernetwork_seconds(sum(nodes[position] for position in part)) for part in parts]

    def seconds(positions: set[int]) -> float:
        touched = {part_of[position] for position in positions}
        return sum(costs[position] for position in positions) + sum(prediction[number] for number in touched)

    whole = share_out([seconds(set(part)) for part in parts], workers)
    chosen = [{position for number in numbers for position in parts[number]} for numbers in whole]
    if not shares_whole_parts(workers, slices):
        _even_out(chosen, seconds)
    return [
        [
            Share(number, part, mine)
            for number, part in enumerate(parts)
            if (mine := [p for p in part if p in positions])
        ]
        for positions in chosen
    ]


def _even_out(shares: list[set[int]], seconds: Callable[[set[int]], float]) -> None:
    """Moves positions, one at a time, from whoever has most to do to whoever has least, as long as that helps."""
    loads = [seconds(share) for share in shares]
    while True:
        slow, fast = loads.index(max(loads)), loads.index(min(loads))
        options = [
            (
                max(less := seconds(shares[slow] - {position}), more := seconds(shares[fast] | {position})),
                position,
                less,
                more,
            )
            for position in sorted(shares[slow])
        ]
        best, position, less, more = min(options, default=(math.inf, 0, 0.0, 0.0))
        if best >= loads[slow]:
            return
        shares[slow].remove(position)
        shares[fast].add(position)
        loads[slow], loads[fast] = less, more


def share_out(costs: Sequence[float], workers: int, most: int | None = None) -> list[list[int]]:
    """For each worker the positions that it computes: the costliest first, each to whoever has least to do.

    None has more than `most` of them (None: no limit), for which the workers have to be enough.
    """
    shares: list[list[int]] = [[] for _ in range(workers)]
    load = [0.0] * workers
    for position in sorted(range(len(costs)), key=lambda p: -costs[p]):
        free = [worker for worker in range(workers) if most is None or len(shares[worker]) < most]
        worker = min(free, key=load.__getitem__)
        shares[worker].append(position)
        load[worker] += costs[position]
    return [sorted(positions) for positions in shares]
