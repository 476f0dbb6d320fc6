from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from worker_processes import in_processes

from ghn.training.step import DROPPED_SCORES, TargetScores
from pipeline.training.gradient_reduction import GradientReducer, StepResult

SHAPES = [(3, 2), (5,), (1, 1, 4)]
META_BATCH, MICRO_BATCHES = 9, 4
STEPS = list(product(range(3), (torch.float64, torch.float32), ((), (0, 8)), (True, False)))
"""Seeds of micro-batches, precisions of the weights, dropped positions, whether workers compute whole micro-batches."""


def weights(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]


def meta_batch(dropped: tuple[int, ...] = ()) -> tuple[list[list[Tensor]], list[TargetScores]]:
    """Return the gradient of each architecture, of very different sizes, and its scores."""
    random = np.random.default_rng(0)
    scales = 10.0 ** random.integers(-3, 4, META_BATCH)
    several = [[torch.from_numpy(scale * random.standard_normal(shape)) for shape in SHAPES] for scale in scales]
    scores = [TargetScores(*values) for values in random.random((META_BATCH, 3)).tolist()]
    return several, [DROPPED_SCORES if position in dropped else score for position, score in enumerate(scores)]


def add(
    reducer: GradientReducer,
    micro_batch: list[int],
    several: list[list[Tensor]],
    scores: list[TargetScores],
    gradient: int = 0,
) -> None:
    """Add a micro-batch, whose gradient lies where the hypernetwork's backward pass leaves it."""
    kept = [position for position in micro_batch if scores[position].is_finite]
    for number, weight in enumerate(reducer.weights):
        weight.grad = sum(several[position][number] for position in kept).to(weight.dtype) if kept else None
    reducer.add({position: scores[position] for position in micro_batch}, gradient)


def all_reduce(
    rank: int, workers: int, seed: int, dtype: torch.dtype, dropped: tuple[int, ...], whole: bool
) -> tuple[StepResult, list[np.ndarray]]:
    """Return the result of a step, and its gradient, whose meta-batch is divided into micro-batches at random.

    One worker computes each micro-batch, or (not `whole`) several do. The gradient is arrays, because tensors would be
    memory that processes share.
    """
    several, scores = meta_batch(dropped)
    number_of = np.random.default_rng(seed).integers(0, MICRO_BATCHES, META_BATCH)
    random = np.random.default_rng([seed, workers])
    owners = random.integers(0, workers, MICRO_BATCHES)
    worker_of = owners[number_of] if whole else random.integers(0, workers, META_BATCH)
    reducer = GradientReducer(weights(dtype), META_BATCH, MICRO_BATCHES if whole else 1)
    for number in range(MICRO_BATCHES):
        if micro_batch := np.flatnonzero((number_of == number) & (worker_of == rank)).tolist():
            add(reducer, micro_batch, several, scores, number if whole else 0)
    flags = (rank == 0, True, False)
    seconds, busy = {"graph": rank + 1.0, "wait": 0.5}, 1000 * 2.0**rank
    result = reducer.all_reduce(rank, workers, seconds, busy, flags, owners.tolist() if whole else None)
    return result, [weight.grad.numpy() for weight in reducer.weights]


def reduce_all_steps(rank: int, workers: int) -> list[tuple[StepResult, list[np.ndarray]]]:
    return [all_reduce(rank, workers, *step) for step in STEPS]


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_the_sum_does_not_depend_on_which_worker_computes_which_micro_batch(workers: int) -> None:
    of_ranks = [reduce_all_steps(0, 1)] if workers == 1 else in_processes(workers, reduce_all_steps)
    for step, *results in zip(STEPS, *of_ranks, strict=True):
        _, dtype, dropped, whole = step
        _, alone = all_reduce(0, 1, *step)
        several, scores = meta_batch(dropped)
        kept = [position for position in range(META_BATCH) if position not in dropped]
        losses, top1, norms = np.array([list(vars(scores[position]).values()) for position in kept]).T
        for rank, (result, gradient) in enumerate(results):
            for number, found in enumerate(gradient):
                assert torch.from_numpy(found).dtype == dtype
                expected = np.mean([several[position][number].numpy() for position in kept], axis=0)
                tolerance = 1e-12 if dtype == torch.float64 else 1e-6
                np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())
                assert np.array_equal(found, results[0][1][number])  # else the workers' weights would differ
                if whole:
                    assert np.array_equal(found, alone[number])  # to the last bit
            assert result.dropped == list(dropped)
            assert result.flags == (1, workers, 0)
            row = dict(result.row)
            communication = row.pop("communication_seconds")
            if workers > 1:  # a worker that waits for the slowest does not communicate
                assert (communication > 0) == (rank == workers - 1)
            assert row == pytest.approx(
                {
                    "loss": losses.mean(),
                    "top1": top1.mean(),
                    "architecture_norm_median": np.median(norms),
                    "architecture_norm_p90": np.quantile(norms, 0.9),
                    "architecture_norm_max": norms.max(),
                    "dropped": len(dropped),
                    "graph_seconds": (workers + 1) / 2,
                    "wait_seconds": 0.5,
                    "imbalance": 2.0 ** (workers - 1) / np.mean(2.0 ** np.arange(workers)),
                },
                rel=1e-12,
            )


def test_one_worker_needs_no_process_group() -> None:
    assert not dist.is_initialized()
    reducer = GradientReducer(weights(), META_BATCH)
    add(reducer, list(range(META_BATCH)), *meta_batch())
    row = reducer.all_reduce(0, 1, {}, busy=3.0, flags=()).row
    assert row["imbalance"] == 1
    assert 0 <= row["communication_seconds"] < 1


def test_a_step_without_any_finite_architecture_has_no_gradient_and_no_scores() -> None:
    everything = tuple(range(META_BATCH))
    reducer = GradientReducer(weights(), META_BATCH)
    add(reducer, list(everything), *meta_batch(dropped=everything))
    result = reducer.all_reduce(0, 1, {"graph": 1.0}, busy=1.0, flags=())
    assert result.dropped == list(everything)
    assert not any(weight.grad.any() for weight in reducer.weights)
    names = ("loss", "top1", "architecture_norm_median", "architecture_norm_p90", "architecture_norm_max")
    assert all(math.isnan(result.row[name]) for name in names)
    assert result.row["dropped"] == META_BATCH


def test_an_architecture_that_no_worker_has_computed_counts_as_dropped() -> None:
    several, scores = meta_batch()
    reducer = GradientReducer(weights(), META_BATCH)
    add(reducer, [0, 1, 2, 3, 5, 6, 7], several, scores)
    assert reducer.all_reduce(0, 1, {}, busy=1.0, flags=()).dropped == [4, 8]


def test_gradients_from_before_a_step_do_not_count() -> None:
    several, scores = meta_batch()
    parameters = weights()
    for weight in parameters:
        weight.grad = torch.ones_like(weight)
    reducer = GradientReducer(parameters, META_BATCH)
    add(reducer, [0], several, scores)
    assert all(weight.grad is None for weight in parameters)  # moved: the next micro-batch begins with none
    reducer.all_reduce(0, 1, {}, busy=1.0, flags=())
    assert all(torch.equal(weight.grad, expected) for weight, expected in zip(parameters, several[0], strict=True))


@given(order=st.permutations([2.0**25, -(2.0**25), 1.0, 1.0, 1.0, 1.0, 2.0]), whole=st.booleans())
@settings(max_examples=50)
def test_micro_batches_are_added_in_double_precision_in_any_order(order: list[float], whole: bool) -> None:
    """In single precision 2²⁵ + 1 is 2²⁵."""
    weight = nn.Parameter(torch.zeros(1))
    reducer = GradientReducer([weight], len(order), len(order) if whole else 1)
    for position, value in enumerate(order):
        weight.grad = torch.tensor([value])
        reducer.add({position: TargetScores(1.0, 1.0, 1.0)}, position if whole else 0)
    reducer.all_reduce(0, 1, {}, busy=1.0, flags=())
    assert weight.grad.item() == torch.tensor(6 / 7).item()
