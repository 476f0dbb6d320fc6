from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_examples import SETTINGS

from ghn import GHN
from pipeline.evaluation.initialisations import evaluated_initialisations
from pipeline.evaluation.measurement import Measurement, group_by_cost, measure
from pipeline.evaluation.networks import Candidate
from pipeline.images.dataset import Images


def measured(
    candidate: Candidate, ghn: GHN, images: Images, seed: int, running_statistics: int = 0
) -> dict[str, Measurement]:
    settings = SETTINGS.model_copy(update={"running_statistics": running_statistics})
    rows = measure(candidate, evaluated_initialisations(), ghn, images, settings, seed)
    return {row["initialisation"]: row for row in rows}


def test_running_statistics_are_measured_beside_those_of_batches_and_do_not_change_them(
    candidates: list[Candidate], ghn: GHN, images: Images
) -> None:
    candidate, norm_free = candidates[1], candidates[4]
    without, with_them = (measured(candidate, ghn, images, 0, running_statistics=number) for number in (1, 2))
    for name in ("predicted", "random"):
        assert without[name]["running_top1"] is None
        assert 0 < with_them[name]["running_top1"] <= 1
        same = ("top1", "top5", "loss")
        assert [with_them[name][key] for key in same] == [without[name][key] for key in same]
    free = measured(norm_free, ghn, images, 0, running_statistics=5)
    assert [row["running_top1"] for row in free.values()] == [row["top1"] for row in free.values()]


def without_time(rows: dict[str, Measurement]) -> list[dict]:
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in rows.values()]


def test_random_initialisation_is_near_chance(candidates: list[Candidate], ghn: GHN, images: Images) -> None:
    rows = [measured(candidate, ghn, images, seed=0) for candidate in candidates]
    assert 0.03 < np.mean([row["random"]["top1"] for row in rows]) < 0.2
    assert 0.35 < np.mean([row["random"]["top5"] for row in rows]) < 0.65
    assert all(row["predicted"]["top1"] <= row["predicted"]["top5"] <= 1 for row in rows)
    for row in rows:
        assert list(row) == ["predicted", "random"]
    for name in ("predicted", "random"):
        assert [row[name]["parameters"] for row in rows] == [c.network.num_parameters(8, 10) for c in candidates]
        assert [row[name]["nodes"] for row in rows] == [len(c.network.graph(8, 10).nodes) for c in candidates]


def test_a_network_is_measured_alike_whatever_was_sampled_before(
    candidates: list[Candidate], ghn: GHN, images: Images
) -> None:
    first = measured(candidates[0], ghn, images, seed=3)
    torch.rand(7)
    state = torch.get_rng_state()
    again = measured(candidates[0], ghn, images, seed=3)
    assert without_time(first) == without_time(again)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_seed_only_changes_random_initialisation(candidates: list[Candidate], ghn: GHN, images: Images) -> None:
    one, other = (measured(candidates[0], ghn, images, seed=seed) for seed in (0, 1))
    assert one["predicted"]["loss"] == other["predicted"]["loss"]
    assert one["random"]["loss"] != other["random"]["loss"]


@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_tasks_have_similar_cost_and_the_most_expensive_come_first(candidates: list[Candidate], count: int) -> None:
    costs = (10 ** np.random.default_rng(count).uniform(0, 3, count)).tolist()
    groups = group_by_cost([replace(candidates[0], index=index) for index in range(count)], costs)
    order = [candidate.index for group in groups for candidate in group]
    assert sorted(order) == list(range(count))
    assert [costs[index] for index in order] == sorted(costs, reverse=True)
    assert all(1 <= len(group) <= 8 for group in groups)
    assert all(total(costs, group) <= max(costs) for group in groups)


def total(costs: Sequence[float], group: Sequence[Candidate]) -> float:
    return sum(costs[candidate.index] for candidate in group)
