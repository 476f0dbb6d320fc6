from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghn.training.schedules import cosine, multi_step, warm_up

BASE = st.floats(1e-8, 10)
STEPS = st.integers(1, 400)
MILESTONES = st.lists(st.floats(0.01, 0.99), max_size=4)


def test_multi_step_falls_at_two_thirds_and_five_sixths_as_published() -> None:
    rates = [multi_step(1e-3, step, 300, (2 / 3, 5 / 6), 0.1) for step in range(300)]
    assert rates == pytest.approx([1e-3] * 200 + [1e-4] * 50 + [1e-5] * 50)


def test_without_milestones_the_rate_stays() -> None:
    assert {multi_step(1e-3, step, 300, (), 0.1) for step in range(300)} == {1e-3}


@given(BASE, STEPS, MILESTONES, st.floats(0.01, 1))
def test_multi_step_never_rises_and_ends_after_all_milestones(
    base: float, steps: int, milestones: list[float], decay: float
) -> None:
    rates = [multi_step(base, step, steps, milestones, decay) for step in range(steps + 1)]
    assert rates[0] == base
    assert all(later <= earlier for earlier, later in pairwise(rates))
    assert rates[-1] == pytest.approx(base * decay ** len(milestones))


@given(BASE, STEPS)
def test_cosine_falls_from_the_base_to_nothing(base: float, steps: int) -> None:
    rates = [cosine(base, step, steps) for step in range(steps + 1)]
    assert rates[0] == base
    assert rates[-1] == pytest.approx(0, abs=1e-12 * base)
    assert all(later < earlier for earlier, later in pairwise(rates))
    assert rates[::-1] == pytest.approx([base - rate for rate in rates])  # as far below the base as above nothing


def test_half_way_a_cosine_is_half_the_base() -> None:
    assert cosine(0.8, 50, 100) == pytest.approx(0.4)


@given(st.integers(1, 200))
def test_a_warm_up_rises_in_equal_steps_to_one_and_stays_there(steps: int) -> None:
    factors = [warm_up(step, steps) for step in range(2 * steps)]
    assert factors[0] == pytest.approx(1 / steps)
    assert all(later - earlier == pytest.approx(1 / steps) for earlier, later in pairwise(factors[:steps]))
    assert set(factors[steps - 1 :]) == {1.0}


def test_without_a_warm_up_the_rate_begins_as_it_is() -> None:
    assert [warm_up(step, 0) for step in (0, 1, 100)] == [1.0, 1.0, 1.0]
