from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from examples import CLASSES, sample
from hypothesis import given
from hypothesis import strategies as st

from ghn.training.cost_model import hypernetwork_seconds
from ghn.training.load_balance import (
    MAX_MICRO_BATCH_SIZE,
    Assignment,
    assign_greedily,
    assign_meta_batch,
    count_micro_batches,
)
from ghn.training.meta_batch import (
    MetaBatchSettings,
    SampledArchitecture,
    TrainingSet,
    sample_indices,
    sample_meta_batch,
)

SIZE = 16


def training_set(count: int) -> TrainingSet:
    several = [sample("train", index) for index in range(count)]
    programs = [architecture.program(32, 10) for architecture in several]
    return TrainingSet(
        nodes=np.array([len(program.graph.nodes) for program in programs]),
        parameters=np.array([program.num_parameters for program in programs]),
        norm_free=np.array([architecture.norm is None for architecture in several]),
        read=several.__getitem__,
    )


TRAINING_SET = training_set(12)


def sampled(
    step: int, meta_batch: int = 4, seed: int = 0, max_nodes: int = 10_000, among: TrainingSet = TRAINING_SET
) -> list[SampledArchitecture]:
    settings = MetaBatchSettings(meta_batch, widths=(8, 16), head_widths=(16, 32), max_nodes=max_nodes)
    return sample_meta_batch(among, settings, seed, step, SIZE, CLASSES)


def nodes(meta_batch: list[SampledArchitecture], of: TrainingSet = TRAINING_SET) -> int:
    return sum(of.nodes[item.index] for item in meta_batch)


@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_meta_batch_is_a_function_of_seed_and_step(seed: int, step: int, before: int) -> None:
    first = sampled(step, seed=seed)
    sampled(before, seed=seed)
    assert sampled(step, seed=seed) == first
    assert len({item.index for item in first}) == 4
    for item in first:
        original = TRAINING_SET.read(item.index)
        assert item.architecture == replace(original, C=item.architecture.C, fc_dim=item.architecture.fc_dim)
        assert item.architecture.C in (8, 16) and item.architecture.fc_dim in (16, 32)


def test_steps_and_seeds_sample_differently_and_everything_is_sampled() -> None:
    steps = [tuple((item.index, item.architecture) for item in sampled(step)) for step in range(40)]
    assert len(set(steps)) == 40
    assert {index for step in steps for index, _ in step} == set(range(12))
    assert {architecture.C for step in steps for _, architecture in step} == {8, 16}
    assert {architecture.fc_dim for step in steps for _, architecture in step} == {16, 32}
    assert sampled(0, seed=1) != sampled(0, seed=2)


def test_an_architecture_of_a_meta_batch_carries_its_program() -> None:
    for item in sampled(0, meta_batch=12):
        assert item.program == item.architecture.compile(SIZE, CLASSES)


def test_a_meta_batch_has_the_indices_that_are_sampled_for_its_step() -> None:
    settings = MetaBatchSettings(4, widths=(8,), head_widths=(16,), max_nodes=10_000)
    indices, uniforms = sample_indices(TRAINING_SET, settings, seed=3, step=5)
    assert indices.tolist() == [item.index for item in sampled(5, seed=3)]
    assert uniforms.shape == (4, 2) and (uniforms >= 0).all() and (uniforms < 1).all()


def test_large_networks_are_kept_narrow() -> None:
    huge = replace(TRAINING_SET, parameters=np.full(12, 10**6))
    small = replace(TRAINING_SET, parameters=np.full(12, 10**4))
    found = {
        name: [i for step in range(20) for i in sampled(step, among=among)]
        for name, among in (("huge", huge), ("small", small))
    }
    assert {item.architecture.C for item in found["huge"]} == {8}
    assert {item.architecture.C for item in found["small"]} == {8, 16}
    assert [item.index for item in found["huge"]] == [item.index for item in found["small"]]


def test_a_meta_batch_may_be_larger_than_the_training_set() -> None:
    several = sampled(0, meta_batch=5, among=training_set(2))
    assert len(several) == 5 and {item.index for item in several} <= {0, 1}


def test_a_meta_batch_with_too_many_nodes_is_sampled_again() -> None:
    free = [nodes(sampled(step)) for step in range(30)]
    limit = int(np.median(free))
    limited = [nodes(sampled(step, max_nodes=limit)) for step in range(30)]
    assert max(free) > limit >= max(limited)
    assert [n for n in free if n <= limit] == [b for a, b in zip(free, limited, strict=True) if a <= limit]


def test_the_limit_of_nodes_grows_with_meta_batches_above_eight() -> None:
    alike = replace(TRAINING_SET, nodes=np.full(12, 100))

    def fits(meta_batch: int, max_nodes: int) -> bool:
        try:
            return len(sampled(0, meta_batch, max_nodes=max_nodes, among=alike)) == meta_batch
        except ValueError:
            return False

    assert fits(4, 400) and not fits(4, 399)  # 8 or fewer: the limit as it is
    assert fits(8, 800) and not fits(8, 799)
    assert fits(12, 800) and not fits(12, 799)
    assert fits(24, 800) and not fits(24, 799)


def test_a_limit_that_no_meta_batch_meets_is_refused() -> None:
    with pytest.raises(ValueError, match="max_nodes = 10: too few for 4 architectures"):
        sampled(0, max_nodes=10)


# --- workers and micro-batches -------------------------------------------------------------------------------------

Costs = tuple[list[float], list[int]]
"""Predicted seconds and numbers of nodes of the architectures of a meta-batch."""


@st.composite
def meta_batches(draw: Callable) -> Costs:
    count = draw(st.integers(1, 40))
    several = [draw(st.lists(values, min_size=count, max_size=count)) for values in (SECONDS, NODES)]
    return several[0], several[1]


SECONDS, NODES = st.floats(1e-3, 1e3), st.integers(1, 1000)
META_BATCHES, WORKERS, MICRO_BATCHES = meta_batches(), st.integers(1, 9), st.integers(1, 12)
ROUNDING = 1 + 1e-9


def prediction(positions: list[int], nodes: list[int]) -> float:
    return hypernetwork_seconds(sum(nodes[position] for position in positions))


def loads(meta_batch: Costs, of_workers: list[list[Assignment]]) -> list[float]:
    costs, nodes = meta_batch
    return [
        sum(prediction(one.positions, nodes) + sum(costs[position] for position in one.own) for one in worker)
        for worker in of_workers
    ]


@given(META_BATCHES, WORKERS, MICRO_BATCHES)
def test_every_target_network_is_run_exactly_once(meta_batch: Costs, workers: int, micro_batches: int) -> None:
    of_workers = assign_meta_batch(*meta_batch, workers, micro_batches)
    assert len(of_workers) == workers
    positions = [position for worker in of_workers for one in worker for position in one.own]
    assert sorted(positions) == list(range(len(meta_batch[0])))
    for worker in of_workers:
        assert len({one.micro_batch for one in worker}) == len(worker)
        for one in worker:
            assert one.own and set(one.own) <= set(one.positions)


@given(META_BATCHES, MICRO_BATCHES)
def test_the_micro_batches_do_not_depend_on_the_number_of_workers(meta_batch: Costs, micro_batches: int) -> None:
    def positions_of(workers: int) -> dict[int, list[int]]:
        several = [one for worker in assign_meta_batch(*meta_batch, workers, micro_batches) for one in worker]
        numbered = {one.micro_batch: one.positions for one in several}
        assert all(numbered[one.micro_batch] == one.positions for one in several)
        return numbered

    alone = positions_of(1)
    assert sorted(position for positions in alone.values() for position in positions) == list(range(len(meta_batch[0])))
    assert sorted(alone) == list(range(count_micro_batches(len(meta_batch[0]), micro_batches)))
    assert all(positions_of(workers) == alone for workers in range(2, 10))


@given(META_BATCHES, MICRO_BATCHES)
def test_up_to_as_many_workers_as_micro_batches_compute_whole_ones(meta_batch: Costs, micro_batches: int) -> None:
    for workers in range(1, micro_batches + 1):
        several = [one for worker in assign_meta_batch(*meta_batch, workers, micro_batches) for one in worker]
        assert all(one.own == one.positions for one in several)
        assert sorted(one.micro_batch for one in several) == list(range(len(several)))


@given(META_BATCHES, MICRO_BATCHES)
def test_no_micro_batch_has_too_many_architectures(meta_batch: Costs, micro_batches: int) -> None:
    (several,) = assign_meta_batch(*meta_batch, 1, micro_batches)
    assert max(len(one.positions) for one in several) <= MAX_MICRO_BATCH_SIZE


@given(st.integers(1, 100), MICRO_BATCHES)
def test_a_meta_batch_has_as_many_micro_batches_as_asked_for_unless_that_is_too_few_or_too_many(
    meta_batch: int, micro_batches: int
) -> None:
    count = count_micro_batches(meta_batch, micro_batches)
    assert count <= meta_batch <= MAX_MICRO_BATCH_SIZE * count  # so none is empty or too large
    if micro_batches <= meta_batch <= MAX_MICRO_BATCH_SIZE * micro_batches:
        assert count == micro_batches


@given(META_BATCHES, MICRO_BATCHES)
def test_of_whole_micro_batches_no_worker_has_more_to_do_than_the_mean_and_the_largest(
    meta_batch: Costs, micro_batches: int
) -> None:
    (alone,) = assign_meta_batch(*meta_batch, 1, micro_batches)
    jobs = loads(meta_batch, [[one] for one in alone])
    for workers in range(1, micro_batches + 1):
        of_workers = loads(meta_batch, assign_meta_batch(*meta_batch, workers, micro_batches))
        assert sum(of_workers) == pytest.approx(sum(jobs))
        assert max(of_workers) <= (sum(jobs) / workers + max(jobs)) * ROUNDING


@given(META_BATCHES, WORKERS, MICRO_BATCHES)
def test_of_divided_micro_batches_no_worker_has_more_to_do_than_another_and_one_architecture(
    meta_batch: Costs, workers: int, micro_batches: int
) -> None:
    """The architecture counts with the prediction of its micro-batch, which every worker of it computes."""
    assignments = assign_meta_batch(*meta_batch, workers + micro_batches, micro_batches)
    of_workers = loads(meta_batch, assignments)
    most = max(prediction(one.positions, meta_batch[1]) for worker in assignments for one in worker)
    assert max(of_workers) - min(of_workers) <= (max(meta_batch[0]) + most) * ROUNDING


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_workers_divide_the_networks_of_a_micro_batch_where_there_are_too_few(workers: int) -> None:
    costs, nodes = [1.0] * MAX_MICRO_BATCH_SIZE, [200] * MAX_MICRO_BATCH_SIZE
    of_workers = assign_meta_batch(costs, nodes, workers, micro_batches=1)
    assert [[len(one.own) for one in worker] for worker in of_workers] == [[MAX_MICRO_BATCH_SIZE // workers]] * workers
    assert all(one.positions == list(range(MAX_MICRO_BATCH_SIZE)) for worker in of_workers for one in worker)


@given(st.lists(SECONDS, min_size=1, max_size=40), WORKERS)
def test_costs_are_assigned_evenly(costs: list[float], workers: int) -> None:
    assigned = assign_greedily(costs, workers)
    assert sorted(position for positions in assigned for position in positions) == list(range(len(costs)))
    of_workers = [sum(costs[position] for position in positions) for positions in assigned]
    assert max(of_workers) - min(of_workers) <= max(costs) * ROUNDING
    assert max(of_workers) <= (sum(costs) / workers + max(costs)) * ROUNDING


def test_norm_free_architectures_come_as_often_as_asked_for() -> None:
    among = replace(TRAINING_SET, norm_free=np.arange(12) < 3)
    settings = MetaBatchSettings(4, widths=(8,), head_widths=(16,), max_nodes=10_000, norm_free=0.5)
    steps = [sample_indices(among, settings, 0, step)[0] for step in range(200)]
    assert all(len(set(indices)) == 4 for indices in steps if (indices < 3).sum() <= 3)
    assert 0.4 < np.mean([indices < 3 for indices in steps]) < 0.6
    assert set(np.concatenate(steps)) == set(range(12))
    assert [a.tolist() for a in steps] == [sample_indices(among, settings, 0, step)[0].tolist() for step in range(200)]


def test_a_kind_that_the_training_set_lacks_is_named() -> None:
    among = replace(TRAINING_SET, norm_free=np.zeros(12, dtype=bool))
    settings = MetaBatchSettings(4, widths=(8,), head_widths=(16,), max_nodes=10_000, norm_free=0.001)
    with pytest.raises(ValueError, match=r"norm_free = 0.001: no architecture of split train is without norm"):
        sample_indices(among, settings, 0, 0)
