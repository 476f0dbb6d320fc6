from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from examples import sample
from hypothesis import given
from hypothesis import strategies as st

from ghn.training.cost_model import hypernetwork_seconds
from ghn.training.load_balance import (
    MICRO_BATCH_SIZE,
    Assignment,
    assign_greedily,
    assign_meta_batch,
    count_micro_batches,
)
from ghn.training.meta_batch import SampledArchitecture, TrainingSet, sample_meta_batch


def training_set(count: int) -> TrainingSet:
    several = [sample("train", index) for index in range(count)]
    programs = [architecture.program(32, 10) for architecture in several]
    return TrainingSet(
        nodes=np.array([len(program.graph.nodes) for program in programs]),
        parameters=np.array([program.num_parameters for program in programs]),
        read=several.__getitem__,
    )


TRAINING_SET = training_set(12)


def draw(
    step: int, meta_batch: int = 4, seed: int = 0, max_nodes: int = 10_000, among: TrainingSet = TRAINING_SET
) -> list[SampledArchitecture]:
    return sample_meta_batch(among, seed, step, meta_batch, (8, 16), (16, 32), max_nodes)


def nodes(drawn: list[SampledArchitecture], of: TrainingSet = TRAINING_SET) -> int:
    return sum(of.nodes[item.index] for item in drawn)


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


def test_steps_and_seeds_draw_differently_and_everything_is_drawn() -> None:
    steps = [tuple((item.index, item.architecture) for item in draw(step)) for step in range(40)]
    assert len(set(steps)) == 40
    assert {index for step in steps for index, _ in step} == set(range(12))
    assert {architecture.C for step in steps for _, architecture in step} == {8, 16}
    assert {architecture.fc_dim for step in steps for _, architecture in step} == {16, 32}
    assert draw(0, seed=1) != draw(0, seed=2)


def test_large_networks_are_kept_narrow() -> None:
    huge = replace(TRAINING_SET, parameters=np.full(12, 10**6))
    small = replace(TRAINING_SET, parameters=np.full(12, 10**4))
    drawn = {
        name: [i for step in range(20) for i in draw(step, among=among)]
        for name, among in (("huge", huge), ("small", small))
    }
    assert {item.architecture.C for item in drawn["huge"]} == {8}
    assert {item.architecture.C for item in drawn["small"]} == {8, 16}
    assert [item.index for item in drawn["huge"]] == [item.index for item in drawn["small"]]


def test_a_meta_batch_may_be_larger_than_the_training_set() -> None:
    drawn = draw(0, meta_batch=5, among=training_set(2))
    assert len(drawn) == 5 and {item.index for item in drawn} <= {0, 1}


def test_a_meta_batch_with_too_many_nodes_is_drawn_again() -> None:
    free = [nodes(draw(step)) for step in range(30)]
    limit = int(np.median(free))
    limited = [nodes(draw(step, max_nodes=limit)) for step in range(30)]
    assert max(free) > limit >= max(limited)
    assert [n for n in free if n <= limit] == [b for a, b in zip(free, limited, strict=True) if a <= limit]


def test_the_limit_of_nodes_grows_with_meta_batches_above_eight() -> None:
    alike = replace(TRAINING_SET, nodes=np.full(12, 100))

    def fits(meta_batch: int, max_nodes: int) -> bool:
        try:
            return len(draw(0, meta_batch, max_nodes=max_nodes, among=alike)) == meta_batch
        except ValueError:
            return False

    assert fits(4, 400) and not fits(4, 399)  # 8 or fewer: the limit as it is
    assert fits(8, 800) and not fits(8, 799)
    assert fits(12, 800) and not fits(12, 799)
    assert fits(24, 800) and not fits(24, 799)


def test_a_limit_that_no_meta_batch_meets_is_refused() -> None:
    with pytest.raises(ValueError, match="max_nodes = 10: too few for 4 architectures"):
        draw(0, max_nodes=10)


# --- who computes which -------------------------------------------------------------------------------------

Known = tuple[list[float], list[int]]
"""What is known of the architectures of a meta-batch: predicted seconds, and nodes."""


@st.composite
def meta_batches(draw: Callable) -> Known:
    count = draw(st.integers(1, 40))
    several = [draw(st.lists(values, min_size=count, max_size=count)) for values in (SECONDS, NODES)]
    return several[0], several[1]


SECONDS, NODES = st.floats(1e-3, 1e3), st.integers(1, 1000)
META_BATCHES, WORKERS, SLICES = meta_batches(), st.integers(1, 9), st.integers(1, 12)
ROUNDING = 1 + 1e-9


def prediction(part: list[int], nodes: list[int]) -> float:
    return hypernetwork_seconds(sum(nodes[position] for position in part))


def loads(meta_batch: Known, shares: list[list[Assignment]]) -> list[float]:
    costs, nodes = meta_batch
    return [
        sum(prediction(share.part, nodes) + sum(costs[position] for position in share.mine) for share in worker)
        for worker in shares
    ]


@given(META_BATCHES, WORKERS, SLICES)
def test_every_target_network_is_run_exactly_once(meta_batch: Known, workers: int, slices: int) -> None:
    shares = assign_meta_batch(*meta_batch, workers, slices)
    assert len(shares) == workers
    positions = [position for worker in shares for share in worker for position in share.mine]
    assert sorted(positions) == list(range(len(meta_batch[0])))
    for worker in shares:
        assert len({share.number for share in worker}) == len(worker)
        for share in worker:
            assert share.mine and set(share.mine) <= set(share.part)


@given(META_BATCHES, SLICES)
def test_the_parts_of_a_meta_batch_do_not_depend_on_who_computes_them(meta_batch: Known, slices: int) -> None:
    def parts(workers: int) -> dict[int, list[int]]:
        several = [share for worker in assign_meta_batch(*meta_batch, workers, slices) for share in worker]
        numbered = {share.number: share.part for share in several}
        assert all(numbered[share.number] == share.part for share in several)
        return numbered

    alone = parts(1)
    assert sorted(position for part in alone.values() for position in part) == list(range(len(meta_batch[0])))
    assert sorted(alone) == list(range(count_micro_batches(len(meta_batch[0]), slices)))
    assert all(parts(workers) == alone for workers in range(2, 10))


@given(META_BATCHES, SLICES)
def test_up_to_as_many_workers_as_slices_share_whole_parts(meta_batch: Known, slices: int) -> None:
    for workers in range(1, slices + 1):
        shares = [share for worker in assign_meta_batch(*meta_batch, workers, slices) for share in worker]
        assert all(share.mine == share.part for share in shares)
        assert sorted(share.number for share in shares) == list(range(len(shares)))


@given(META_BATCHES, SLICES)
def test_no_part_has_too_many_architectures(meta_batch: Known, slices: int) -> None:
    (parts,) = assign_meta_batch(*meta_batch, 1, slices)
    assert max(len(share.part) for share in parts) <= MICRO_BATCH_SIZE


@given(st.integers(1, 100), SLICES)
def test_a_meta_batch_has_as_many_parts_as_slices_unless_that_is_too_few_or_too_many(
    meta_batch: int, slices: int
) -> None:
    parts = count_micro_batches(meta_batch, slices)
    assert parts <= meta_batch <= MICRO_BATCH_SIZE * parts  # so that no part is empty, or has more than it may
    if slices <= meta_batch <= MICRO_BATCH_SIZE * slices:
        assert parts == slices


@given(META_BATCHES, SLICES)
def test_of_whole_parts_no_worker_has_more_to_do_than_the_mean_and_the_largest(meta_batch: Known, slices: int) -> None:
    (alone,) = assign_meta_batch(*meta_batch, 1, slices)
    jobs = loads(meta_batch, [[share] for share in alone])
    for workers in range(1, slices + 1):
        of_workers = loads(meta_batch, assign_meta_batch(*meta_batch, workers, slices))
        assert sum(of_workers) == pytest.approx(sum(jobs))
        assert max(of_workers) <= (sum(jobs) / workers + max(jobs)) * ROUNDING


@given(META_BATCHES, WORKERS, SLICES)
def test_of_shared_parts_no_worker_has_more_to_do_than_another_and_one_architecture(
    meta_batch: Known, workers: int, slices: int
) -> None:
    """Which comes with the prediction of its part: whoever shares a part pays for that."""
    shares = assign_meta_batch(*meta_batch, workers + slices, slices)
    of_workers = loads(meta_batch, shares)
    most = max(prediction(share.part, meta_batch[1]) for worker in shares for share in worker)
    assert max(of_workers) - min(of_workers) <= (max(meta_batch[0]) + most) * ROUNDING


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_workers_share_the_networks_of_a_part_where_there_are_too_few(workers: int) -> None:
    costs, nodes = [1.0] * MICRO_BATCH_SIZE, [200] * MICRO_BATCH_SIZE
    shares = assign_meta_batch(costs, nodes, workers, slices=1)
    assert [[len(share.mine) for share in worker] for worker in shares] == [[MICRO_BATCH_SIZE // workers]] * workers
    assert all(share.part == list(range(MICRO_BATCH_SIZE)) for worker in shares for share in worker)


@given(st.lists(SECONDS, min_size=1, max_size=40), WORKERS)
def test_costs_are_shared_out_evenly(costs: list[float], workers: int) -> None:
    shares = assign_greedily(costs, workers)
    assert sorted(position for share in shares for position in share) == list(range(len(costs)))
    of_workers = [sum(costs[position] for position in share) for share in shares]
    assert max(of_workers) - min(of_workers) <= max(costs) * ROUNDING
    assert max(of_workers) <= (sum(costs) / workers + max(costs)) * ROUNDING
