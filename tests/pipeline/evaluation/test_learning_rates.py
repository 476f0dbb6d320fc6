from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.learning_rates import ChosenRate, best_rate, next_rate, rate_ladder, search_rates

LIMITS = (0.0001, 10)
Pairs = Sequence[tuple[str, float]]


def test_a_search_goes_on_by_the_ratio_of_the_given_rates_up_to_the_limits() -> None:
    assert rate_ladder([0.01, 0.03, 0.1], 0.001, 10) == [0.001, 0.0032, 0.01, 0.03, 0.1, 0.32, 1.0, 3.2, 10.0]
    assert rate_ladder([0.1, 1.0], 0.001, 10) == [0.001, 0.01, 0.1, 1.0, 10.0]
    assert rate_ladder([0.03, 0.1], 0.03, 0.1) == [0.03, 0.1]
    assert rate_ladder([0.05], *LIMITS) == [0.05]


def test_the_best_rate_is_inside_if_a_smaller_and_a_larger_one_are_no_better() -> None:
    assert best_rate({0.01: 0.1, 0.1: 0.3, 1.0: 0.2}) == ChosenRate(0.1, is_inside=True)
    assert best_rate({0.01: 0.4, 0.1: 0.3, 1.0: 0.2}) == ChosenRate(0.01, is_inside=False)
    assert best_rate({0.1: 0.5}) == ChosenRate(0.1, is_inside=False)


def test_of_rates_that_are_equally_good_one_inside_is_chosen_and_then_the_smallest() -> None:
    assert best_rate({0.01: 0.5, 0.1: 0.5, 1.0: 0.5}) == ChosenRate(0.1, is_inside=True)
    assert best_rate({0.01: 0.5, 0.1: 0.5}) == ChosenRate(0.01, is_inside=False)
    assert best_rate({1.0: 0.5, 0.1: 0.5, 10.0: 0.5, 0.01: 0.1}) == ChosenRate(0.1, is_inside=True)


def test_the_next_rate_is_beyond_the_best_one_in_its_direction() -> None:
    ladder = [0.01, 0.1, 1.0, 10.0]
    assert next_rate(ladder, {0.1: 0.3, 1.0: 0.5}) == 10.0
    assert next_rate(ladder, {0.1: 0.5, 1.0: 0.3}) == 0.01
    assert next_rate(ladder, {0.01: 0.5, 0.1: 0.4}) is None
    assert next_rate(ladder, {0.01: 0.3, 0.1: 0.4, 1.0: 0.4}) is None
    assert next_rate([0.1], {0.1: 0.4}) is None


@given(best=st.floats(-5, 2), width=st.floats(0.3, 3))
def test_a_search_finds_the_best_rate_of_any_curve_with_one_summit(best: float, width: float) -> None:
    def measure(pairs: Pairs) -> dict[tuple[str, float], float]:
        return {(key, rate): float(np.exp(-(((np.log10(rate) - best) / width) ** 2))) for key, rate in pairs}

    tried = search_rates(["a"], [0.03, 0.1], LIMITS, measure)["a"]
    ladder = rate_ladder([0.03, 0.1], *LIMITS)
    wanted = min(ladder, key=lambda rate: abs(np.log10(rate) - best))
    chosen = best_rate(tried)
    assert chosen.learning_rate == pytest.approx(wanted)
    assert chosen.is_inside == (wanted not in (ladder[0], ladder[-1]))


def test_each_key_is_searched_on_its_own_and_no_rate_is_measured_twice() -> None:
    rounds: list[Pairs] = []
    accuracies = {"rises": lambda rate: rate, "falls": lambda rate: -rate, "diverges": lambda rate: 0.1}

    def measure(pairs: Pairs) -> dict[tuple[str, float], float]:
        rounds.append(pairs)
        return {(key, rate): accuracies[key](rate) for key, rate in pairs}

    tried = search_rates(list(accuracies), [0.1, 1.0], (0.001, 100), measure)
    assert {key: sorted(rates) for key, rates in tried.items()} == {
        "rises": [0.1, 1.0, 10.0, 100.0],
        "falls": [0.001, 0.01, 0.1, 1.0],
        "diverges": [0.01, 0.1, 1.0],
    }
    measured = [pair for pairs in rounds for pair in pairs]
    assert len(measured) == len(set(measured))
    assert len(rounds) == 3
    assert not best_rate(tried["rises"]).is_inside
