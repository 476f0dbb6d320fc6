from __future__ import annotations

from typing import Any

import pytest
from small_settings import small_settings

from pipeline.params import Params, TrainSettings
from pipeline.training.loop import learning_rate


def train_settings(**schedule: Any) -> TrainSettings:
    changes = {"steps": 12, "optimizer": {"learning_rate": 0.5}, "schedule": {"warmup": 0} | schedule}
    return Params.model_validate(small_settings(train=changes)).train


def test_the_learning_rate_falls_at_the_milestones() -> None:
    settings = train_settings(name="multi_step", milestones=[0.5, 0.75], decay=0.1)
    rates = [learning_rate(settings, step) for step in range(12)]
    assert rates == pytest.approx([0.5] * 6 + [0.05] * 3 + [0.005] * 3)


def test_the_learning_rate_follows_half_a_cosine() -> None:
    settings = train_settings(name="cosine")
    rates = [learning_rate(settings, step) for step in range(12)]
    assert (rates[0], rates[6]) == pytest.approx((0.5, 0.25))
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("name", ["multi_step", "cosine"])
def test_the_learning_rate_rises_to_its_schedule_in_the_warmup(name: str) -> None:
    warm, cold = train_settings(name=name, warmup=4), train_settings(name=name, warmup=0)
    shares = [learning_rate(warm, step) / learning_rate(cold, step) for step in range(8)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
