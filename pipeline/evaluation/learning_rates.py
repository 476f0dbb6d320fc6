"""The search for a learning rate: it goes on until the best one has neighbours on both sides, or a limit is reached.

A given grid can end below the best rate of one initialisation and not of another, which would compare an initialisation
that is tuned with one that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import count, takewhile
from typing import Any, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)


class ChosenRate(NamedTuple):
    """A learning rate, and whether a smaller and a larger one were tried, neither of which was better."""

    learning_rate: float
    is_inside: bool


def rate_ladder(rates: Sequence[float], lowest: float, highest: float) -> list[float]:
    """Return all learning rates that a search may try, in increasing order.

    They are the given rates, and beyond them those within the limits that follow by the mean ratio of neighbours,
    rounded to two digits. A single rate is not searched beyond.

    Args:
        rates: those that a search begins with, in increasing order and within the limits.
        lowest: the smallest rate that is tried.
        highest: the largest one.
    """
    if len(rates) == 1:
        return list(rates)
    ratio = (rates[-1] / rates[0]) ** (1 / (len(rates) - 1))
    below = takewhile(lambda rate: rate >= lowest, _rounded_powers(rates[0], 1 / ratio))
    above = takewhile(lambda rate: rate <= highest, _rounded_powers(rates[-1], ratio))
    return sorted({*below, *rates, *above})


def _rounded_powers(start: float, ratio: float) -> Iterator[float]:
    return (float(f"{start * ratio**power:.2g}") for power in count(1))


def best_rate(accuracies: Mapping[float, float]) -> ChosenRate:
    """Return the learning rate with the highest accuracy.

    Of rates that are equally good it is one with neighbours on both sides, and of those the smallest.
    """
    ends = (min(accuracies), max(accuracies))
    best = max(accuracies, key=lambda rate: (accuracies[rate], rate not in ends, -rate))
    return ChosenRate(best, best not in ends)


def tried_rates(tried: Mapping[Key, Mapping[float, float]]) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Yield the key of each learning rate that was tried and its columns in tables, rates in increasing order.

    Args:
        tried: what `search_rates` returns; accuracies are those on held-out images.
    """
    for key, accuracies in tried.items():
        best = best_rate(accuracies).learning_rate
        for rate in sorted(accuracies):
            yield key, {"learning_rate": rate, "held_out_top1": accuracies[rate], "is_chosen": rate == best}


def rate_rows(tried: Mapping[Any, Mapping[float, float]]) -> list[dict[str, Any]]:
    """Return a row for each learning rate that was tried, where the keys are named tuples: their fields are columns."""
    return [{**key._asdict(), **rate} for key, rate in tried_rates(tried)]


def next_rate(ladder: Sequence[float], accuracies: Mapping[float, float]) -> float | None:
    """Return the learning rate to try next; None if the best one lies inside, or at the end of the ladder.

    Args:
        ladder: all rates that may be tried, in increasing order.
        accuracies: those of the tried rates, which are neighbours on the ladder.
    """
    best, is_inside = best_rate(accuracies)
    if is_inside:
        return None
    place = ladder.index(best)
    neighbours = ladder[max(place - 1, 0) : place + 2]
    return next((rate for rate in neighbours if rate not in accuracies), None)


def search_rates(
    keys: Sequence[Key],
    rates: Sequence[float],
    limits: Sequence[float],
    measure: Callable[[Sequence[tuple[Key, float]]], Mapping[tuple[Key, float], float]],
) -> dict[Key, dict[float, float]]:
    """Return the accuracy of each tried learning rate, for each key; the best is `best_rate`.

    All keys are searched at the same time, in rounds: a round measures the next rate of each key that has one.

    Args:
        keys: what has a learning rate of its own.
        rates: those of the first round, in increasing order.
        limits: the smallest and the largest rate that is tried.
        measure: from (key, rate) pairs to the accuracy of each.
    """
    ladder = rate_ladder(rates, *limits)
    tried: dict[Key, dict[float, float]] = {key: {} for key in keys}
    todo = [(key, rate) for key in keys for rate in rates]
    while todo:
        for (key, rate), accuracy in measure(todo).items():
            tried[key][rate] = accuracy
        candidates = [(key, next_rate(ladder, accuracies)) for key, accuracies in tried.items()]
        todo = [(key, rate) for key, rate in candidates if rate is not None]
    return tried
