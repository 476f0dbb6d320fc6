from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from examples import images, sample, tiny_ghn
from torch import Tensor
from torch.nn import functional as F

from ghn import GHN, Architecture
from ghn.training.meta_batch import SampledArchitecture
from ghn.training.step import (
    STEP_PHASES,
    MicroBatch,
    StepSettings,
    Stopwatch,
    TargetScores,
    accumulate_micro_batch,
    target_gradient,
)

SIZE = 8
X = images(SIZE, count=6, dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
SETTINGS = StepSettings(seed=3, label_smoothing=0.1)


def meta_batch(**fields) -> dict[int, SampledArchitecture]:
    """Five narrow architectures of a step, by position."""
    return {
        position: SampledArchitecture(position, replace(sample("train", position), **fields)) for position in range(5)
    }


def gradients(ghn: GHN) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in ghn.named_parameters() if weight.grad is not None}


def accumulate(
    ghn: GHN, drawn: Mapping[int, SampledArchitecture], settings: StepSettings = SETTINGS, step: int = 7
) -> dict[int, TargetScores]:
    x = X.to(next(ghn.parameters()).dtype)
    return accumulate_micro_batch(
        ghn, MicroBatch.of(ghn, drawn, list(drawn), SIZE), x, Y, step, settings, Stopwatch(x.device)
    )


def accumulated(
    *slices: Mapping[int, SampledArchitecture], settings: StepSettings = SETTINGS, step: int = 7
) -> tuple[dict[str, Tensor], dict[int, TargetScores]]:
    """The sum of the gradients of slices, each computed by a process of its own, and all scores."""
    total: dict[str, Tensor] = {}
    scores: dict[int, TargetScores] = {}
    for part in slices:
        ghn = tiny_ghn(dtype=torch.float64)
        scores |= accumulate(ghn, part, settings, step)
        for name, gradient in gradients(ghn).items():
            total[name] = total.get(name, 0) + gradient
    return total, scores


def losses(scores: Mapping[int, TargetScores]) -> dict[int, float]:
    return {position: score.loss for position, score in scores.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """To 1e-9 of each weight's gradient, and exactly nothing where there is none."""
    assert one.keys() == other.keys()
    for name in one:
        difference, norm = (one[name] - other[name]).norm().item(), one[name].norm().item()
        assert difference <= 1e-9 * norm, f"{name}: {difference} of {norm}"


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_step_split_at_the_parameters_has_the_gradient_of_plain_autograd(smoothing: float) -> None:
    drawn = meta_batch(fc_layers=1)  # without dropout
    result, scores = accumulated(drawn, settings=replace(SETTINGS, label_smoothing=smoothing))
    ghn = tiny_ghn(dtype=torch.float64)
    several = [item.architecture for item in drawn.values()]
    predicted = ghn.predict_parameters(several, image_size=SIZE)
    logits = [architecture.forward(p, X) for architecture, p in zip(several, predicted, strict=True)]
    expected = [F.cross_entropy(y, Y, label_smoothing=smoothing) for y in logits]
    sum(expected).backward()
    assert_same(result, gradients(ghn))
    assert list(losses(scores).values()) == pytest.approx([loss.item() for loss in expected], rel=1e-12)
    right = [(y.argmax(1) == Y).double().mean().item() for y in logits]
    assert [score.top1 for score in scores.values()] == pytest.approx(right)


@pytest.mark.parametrize("slices", [[[0], [1], [2], [3], [4]], [[0, 1, 4], [2, 3]], [[4, 2], [0, 1, 3]]], ids=str)
def test_slices_add_up_to_the_whole_step(slices: list[list[int]]) -> None:
    drawn = meta_batch(fc_layers=2)  # with dropout
    whole, scores = accumulated(drawn)
    parts, others = accumulated(*({position: drawn[position] for position in positions} for positions in slices))
    assert_same(whole, parts)
    assert set(others) == set(range(5))
    for position, score in scores.items():
        assert vars(others[position]) == pytest.approx(vars(score), rel=1e-9)


@pytest.mark.parametrize("shares", [[{0, 1, 2, 3, 4}], [{1, 3}, {0, 2, 4}], [{4}, {0}, {1, 2, 3}]], ids=str)
def test_workers_that_share_a_part_add_up_to_the_whole_step(shares: list[set[int]]) -> None:
    drawn = meta_batch(fc_layers=2)
    whole, scores = accumulated(drawn)
    total = dict.fromkeys(whole, 0)
    for mine in shares:
        ghn = tiny_ghn(dtype=torch.float64)
        part = MicroBatch.of(ghn, drawn, sorted(mine), SIZE)
        found = accumulate_micro_batch(ghn, part, X, Y, 7, SETTINGS, Stopwatch(X.device))
        assert found == {position: scores[position] for position in mine}  # to the last bit, whoever else is run
        total = {name: total[name] + gradient for name, gradient in gradients(ghn).items()}
    assert_same(total, whole)


def test_gradients_are_added_to_those_that_are_there() -> None:
    ghn, drawn = tiny_ghn(dtype=torch.float64), meta_batch()
    for _ in range(2):
        accumulate(ghn, drawn)
    once, _ = accumulated(drawn)
    assert_same(gradients(ghn), {name: 2 * gradient for name, gradient in once.items()})


def test_dropout_is_a_function_of_seed_step_and_position() -> None:
    architecture = replace(sample("train", 0), fc_layers=2, fc_dim=256)
    drawn = {position: SampledArchitecture(0, architecture) for position in (0, 1)}
    _, scores = accumulated(drawn)
    _, again = accumulated(drawn)
    _, alone = accumulated({1: drawn[1]})
    _, other_step = accumulated(drawn, step=8)
    _, other_seed = accumulated(drawn, settings=replace(SETTINGS, seed=4))
    assert scores == again
    assert alone[1].loss == pytest.approx(scores[1].loss, rel=1e-12)
    drawn_losses = [loss for one in (scores, other_step, other_seed) for loss in losses(one).values()]
    assert len({round(loss, 9) for loss in drawn_losses}) == 6  # more than rounding apart


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
    broken = SampledArchitecture(2, kind(**vars(drawn[2].architecture)))
    result, scores = accumulated({**drawn, 2: broken})
    expected, others = accumulated({position: item for position, item in drawn.items() if position != 2})
    assert_same(result, expected)
    dropped = scores.pop(2)
    assert not dropped.is_finite
    assert all(math.isnan(value) for value in (dropped.loss, dropped.top1, dropped.gradient_norm))
    assert losses(scores) == pytest.approx(losses(others))
    assert all(score.is_finite for score in scores.values())


def test_nothing_is_added_when_no_architecture_is_finite() -> None:
    result, scores = accumulated({0: SampledArchitecture(0, NotFinite(**vars(sample("train", 0))))})
    assert not result and math.isnan(scores[0].loss)


def test_a_clip_bounds_each_architectures_gradient_and_keeps_its_direction() -> None:
    architecture = sample("train", 0)
    (predicted,) = tiny_ghn(dtype=torch.float64).predict_parameters([architecture], image_size=SIZE)

    def gradient(clip: float | None) -> tuple[Tensor, TargetScores]:
        scores, parts = target_gradient(architecture, predicted, X, Y, replace(SETTINGS, architecture_clip=clip))
        assert [part.shape for part in parts] == [tensor.shape for tensor in predicted.values()]
        return torch.cat([part.flatten() for part in parts]), scores

    whole, scores = gradient(None)
    norm = whole.norm().item()
    assert scores.gradient_norm == pytest.approx(norm)
    assert torch.equal(gradient(1.01 * norm)[0], whole)
    clipped, clipped_scores = gradient(0.25 * norm)
    torch.testing.assert_close(clipped, 0.25 * whole)
    assert clipped_scores == scores  # the norm that is reported is the one before


def test_a_clip_acts_on_each_architecture_alone() -> None:
    drawn, settings = meta_batch(), replace(SETTINGS, architecture_clip=1e-3)
    together, _ = accumulated(drawn, settings=settings)
    alone, _ = accumulated(*({position: item} for position, item in drawn.items()), settings=settings)
    assert_same(together, alone)
    unclipped, _ = accumulated(drawn)
    assert not torch.allclose(together["norm.weight"], unclipped["norm.weight"])


def test_reduced_precision_gives_nearly_the_same_loss() -> None:
    ghn = tiny_ghn()
    single, reduced = (
        losses(accumulate(ghn, meta_batch(), replace(SETTINGS, precision=precision)))
        for precision in (torch.float32, torch.bfloat16)
    )
    assert reduced == pytest.approx(single, rel=0.1)
    assert reduced != single
    assert all(weight.grad is None or weight.grad.dtype == torch.float32 for weight in ghn.parameters())


def test_the_layout_of_images_in_memory_does_not_change_the_step() -> None:
    ghn = tiny_ghn(dtype=torch.float64)
    part, watch = MicroBatch.of(ghn, meta_batch(), range(5), SIZE), Stopwatch(X.device)
    x = X.contiguous(memory_format=torch.channels_last)
    scores = accumulate_micro_batch(ghn, part, x, Y, 7, SETTINGS, watch)
    expected, expected_scores = accumulated(meta_batch())
    assert losses(scores) == pytest.approx(losses(expected_scores), rel=1e-9)
    assert_same(gradients(ghn), expected)


def test_a_slice_can_be_prepared_before_the_weights_change() -> None:
    ghn, drawn = tiny_ghn(), meta_batch()
    before = MicroBatch.of(ghn, drawn, list(drawn), SIZE)
    with torch.no_grad():
        for weight in ghn.parameters():
            weight.mul_(0.9)
    after = MicroBatch.of(ghn, drawn, list(drawn), SIZE)
    one, other = (
        accumulate_micro_batch(ghn, part, X.float(), Y, 7, SETTINGS, Stopwatch(X.device)) for part in (before, after)
    )
    assert one == other


def test_the_time_of_each_part_of_a_step_is_taken() -> None:
    ghn, watch = tiny_ghn(), Stopwatch(torch.device("cpu"))
    part = MicroBatch.of(ghn, meta_batch(), range(5), SIZE)
    accumulate_micro_batch(ghn, part, X.float(), Y, 7, SETTINGS, watch)
    assert part.graph_seconds > 0
    assert tuple(watch.seconds) == STEP_PHASES
    assert all(seconds > 0 for seconds in watch.seconds.values())
    once = dict(watch.seconds)
    accumulate_micro_batch(ghn, part, X.float(), Y, 8, SETTINGS, watch)
    assert all(watch.seconds[name] > once[name] for name in STEP_PHASES)  # they add up over slices


class Saved:
    """A tensor that autograd keeps for the backward pass of a target network."""

    alive: ClassVar[weakref.WeakSet[Saved]] = weakref.WeakSet()

    def __init__(self, tensor: Tensor):
        self.tensor = tensor
        Saved.alive.add(self)


class Watched(Architecture):
    """Notes how many tensors earlier networks still keep when it starts, and how many it has made them keep itself."""

    notes: ClassVar[list[tuple[int, int]]] = []

    def forward(self, *arguments) -> Tensor:
        before = len(Saved.alive)
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            logits = super().forward(*arguments)
        self.notes.append((before, len(Saved.alive) - before))
        return logits


def test_the_activations_of_one_target_network_are_kept_at_a_time() -> None:
    drawn = {
        position: SampledArchitecture(position, Watched(**vars(item.architecture)))
        for position, item in meta_batch().items()
    }
    Watched.notes.clear()
    accumulate(tiny_ghn(dtype=torch.float64), drawn)
    assert len(Watched.notes) == 5
    assert all(before == 0 and own > 10 for before, own in Watched.notes)

    # The same count of one backward pass for all of them, which keeps everything: the measurement does see it.
    Watched.notes.clear()
    several = [item.architecture for item in drawn.values()]
    predicted = tiny_ghn(dtype=torch.float64).predict_parameters(several, image_size=SIZE)
    kept = [architecture.forward(p, X) for architecture, p in zip(several, predicted, strict=True)]
    assert [before for before, _ in Watched.notes] == [sum(own for _, own in Watched.notes[:n]) for n in range(5)]
    del kept
