from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from examples import CLASSES, images, sample, tiny_ghn
from torch import Tensor
from torch.nn import functional as F

from ghn import GHN, Architecture
from ghn.networks.functional import KERNELS, run_program
from ghn.networks.operations import Operation
from ghn.networks.program import Program
from ghn.training.meta_batch import SampledArchitecture
from ghn.training.step import (
    STEP_PHASES,
    MicroBatch,
    StepSettings,
    Stopwatch,
    TargetScores,
    accumulate_micro_batch,
    scores_of,
    target_gradient,
)

SIZE = 8
X = images(SIZE, count=6, dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
SETTINGS = StepSettings(seed=3, label_smoothing=0.1)


def compiled(index: int, architecture: Architecture) -> SampledArchitecture:
    return SampledArchitecture(index, architecture, architecture.program(SIZE, CLASSES))


def meta_batch(**fields) -> dict[int, SampledArchitecture]:
    """Return five narrow architectures of a step, by position."""
    return {position: compiled(position, replace(sample("train", position), **fields)) for position in range(5)}


def gradients(ghn: GHN) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in ghn.named_parameters() if weight.grad is not None}


def accumulate(
    ghn: GHN, sampled: Mapping[int, SampledArchitecture], settings: StepSettings = SETTINGS, step: int = 7
) -> dict[int, TargetScores]:
    x = X.to(next(ghn.parameters()).dtype)
    micro_batch = MicroBatch.of(ghn, sampled, list(sampled))
    return accumulate_micro_batch(ghn, micro_batch, x, Y, step, settings, Stopwatch(x.device))


def accumulated(
    *micro_batches: Mapping[int, SampledArchitecture], settings: StepSettings = SETTINGS, step: int = 7
) -> tuple[dict[str, Tensor], dict[int, TargetScores]]:
    """Return the sum of the gradients of micro-batches, each computed by its own hypernetwork, and all scores."""
    total: dict[str, Tensor] = {}
    scores: dict[int, TargetScores] = {}
    for sampled in micro_batches:
        ghn = tiny_ghn(dtype=torch.float64)
        scores |= accumulate(ghn, sampled, settings, step)
        for name, gradient in gradients(ghn).items():
            total[name] = total.get(name, 0) + gradient
    return total, scores


def losses(scores: Mapping[int, TargetScores]) -> dict[int, float]:
    return {position: score.loss for position, score in scores.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Compare to 1e-9 of each weight's gradient; where one has no gradient, the other must have none."""
    assert one.keys() == other.keys()
    for name in one:
        difference, norm = (one[name] - other[name]).norm().item(), one[name].norm().item()
        assert difference <= 1e-9 * norm, f"{name}: {difference} of {norm}"


@pytest.mark.parametrize(("smoothing", "penalty"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.5)])
def test_a_step_split_at_the_parameters_has_the_gradient_of_plain_autograd(smoothing: float, penalty: float) -> None:
    sampled = meta_batch(fc_layers=1)  # without dropout
    result, scores = accumulated(sampled, settings=replace(SETTINGS, label_smoothing=smoothing, penalty=penalty))
    ghn = tiny_ghn(dtype=torch.float64)
    several = [item.architecture for item in sampled.values()]
    predicted = ghn.predict_parameters(several, image_size=SIZE)
    logits = [architecture.forward(parameters, X) for architecture, parameters in zip(several, predicted, strict=True)]
    expected = [F.cross_entropy(y, Y, label_smoothing=smoothing) for y in logits]
    norms = [tensor.norm() for parameters in predicted for tensor in parameters.values()]
    (sum(expected) + penalty * sum(norms)).backward()
    assert_same(result, gradients(ghn))
    assert list(losses(scores).values()) == pytest.approx([loss.item() for loss in expected], rel=1e-12)
    right = [(y.argmax(1) == Y).double().mean().item() for y in logits]
    assert [score.top1 for score in scores.values()] == pytest.approx(right)


@pytest.mark.parametrize("division", [[[0], [1], [2], [3], [4]], [[0, 1, 4], [2, 3]], [[4, 2], [0, 1, 3]]], ids=str)
def test_micro_batches_add_up_to_the_whole_step(division: list[list[int]]) -> None:
    sampled = meta_batch(fc_layers=2)  # with dropout
    whole, scores = accumulated(sampled)
    parts, others = accumulated(*({position: sampled[position] for position in positions} for positions in division))
    assert_same(whole, parts)
    assert set(others) == set(range(5))
    for position, score in scores.items():
        assert vars(others[position]) == pytest.approx(vars(score), rel=1e-9)


@pytest.mark.parametrize("division", [[{0, 1, 2, 3, 4}], [{1, 3}, {0, 2, 4}], [{4}, {0}, {1, 2, 3}]], ids=str)
def test_workers_that_divide_a_micro_batch_add_up_to_the_whole_step(division: list[set[int]]) -> None:
    sampled = meta_batch(fc_layers=2)
    whole, scores = accumulated(sampled)
    total = dict.fromkeys(whole, 0)
    for own in division:
        ghn = tiny_ghn(dtype=torch.float64)
        micro_batch = MicroBatch.of(ghn, sampled, sorted(own))
        found = accumulate_micro_batch(ghn, micro_batch, X, Y, 7, SETTINGS, Stopwatch(X.device))
        assert found == {position: scores[position] for position in own}  # to the last bit, whatever else is run
        total = {name: total[name] + gradient for name, gradient in gradients(ghn).items()}
    assert_same(total, whole)


def test_gradients_are_added_to_those_that_are_there() -> None:
    ghn, sampled = tiny_ghn(dtype=torch.float64), meta_batch()
    for _ in range(2):
        accumulate(ghn, sampled)
    once, _ = accumulated(sampled)
    assert_same(gradients(ghn), {name: 2 * gradient for name, gradient in once.items()})


def test_dropout_is_a_function_of_seed_step_and_position() -> None:
    architecture = replace(sample("train", 0), fc_layers=2, fc_dim=256)
    sampled = {position: compiled(0, architecture) for position in (0, 1)}
    _, scores = accumulated(sampled)
    _, again = accumulated(sampled)
    _, alone = accumulated({1: sampled[1]})
    _, other_step = accumulated(sampled, step=8)
    _, other_seed = accumulated(sampled, settings=replace(SETTINGS, seed=4))
    assert scores == again
    assert alone[1].loss == pytest.approx(scores[1].loss, rel=1e-12)
    sampled_losses = [loss for one in (scores, other_step, other_seed) for loss in losses(one).values()]
    assert len({round(loss, 9) for loss in sampled_losses}) == 6  # more than rounding apart


@pytest.fixture
def broken_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add two kinds of operations: one with a result that is not finite, and relu with a NaN gradient."""

    def nan_result(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        return inputs[0] * math.nan

    def nan_gradient(operation: Operation, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        return inputs[0].relu() + (0 * inputs[0]).square().sum().sqrt()

    monkeypatch.setitem(KERNELS, "nan_result", nan_result)
    monkeypatch.setitem(KERNELS, "nan_gradient", nan_gradient)


def with_kind(item: SampledArchitecture, kind: str) -> SampledArchitecture:
    """Return the same architecture, compiled to a program with another kind of operation in place of relu."""
    assert any(operation.kind == "relu" for operation in item.program.operations)
    operations = [
        operation._replace(kind=kind) if operation.kind == "relu" else operation
        for operation in item.program.operations
    ]
    return replace(item, program=Program(tuple(operations), SIZE, CLASSES))


@pytest.mark.parametrize("kind", ["nan_result", "nan_gradient"])
def test_an_architecture_that_is_not_finite_adds_nothing(broken_kernels: None, kind: str) -> None:
    sampled = meta_batch()
    result, scores = accumulated({**sampled, 2: with_kind(sampled[2], kind)})
    expected, others = accumulated({position: item for position, item in sampled.items() if position != 2})
    assert_same(result, expected)
    dropped = scores.pop(2)
    assert not dropped.is_finite
    assert all(math.isnan(value) for value in (dropped.loss, dropped.top1, dropped.gradient_norm))
    assert losses(scores) == pytest.approx(losses(others))
    assert all(score.is_finite for score in scores.values())


def test_nothing_is_added_when_no_architecture_is_finite(broken_kernels: None) -> None:
    result, scores = accumulated({0: with_kind(compiled(0, sample("train", 0)), "nan_result")})
    assert not result and math.isnan(scores[0].loss)


def test_a_clip_bounds_each_architectures_gradient_and_keeps_its_direction() -> None:
    architecture = sample("train", 0)
    (predicted,) = tiny_ghn(dtype=torch.float64).predict_parameters([architecture], image_size=SIZE)

    def gradient(clip: float | None) -> tuple[Tensor, TargetScores]:
        program, settings = architecture.program(SIZE, CLASSES), replace(SETTINGS, architecture_clip=clip)
        measured, tensors = target_gradient(program, predicted, X, Y, settings)
        assert [tensor.shape for tensor in tensors] == [tensor.shape for tensor in predicted.values()]
        return torch.cat([tensor.flatten() for tensor in tensors]), scores_of({0: measured})[0]

    whole, scores = gradient(None)
    norm = whole.norm().item()
    assert scores.gradient_norm == pytest.approx(norm)
    assert torch.equal(gradient(1.01 * norm)[0], whole)
    clipped, clipped_scores = gradient(0.25 * norm)
    torch.testing.assert_close(clipped, 0.25 * whole)
    assert clipped_scores == scores  # the norm that is reported is the one before


def test_a_clip_acts_on_each_architecture_alone() -> None:
    sampled, settings = meta_batch(), replace(SETTINGS, architecture_clip=1e-3)
    together, _ = accumulated(sampled, settings=settings)
    alone, _ = accumulated(*({position: item} for position, item in sampled.items()), settings=settings)
    assert_same(together, alone)
    unclipped, _ = accumulated(sampled)
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
    micro_batch, watch = MicroBatch.of(ghn, meta_batch(), range(5)), Stopwatch(X.device)
    x = X.contiguous(memory_format=torch.channels_last)
    scores = accumulate_micro_batch(ghn, micro_batch, x, Y, 7, SETTINGS, watch)
    expected, expected_scores = accumulated(meta_batch())
    assert losses(scores) == pytest.approx(losses(expected_scores), rel=1e-9)
    assert_same(gradients(ghn), expected)


def test_a_micro_batch_can_be_prepared_before_the_weights_change() -> None:
    ghn, sampled = tiny_ghn(), meta_batch()
    before = MicroBatch.of(ghn, sampled, list(sampled))
    with torch.no_grad():
        for weight in ghn.parameters():
            weight.mul_(0.9)
    after = MicroBatch.of(ghn, sampled, list(sampled))
    one, other = (
        accumulate_micro_batch(ghn, micro_batch, X.float(), Y, 7, SETTINGS, Stopwatch(X.device))
        for micro_batch in (before, after)
    )
    assert one == other


def test_the_seconds_of_each_phase_of_a_step_are_measured() -> None:
    ghn, watch = tiny_ghn(), Stopwatch(torch.device("cpu"))
    micro_batch = MicroBatch.of(ghn, meta_batch(), range(5))
    accumulate_micro_batch(ghn, micro_batch, X.float(), Y, 7, SETTINGS, watch)
    assert micro_batch.graph_seconds > 0
    assert tuple(watch.seconds()) == STEP_PHASES
    assert all(seconds > 0 for seconds in watch.seconds().values())
    once = watch.seconds()
    accumulate_micro_batch(ghn, micro_batch, X.float(), Y, 8, SETTINGS, watch)
    assert all(watch.seconds()[name] > once[name] for name in STEP_PHASES)  # they add up over micro-batches


class Saved:
    """A tensor that autograd keeps for the backward pass of a target network."""

    alive: ClassVar[weakref.WeakSet[Saved]] = weakref.WeakSet()

    def __init__(self, tensor: Tensor):
        self.tensor = tensor
        Saved.alive.add(self)


class SavedTensorCounter(Stopwatch):
    """For each target network, how many tensors autograd keeps when its forward pass begins, and how many it adds."""

    def __init__(self) -> None:
        super().__init__(X.device)
        self.counts: list[tuple[int, int]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if name != "target_forward":
            yield
            return
        before = len(Saved.alive)
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            yield
        self.counts.append((before, len(Saved.alive) - before))


def test_the_activations_of_one_target_network_are_kept_at_a_time() -> None:
    ghn, sampled, counter = tiny_ghn(dtype=torch.float64), meta_batch(), SavedTensorCounter()
    accumulate_micro_batch(ghn, MicroBatch.of(ghn, sampled, list(sampled)), X, Y, 7, SETTINGS, counter)
    assert len(counter.counts) == 5
    assert all(before == 0 and own > 10 for before, own in counter.counts)

    # The same count where one backward pass for all networks is still to come: the counter does see what is kept.
    counter, losses_kept = SavedTensorCounter(), []
    predicted = ghn.predict_parameters([item.program.graph for item in sampled.values()])
    for item, parameters in zip(sampled.values(), predicted, strict=True):
        with counter.phase("target_forward"):
            losses_kept.append(F.cross_entropy(run_program(item.program, parameters, X), Y))
    assert [before for before, _ in counter.counts] == [sum(own for _, own in counter.counts[:n]) for n in range(5)]
