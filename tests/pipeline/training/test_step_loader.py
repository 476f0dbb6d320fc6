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

from ghn.deepnets1m.sampling import sample_architecture
from ghn.models.hypernetwork import Hypernetwork
from ghn.training.meta_batch import TrainingSet
from pipeline.images.batches import Augmentation, training_batch
from pipeline.images.dataset import Images, ImageSubset
from pipeline.params import Params
from pipeline.training.job import RunSettings
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
        np.array([architecture.norm is None for architecture in several]),
        several.__getitem__,
    )


AUGMENTATION = {"shift": 1, "flip": True}
IMAGES, TRAINING_SET = some_images(), training_set()


def step_loader(rank: int = 0, workers: int = 1, dtype: torch.dtype = torch.float32, **train: Any) -> StepLoader:
    settings = RunSettings.of(
        Params.model_validate(small_settings(meta_batch=5, images=AUGMENTATION, train={"micro_batches": 1} | train))
    )
    ghn = Hypernetwork(settings.hypernetwork.config(CLASSES, SIZE))
    return StepLoader(settings, TRAINING_SET, IMAGES, ghn, rank, workers, CPU, dtype)


def assert_same(one: PreparedStep, other: PreparedStep) -> None:
    assert (one.step, one.meta_batch) == (other.step, other.meta_batch)
    assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    assert list(one.micro_batches) == list(other.micro_batches)
    for mine, others in zip(one.micro_batches.values(), other.micro_batches.values(), strict=True):
        assert (list(mine.architectures.items()), mine.own) == (list(others.architectures.items()), others.own)
        assert mine.graphs.nodes == others.graphs.nodes
        assert np.array_equal(mine.graphs.sources, others.graphs.sources)
        assert np.array_equal(mine.graphs.distances, others.graphs.distances)


# --- a step -------------------------------------------------------------------------------------------------


def test_a_prepared_step_is_a_function_of_the_step() -> None:
    prepare = step_loader()
    steps = [prepare(step) for step in (3, 4, 3)]
    assert_same(step_loader()(3), steps[0])
    assert_same(steps[2], steps[0])
    assert steps[1].meta_batch != steps[0].meta_batch
    assert not torch.equal(steps[1].images, steps[0].images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_images_are_those_of_the_step_augmented_with_channels_last(dtype: torch.dtype) -> None:
    prepared = step_loader(dtype=dtype)(7)
    images, labels = training_batch(IMAGES, 0, 7, 8, Augmentation(**AUGMENTATION))
    assert prepared.images.dtype == dtype
    assert torch.equal(prepared.images, images.to(dtype)) and torch.equal(prepared.labels, labels)
    assert prepared.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_workers_share_a_meta_batch_and_see_the_same_images(workers: int, micro_batches: int) -> None:
    steps = [step_loader(rank, workers, micro_batches=micro_batches)(5) for rank in range(workers)]
    alone = step_loader(micro_batches=micro_batches)(5)
    for step in steps:
        assert step.meta_batch == alone.meta_batch  # all know the whole meta-batch
        assert torch.equal(step.images, alone.images)
        for number, micro_batch in step.micro_batches.items():
            assert micro_batch.architectures == alone.micro_batches[number].architectures
            assert all(item is step.meta_batch[position] for position, item in micro_batch.architectures.items())
    several = [micro_batch for step in steps for micro_batch in step.micro_batches.values()]
    assert sorted(position for micro_batch in several for position in micro_batch.own) == list(range(5))
    if workers <= micro_batches:
        assert sorted(number for step in steps for number in step.micro_batches) == list(range(micro_batches))
        assert all(micro_batch.own == list(micro_batch.architectures) for micro_batch in several)


def test_a_worker_without_work_has_no_micro_batch_and_still_all_images() -> None:
    steps = [step_loader(rank, workers=8, micro_batches=8)(0) for rank in range(8)]
    idle = [step for step in steps if not step.micro_batches]
    assert len(idle) == 3  # of eight, for five architectures
    assert all(step.graph_seconds == 0 and len(step.images) == 8 for step in idle)


def test_the_graphs_are_laid_out_for_the_hypernetwork_and_their_time_is_taken() -> None:
    prepare = step_loader()
    step = prepare(1)
    (micro_batch,) = step.micro_batches.values()
    assert micro_batch.graphs.num_graphs == 5
    several = [item.architecture.graph(SIZE, CLASSES) for item in step.meta_batch]
    assert sorted(micro_batch.graphs.nodes, key=str) == sorted(chain(*(graph.nodes for graph in several)), key=str)
    names = [
        {parameter.name for parameter in item.architecture.program(SIZE, CLASSES).parameters()}
        for item in step.meta_batch
    ]
    assert [set(parameters) for parameters in prepare.ghn(micro_batch.graphs)] == names
    assert step.graph_seconds == sum(micro_batch.graph_seconds for micro_batch in step.micro_batches.values()) > 0


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="max_nodes = 10"):
        step_loader(max_nodes=10)(0)


# --- prefetching --------------------------------------------------------------------------------------------------


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


def test_a_prefetched_step_is_the_one_that_is_prepared_when_needed() -> None:
    for step, (prepared, waited) in enumerate(prefetch(step_loader(), range(4))):
        assert_same(prepared, step_loader()(step))
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
    steps = prefetch(step_loader(), range(1000))
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


def test_the_time_that_a_step_is_waited_for_is_measured() -> None:
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
