"""The division of a meta-batch into micro-batches, and of these among the workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ghn.training.cost_model import hypernetwork_seconds

MAX_MICRO_BATCH_SIZE = 8
"""Most architectures of a micro-batch. The hypernetwork's memory grows with it, because it predicts the parameters of
a whole micro-batch together."""


@dataclass(frozen=True)
class Assignment:
    """The work of one worker on one micro-batch.

    `micro_batch` is its number and `positions` are its architectures, as positions in the meta-batch. Every worker of
    the micro-batch predicts the parameters of all of them together, so that they are the same to the last digit on
    each worker. `own` are the positions whose target networks this worker then runs.
    """

    micro_batch: int
    positions: list[int]
    own: list[int]


def count_micro_batches(meta_batch: int, micro_batches: int) -> int:
    """Return how many micro-batches a meta-batch of so many architectures has.

    These are `micro_batches`, or more where one would have more than `MAX_MICRO_BATCH_SIZE` architectures, or fewer
    where one would be empty.
    """
    return min(meta_batch, max(micro_batches, math.ceil(meta_batch / MAX_MICRO_BATCH_SIZE)))


def assigns_whole_micro_batches(workers: int, micro_batches: int) -> bool:
    """Return whether so many workers compute whole micro-batches; if not, they divide the networks of each."""
    return workers <= micro_batches


def assign_meta_batch(
    costs: Sequence[float], nodes: Sequence[int], workers: int, micro_batches: int
) -> list[list[Assignment]]:
    """Return for each worker what it computes of a meta-batch, so that all workers take about equally long.

    The micro-batches do not depend on the number of workers. Up to `micro_batches` workers compute whole micro-batches:
    the gradient of each is then the same to the last digit on any worker. With more workers, several of them divide the
    target networks of a micro-batch. Their gradients add up to the same, except for rounding.

    Args:
        costs: predicted seconds of each target network.
        nodes: number of nodes of each graph.
    """
    batches = assign_greedily(costs, count_micro_batches(len(costs), micro_batches), most=MAX_MICRO_BATCH_SIZE)
    batch_of = {position: number for number, positions in enumerate(batches) for position in positions}
    prediction = [hypernetwork_seconds(sum(nodes[position] for position in positions)) for positions in batches]

    def seconds(own: set[int]) -> float:
        predicted = {batch_of[position] for position in own}
        return sum(costs[position] for position in own) + sum(prediction[number] for number in predicted)

    whole = assign_greedily([seconds(set(positions)) for positions in batches], workers)
    owned = [{position for number in numbers for position in batches[number]} for numbers in whole]
    if not assigns_whole_micro_batches(workers, micro_batches):
        _rebalance(owned, seconds)
    return [
        [
            Assignment(number, positions, own)
            for number, positions in enumerate(batches)
            if (own := [position for position in positions if position in of_worker])
        ]
        for of_worker in owned
    ]


def _rebalance(owned: list[set[int]], seconds: Callable[[set[int]], float]) -> None:
    """Move positions, one at a time, from the slowest worker to the fastest, in place.

    Stop when no move makes the slower of these two take less time.
    """
    loads = [seconds(own) for own in owned]
    while True:
        slow, fast = loads.index(max(loads)), loads.index(min(loads))
        options = [
            (
                max(less := seconds(owned[slow] - {position}), more := seconds(owned[fast] | {position})),
                position,
                less,
                more,
            )
            for position in sorted(owned[slow])
        ]
        best, position, less, more = min(options, default=(math.inf, 0, 0.0, 0.0))
        if best >= loads[slow]:
            return
        owned[slow].remove(position)
        owned[fast].add(position)
        loads[slow], loads[fast] = less, more


def assign_greedily(costs: Sequence[float], bins: int, most: int | None = None) -> list[list[int]]:
    """Return for each of `bins` the positions of its costs, ascending.

    The largest costs are assigned first, each to the bin with the lowest total.

    Args:
        most: how many positions one bin may have (None: any number); `bins` bins must suffice for that.
    """
    assigned: list[list[int]] = [[] for _ in range(bins)]
    load = [0.0] * bins
    for position in sorted(range(len(costs)), key=lambda p: -costs[p]):
        free = [number for number in range(bins) if most is None or len(assigned[number]) < most]
        target = min(free, key=load.__getitem__)
        assigned[target].append(position)
        load[target] += costs[position]
    return [sorted(positions) for positions in assigned]
