"""What a training step needs beside the weights, prepared in a thread while the step before computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from ghn.models.hypernetwork import Hypernetwork
from ghn.training.cost_model import training_seconds
from ghn.training.load_balance import assign_meta_batch
from ghn.training.meta_batch import SampledArchitecture, TrainingSet, sample_meta_batch
from ghn.training.step import MicroBatch
from pipeline.images.batches import Augmentation, training_batch
from pipeline.images.dataset import Images
from pipeline.params import Params


@dataclass(frozen=True)
class PreparedStep:
    """The meta-batch of a step, this worker's slices of it by number, and images (B, 3, S, S) with labels (B,)."""

    step: int
    drawn: list[SampledArchitecture]
    slices: dict[int, MicroBatch]
    images: Tensor
    labels: Tensor

    @property
    def graph_seconds(self) -> float:
        return sum(part.graph_seconds for part in self.slices.values())


@dataclass(frozen=True)
class StepLoader:
    """Prepares the steps of one worker."""

    params: Params
    training_set: TrainingSet
    images: Images
    ghn: Hypernetwork
    rank: int
    workers: int
    device: torch.device
    dtype: torch.dtype

    def __call__(self, step: int) -> PreparedStep:
        seed, settings, size = self.params.seed, self.params.train, self.params.images.size
        drawn = sample_meta_batch(
            self.training_set,
            seed,
            step,
            self.params.meta_batch,
            settings.widths,
            settings.head_widths,
            settings.max_nodes,
        )
        programs = [item.architecture.program(size, len(self.images.classes)) for item in drawn]
        costs = [training_seconds(program, settings.batch) for program in programs]
        nodes = [int(self.training_set.nodes[item.index]) for item in drawn]
        slices = {
            share.number: MicroBatch.of(
                self.ghn, {position: drawn[position] for position in share.part}, share.mine, size
            )
            for share in assign_meta_batch(costs, nodes, self.workers, settings.slices)[self.rank]
        }
        augmentation = Augmentation(self.params.images.shift, self.params.images.flip)
        images, labels = training_batch(self.images, seed, step, settings.batch, augmentation)
        images = images.to(self.dtype).contiguous(memory_format=torch.channels_last)
        if self.device.type == "cuda":  # so that the copy to the device need not be waited for
            images, labels = images.pin_memory(), labels.pin_memory()
        return PreparedStep(step, drawn, slices, images, labels)


def prefetch(prepare: Callable[[int], PreparedStep], steps: Sequence[int]) -> Iterator[tuple[PreparedStep, float]]:
    """Yields each step, prepared, and the seconds that it had to be waited for."""
    torch.get_num_threads()  # settles how many this thread has, before another says how many it has
    with ThreadPoolExecutor(1, "prepare", torch.set_num_threads, (1,)) as pool:
        upcoming = pool.submit(prepare, steps[0]) if steps else None
        for following in [*steps[1:], None] if steps else []:
            started = perf_counter()
            prepared = upcoming.result()
            waited = perf_counter() - started
            upcoming = None if following is None else pool.submit(prepare, following)
            yield prepared, waited
