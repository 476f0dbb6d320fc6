"""Which worker computes which part of a meta-batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ghn.training.cost_model import hypernetwork_seconds

MICRO_BATCH_SIZE = 8
"""Architectures whose parameters are predicted together, at most: what the hypernetwork's memory grows with."""


@dataclass(frozen=True)
class Assignment:
    """What a worker computes of a part, by positions in the meta-batch.

    The parameters of all its architectures are predicted together, which makes them the same to the last digit whoever
    computes them; `mine` are the positions whose target networks the worker then runs. `number` is the part's.
    """

    number: int
    part: list[int]
    mine: list[int]


def count_micro_batches(meta_batch: int, slices: int) -> int:
    """Parts that a meta-batch is cut into: `slices`, or more so that none has more than `MICRO_BATCH_SIZE` architectures."""
    return min(meta_batch, max(slices, math.ceil(meta_batch / MICRO_BATCH_SIZE)))


def assigns_whole_micro_batches(workers: int, slices: int) -> bool:
    """Whether so many workers compute whole parts each, or else share the networks within parts."""
    return workers <= slices


def assign_meta_batch(
    costs: Sequence[float], nodes: Sequence[int], workers: int, slices: int
) -> list[list[Assignment]]:
    """For each worker what it computes of a meta-batch, so that all have about as much to do.

    The parts that it is cut into do not depend on the workers. Up to `slices` workers share whole parts: the gradient
    of a part is then the same to the last digit whoever computes it. More of them share the networks within parts, and
    their gradients add up to the same but for the rounding.

    Args:
        costs: predicted seconds of each target network.
        nodes: of each graph.
    """
    parts = assign_greedily(costs, count_micro_batches(len(costs), slices), most=MICRO_BATCH_SIZE)
    part_of = {position: number for number, part in enumerate(parts) for position in part}
    prediction = [hypernetwork_seconds(sum(nodes[position] for position in part)) for part in parts]

    def seconds(positions: set[int]) -> float:
        touched = {part_of[position] for position in positions}
        return sum(costs[position] for position in positions) + sum(prediction[number] for number in touched)

    whole = assign_greedily([seconds(set(part)) for part in parts], workers)
    chosen = [{position for number in numbers for position in parts[number]} for numbers in whole]
    if not assigns_whole_micro_batches(workers, slices):
        _rebalance(chosen, seconds)
    return [
        [
            Assignment(number, part, mine)
            for number, part in enumerate(parts)
            if (mine := [p for p in part if p in positions])
        ]
        for positions in chosen
    ]


def _rebalance(shares: list[set[int]], seconds: Callable[[set[int]], float]) -> None:
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


def assign_greedily(costs: Sequence[float], workers: int, most: int | None = None) -> list[list[int]]:
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
