from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import images, sample, tiny_ghn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ghn import GHN, Architecture
from ghn.training import (
    Drawn,
    SliceResult,
    StepSettings,
    TrainingSet,
    accumulate_slice,
    draw_meta_batch,
    learning_rate,
    share_out,
    target_gradient,
)

X = images(8, count=6, dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
SETTINGS = StepSettings(seed=3, label_smoothing=0.1)


def training_set(count: int) -> TrainingSet:
    several = [sample("train", index) for index in range(count)]
    programs = [architecture.program(32, 10) for architecture in several]
    return TrainingSet(
        nodes=np.array([len(program.graph.nodes) for program in programs]),
        parameters=np.array([program.num_parameters for program in programs]),
        flops=np.array([program.flops for program in programs]),
        read=several.__getitem__,
    )


TRAINING_SET = training_set(12)


def draw(step: int, meta_batch: int = 4, seed: int = 0, max_nodes: int = 10_000, among: TrainingSet = TRAINING_SET):
    return draw_meta_batch(among, seed, step, meta_batch, (8, 16), (16, 32), max_nodes)


def meta_batch(**fields) -> dict[int, Drawn]:
    """Five narrow architectures of a step, by position."""
    return {position: Drawn(position, replace(sample("train", position), **fields), 1.0) for position in range(5)}


def gradients(ghn: GHN) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in ghn.named_parameters() if weight.grad is not None}


def accumulated(
    *slices: dict[int, Drawn], settings: StepSettings = SETTINGS, step: int = 7
) -> tuple[dict[str, Tensor], list[SliceResult]]:
    """The sum of the gradients of slices, each computed by a process of its own."""
    total: dict[str, Tensor] = {}
    results = []
    for part in slices:
        ghn = tiny_ghn(dtype=torch.float64)
        results.append(accumulate_slice(ghn, part, X, Y, step, settings))
        for name, gradient in gradients(ghn).items():
            total[name] = total.get(name, 0) + gradient
    return total, results


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-9, msg=lambda text: f"{name}: {text}")  # noqa: B023


def test_a_step_split_at_the_parameters_has_the_gradient_of_plain_autograd() -> None:
    drawn = meta_batch(fc_layers=1)  # without dropout
    result, (losses,) = accumulated(drawn)
    ghn = tiny_ghn(dtype=torch.float64)
    several = [item.architecture for item in drawn.values()]
    logits = [a.forward(p, X) for a, p in zip(several, ghn.predict_parameters(several, image_size=8), strict=True)]
    expected = [F.cross_entropy(y, Y, label_smoothing=0.1) for y in logits]
    sum(expected).backward()
    assert_same(result, gradients(ghn))
    assert list(losses.losses.values()) == pytest.approx([loss.item() for loss in expected])
    assert list(losses.top1.values()) == pytest.approx([(y.argmax(1) == Y).double().mean().item() for y in logits])


@pytest.mark.parametrize("slices", [[[0], [1], [2], [3], [4]], [[0, 1, 4], [], [2, 3]], [[4, 2], [0, 1, 3]]], ids=str)
def test_slices_add_up_to_the_whole_step(slices: list[list[int]]) -> None:
    drawn = meta_batch(fc_layers=2)  # with dropout
    whole, (result,) = accumulated(drawn)
    parts, results = accumulated(*({position: drawn[position] for position in positions} for positions in slices))
    assert_same(whole, parts)
    losses = {position: loss for part in results for position, loss in part.losses.items()}
    assert losses == pytest.approx(result.losses) and set(losses) == set(range(5))


def test_gradients_are_added_to_those_that_are_there() -> None:
    ghn, drawn = tiny_ghn(dtype=torch.float64), meta_batch()
    for _ in range(2):
        accumulate_slice(ghn, drawn, X, Y, 7, SETTINGS)
    once, _ = accumulated(drawn)
    assert_same(gradients(ghn), {name: 2 * gradient for name, gradient in once.items()})


def test_dropout_is_a_function_of_seed_step_and_position() -> None:
    drawn = {position: Drawn(0, replace(sample("train", 0), fc_layers=2, fc_dim=256), 1.0) for position in (0, 1)}
    (result,) = accumulated(drawn)[1]
    (again,) = accumulated(drawn)[1]
    (other_step,) = accumulated(drawn, step=8)[1]
    (other_seed,) = accumulated(drawn, settings=replace(SETTINGS, seed=4))[1]
    assert result.losses == again.losses
    losses = [loss for one in (result, other_step, other_seed) for loss in one.losses.values()]
    assert len({round(loss, 9) for loss in losses}) == 6  # more than rounding apart


class NotFinite(Architecture):
    def forward(self, *arguments) -> Tensor:
        return super().forward(*arguments) * math.nan


class InfiniteGradient(Architecture):
    """Its loss is finite."""

    def forward(self, *arguments) -> Tensor:
        logits = super().forward(*arguments)
        return logits + (0 * logits).square().sum().sqrt()


@pytest.mark.parametrize("kind", [NotFinite, InfiniteGradient])
def test_an_architecture_that_is_not_finite_adds_nothing(kind: type[Architecture]) -> None:
    drawn = meta_batch()
    broken = Drawn(2, kind(**vars(drawn[2].architecture)), 1.0)
    result, (losses,) = accumulated({**drawn, 2: broken})
    expected, _ = accumulated({position: item for position, item in drawn.items() if position != 2})
    assert_same(result, expected)
    assert math.isnan(losses.losses[2]) and math.isnan(losses.top1[2])
    assert all(math.isfinite(losses.losses[position]) for position in (0, 1, 3, 4))


def test_nothing_is_added_when_no_architecture_is_finite() -> None:
    broken = {0: Drawn(0, NotFinite(**vars(sample("train", 0))), 1.0)}
    result, (losses,) = accumulated(broken)
    assert not result and math.isnan(losses.losses[0])


def test_a_clip_bounds_each_architectures_gradient_and_keeps_its_direction() -> None:
    architecture = sample("train", 0)
    (predicted,) = tiny_ghn(dtype=torch.float64).predict_parameters([architecture], image_size=8)

    def gradient(clip: float | None) -> Tensor:
        settings = replace(SETTINGS, architecture_clip=clip)
        _, _, parts = target_gradient(architecture, predicted, X, Y, settings)
        assert [part.shape for part in parts] == [tensor.shape for tensor in predicted.values()]
        return torch.cat([part.flatten() for part in parts])

    whole = gradient(None)
    norm = whole.norm().item()
    assert torch.equal(gradient(1.01 * norm), whole)
    torch.testing.assert_close(gradient(0.25 * norm), 0.25 * whole)


def test_a_clip_acts_on_each_architecture_alone() -> None:
    drawn, settings = meta_batch(), replace(SETTINGS, architecture_clip=1e-3)
    together, _ = accumulated(drawn, settings=settings)
    alone, _ = accumulated(*({position: item} for position, item in drawn.items()), settings=settings)
    assert_same(together, alone)
    unclipped, _ = accumulated(drawn)
    assert not torch.allclose(together["norm.weight"], unclipped["norm.weight"])


def test_reduced_precision_gives_nearly_the_same_loss() -> None:
    ghn = tiny_ghn()
    results = [
        accumulate_slice(ghn, meta_batch(), X.float(), Y, 7, replace(SETTINGS, precision=precision))
        for precision in (torch.float32, torch.bfloat16)
    ]
    assert results[1].losses == pytest.approx(results[0].losses, rel=0.1)
    assert results[1].losses != results[0].losses


@given(st.lists(st.floats(0, 1e12), max_size=20), st.integers(1, 30))
def test_every_position_is_computed_by_one_worker(costs: list[float], workers: int) -> None:
    slices = share_out(costs, workers)
    assert len(slices) == workers
    assert sorted(position for positions in slices for position in positions) == list(range(len(costs)))


@given(st.lists(st.floats(1, 1e3), min_size=1, max_size=20), st.integers(1, 30))
def test_no_worker_has_much_more_to_do_than_another(costs: list[float], workers: int) -> None:
    loads = [sum(costs[position] for position in positions) for positions in share_out(costs, workers)]
    assert max(loads) - min(loads) <= max(costs) * (1 + 1e-9)


@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_meta_batch_is_a_function_of_seed_and_step(seed: int, step: int, before: int) -> None:
    first = draw(step, seed=seed)
    draw(before, seed=seed)
    assert draw(step, seed=seed) == first
    assert len({item.index for item in first}) == 4
    for item in first:
        original = TRAINING_SET.read(item.index)
        assert item.architecture == replace(original, C=item.architecture.C, fc_dim=item.architecture.fc_dim)
        assert item.architecture.C in (8, 16) and item.architecture.fc_dim in (16, 32)
        assert item.cost > 0


def test_steps_and_seeds_draw_differently_and_everything_is_drawn() -> None:
    steps = [tuple((item.index, item.architecture) for item in draw(step)) for step in range(40)]
    assert len(set(steps)) == 40
    assert {index for step in steps for index, _ in step} == set(range(12))
    assert {architecture.C for step in steps for _, architecture in step} == {8, 16}
    assert draw(0, seed=1) != draw(0, seed=2)


def test_a_meta_batch_may_be_larger_than_the_training_set() -> None:
    drawn = draw(0, meta_batch=5, among=training_set(2))
    assert len(drawn) == 5 and {item.index for item in drawn} <= {0, 1}


def test_a_meta_batch_with_too_many_nodes_is_drawn_again() -> None:
    def nodes(max_nodes: int) -> list[int]:
        return [sum(TRAINING_SET.nodes[item.index] for item in draw(step, max_nodes=max_nodes)) for step in range(30)]

    free = nodes(10**9)
    limit = int(np.median(free))
    limited = nodes(limit)
    assert max(free) > limit >= max(limited)
    assert [n for n in free if n <= limit] == [b for a, b in zip(free, limited, strict=True) if a <= limit]


def test_a_limit_that_no_meta_batch_meets_is_refused() -> None:
    with pytest.raises(ValueError, match="max_nodes = 10: too few for 4 architectures"):
        draw(0, max_nodes=10)


def test_a_wider_network_costs_more() -> None:
    costs: dict[tuple[int, int], float] = {}
    for step in range(30):
        costs |= {(item.index, item.architecture.C): item.cost for item in draw(step)}
    pairs = [(costs[index, 8], costs[index, 16]) for index, C in costs if C == 16 and (index, 8) in costs]
    assert pairs and all(narrow < wide for narrow, wide in pairs)


def test_the_learning_rate_falls_at_the_milestones() -> None:
    rates = [learning_rate(1e-3, step, 300, (2 / 3, 5 / 6), 0.1) for step in range(300)]
    assert rates == pytest.approx([1e-3] * 200 + [1e-4] * 50 + [1e-5] * 50)
    assert learning_rate(1e-3, 299, 300, (), 0.1) == 1e-3
