from __future__ import annotations

import threading
import time
from itertools import chain
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch
from small_settings import small_settings

from ghn import GHNConfig
from ghn.deepnets1m.sampling import sample_architecture
from ghn.models.hypernetwork import Hypernetwork
from ghn.training.meta_batch import TrainingSet
from pipeline.images.batches import Augmentation, training_batch
from pipeline.images.dataset import Images, ImageSubset
from pipeline.params import Params
from pipeline.training.step_loader import PreparedStep, StepLoader, prefetch

SIZE, CLASSES = 8, 3
CPU = torch.device("cpu")


def some_images() -> Images:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (30, 3, SIZE, SIZE), dtype=np.uint8)
    part = ImageSubset(pixels, np.arange(30) % CLASSES)
    return Images("noise", "0", tuple("abc"), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), part, part)


def training_set() -> TrainingSet:
    several = [sample_architecture(0, "train", index) for index in range(12)]
    programs = [architecture.program(32, 10) for architecture in several]
    return TrainingSet(
        np.array([len(program.graph.nodes) for program in programs]),
        np.array([program.num_parameters for program in programs]),
        several.__getitem__,
    )


AUGMENTATION = {"shift": 1, "flip": True}
IMAGES, TRAINING_SET = some_images(), training_set()


def preparation(rank: int = 0, workers: int = 1, dtype: torch.dtype = torch.float32, **train: Any) -> StepLoader:
    params = Params.model_validate(
        small_settings(meta_batch=5, images=AUGMENTATION, train={"workers": workers, "slices": 1} | train)
    )
    h = params.hypernetwork
    ghn = Hypernetwork(GHNConfig(CLASSES, SIZE, h.variant, h.hidden, h.kernel, h.virtual_edges))
    return StepLoader(params, TRAINING_SET, IMAGES, ghn, rank, workers, CPU, dtype)


def assert_same(one: PreparedStep, other: PreparedStep) -> None:
    assert (one.step, one.drawn) == (other.step, other.drawn)
    assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    assert list(one.slices) == list(other.slices)
    for part, other_part in zip(one.slices.values(), other.slices.values(), strict=True):
        assert (list(part.drawn.items()), part.mine) == (list(other_part.drawn.items()), other_part.mine)
        assert part.graphs.nodes == other_part.graphs.nodes
        assert np.array_equal(part.graphs.sources, other_part.graphs.sources)
        assert np.array_equal(part.graphs.distances, other_part.graphs.distances)


# --- a step -------------------------------------------------------------------------------------------------


def test_a_prepared_step_is_a_function_of_the_step() -> None:
    prepare = preparation()
    steps = [prepare(step) for step in (3, 4, 3)]
    assert_same(preparation()(3), steps[0])
    assert_same(steps[2], steps[0])
    assert steps[1].drawn != steps[0].drawn
    assert not torch.equal(steps[1].images, steps[0].images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_images_are_those_of_the_step_augmented_with_channels_last(dtype: torch.dtype) -> None:
    prepared = preparation(dtype=dtype)(7)
    images, labels = training_batch(IMAGES, 0, 7, 8, Augmentation(**AUGMENTATION))
    assert prepared.images.dtype == dtype
    assert torch.equal(prepared.images, images.to(dtype)) and torch.equal(prepared.labels, labels)
    assert prepared.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("slices", [1, 4])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_workers_share_a_meta_batch_and_see_the_same_images(workers: int, slices: int) -> None:
    steps = [preparation(rank, workers, slices=slices)(5) for rank in range(workers)]
    alone = preparation(slices=slices)(5)
    for step in steps:
        assert step.drawn == alone.drawn  # all know the whole meta-batch
        assert torch.equal(step.images, alone.images)
        for number, part in step.slices.items():
            assert part.drawn == alone.slices[number].drawn
            assert all(item is step.drawn[position] for position, item in part.drawn.items())
    parts = [part for step in steps for part in step.slices.values()]
    assert sorted(position for part in parts for position in part.mine) == list(range(5))
    if workers <= slices:
        assert sorted(number for step in steps for number in step.slices) == list(range(slices))
        assert all(part.mine == list(part.drawn) for part in parts)


def test_a_worker_without_work_has_no_slices_and_still_all_images() -> None:
    steps = [preparation(rank, workers=8, slices=8)(0) for rank in range(8)]
    idle = [step for step in steps if not step.slices]
    assert len(idle) == 3  # of eight, for five architectures
    assert all(step.graph_seconds == 0 and len(step.images) == 8 for step in idle)


def test_the_graphs_are_laid_out_for_the_hypernetwork_and_their_time_is_taken() -> None:
    prepare = preparation()
    step = prepare(1)
    (part,) = step.slices.values()
    assert part.graphs.num_graphs == 5
    several = [item.architecture.graph(SIZE, CLASSES) for item in step.drawn]
    assert sorted(part.graphs.nodes, key=str) == sorted(chain(*(graph.nodes for graph in several)), key=str)
    names = [
        {parameter.name for parameter in item.architecture.program(SIZE, CLASSES).parameters()} for item in step.drawn
    ]
    assert [set(parameters) for parameters in prepare.ghn(part.graphs)] == names
    assert step.graph_seconds == sum(part.graph_seconds for part in step.slices.values()) > 0


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="max_nodes = 10"):
        preparation(max_nodes=10)(0)


# --- ahead --------------------------------------------------------------------------------------------------


def preparing_threads() -> list[Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]


@pytest.mark.parametrize("steps", [range(0), range(1), range(3, 9), [5, 2, 7]], ids=str)
def test_every_step_comes_once_and_in_order(steps: range | list[int]) -> None:
    asked: list[int] = []

    def prepare(step: int) -> int:
        asked.append(step)
        return step

    assert [step for step, _ in prefetch(prepare, steps)] == list(steps) == asked
    assert not preparing_threads()


def test_what_is_prepared_ahead_is_what_is_prepared_when_needed() -> None:
    for step, (prepared, waited) in enumerate(prefetch(preparation(), range(4))):
        assert_same(prepared, preparation()(step))
        assert waited >= 0


def test_the_next_step_is_prepared_while_this_one_is_used_and_no_other() -> None:
    begun: list[int] = []
    done = [Event() for _ in range(4)]

    def prepare(step: int) -> int:
        begun.append(step)
        done[step].set()
        return step

    for step, _ in prefetch(prepare, range(4)):
        following = min(step + 1, 3)
        assert done[following].wait(30)
        assert begun == list(range(following + 1))


def test_a_step_is_prepared_in_another_thread_with_one_core() -> None:
    threads = [
        (thread, cores)
        for (thread, cores), _ in prefetch(lambda step: (threading.get_ident(), torch.get_num_threads()), range(3))
    ]
    assert len(set(threads)) == 1
    assert threads[0] == (threads[0][0], 1) and threads[0][0] != threading.get_ident()


def test_the_thread_that_computes_keeps_its_cores() -> None:
    found: set[int] = set()

    def compute() -> None:
        torch.set_num_threads(2)
        for _ in prefetch(lambda step: step, range(3)):
            found.add(torch.get_num_threads())

    before = torch.get_num_threads()
    thread = Thread(target=compute)
    thread.start()
    thread.join()
    torch.set_num_threads(before)
    assert found == {2}


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_an_error_of_the_preparation_reaches_the_consumer_at_its_step(failing: int) -> None:
    def prepare(step: int) -> int:
        if step == failing:
            raise ValueError(f"step {step}")
        return step

    seen = []
    with pytest.raises(ValueError, match=f"step {failing}"):
        for step, _ in prefetch(prepare, range(4)):
            seen.append(step)
    assert seen == list(range(failing))
    assert not preparing_threads()


def test_a_consumer_that_ends_early_leaves_no_thread() -> None:
    steps = prefetch(preparation(), range(1000))
    assert next(steps)[0].step == 0
    assert preparing_threads()
    steps.close()
    assert not preparing_threads()


def test_an_error_of_the_consumer_leaves_no_thread() -> None:
    def consume() -> None:
        for step, _ in prefetch(lambda step: step, range(1000)):
            if step == 2:
                raise RuntimeError("of the consumer")

    with pytest.raises(RuntimeError, match="of the consumer"):
        consume()
    assert not preparing_threads()


def test_the_time_that_a_step_is_waited_for_is_told() -> None:
    done = Event()

    def prepare(step: int) -> int:
        if step == 0:
            time.sleep(0.2)
        else:
            done.set()
        return step

    steps = prefetch(prepare, range(2))
    _, first = next(steps)
    assert done.wait(30)
    _, second = next(steps)
    assert first >= 0.2 > second
