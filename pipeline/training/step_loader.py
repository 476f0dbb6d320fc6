"""The data of a training step, which a thread prepares while the step before is computed.

Dimensions: A architectures, B images of a batch, S side of the images in pixels, T tokens of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from ghn.models.hypernetwork import Hypernetwork
from ghn.training.cost_model import training_seconds
from ghn.training.load_balance import Assignment, assign_meta_batch
from ghn.training.meta_batch import (
    MetaBatchSettings,
    SampledArchitecture,
    TrainingSet,
    sample_indices,
    sample_meta_batch,
)
from ghn.training.step import MicroBatch
from pipeline.architectures.store import ArchitectureStore, Split
from pipeline.errors import UserError
from pipeline.images.batches import Augmentation, training_batch
from pipeline.images.dataset import Images
from pipeline.training.job import RunSettings

Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class PreparedStep:
    """The data of one step.

    Attributes:
        step: the number of steps before it.
        meta_batch: all architectures of the step.
        micro_batches: those that this worker computes, by their number.
        owners: a worker that computes each of the micro-batches of the step, by their number.
        images: (B, 3, S, S), channels last, or texts (B, T), int64.
        labels: int64 (B,), or (B, T) of texts.
    """

    step: int
    meta_batch: list[SampledArchitecture]
    micro_batches: dict[int, MicroBatch]
    owners: list[int]
    images: Tensor
    labels: Tensor

    @property
    def graph_seconds(self) -> float:
        """The seconds that it took to lay out the graphs."""
        return sum(micro_batch.graph_seconds for micro_batch in self.micro_batches.values())


@dataclass(frozen=True)
class StepLoader:
    """A loader that prepares the data of one worker's steps.

    Attributes:
        settings: what is learned.
        training_set: the architectures that meta-batches are sampled from.
        images: the images that batches are taken from.
        ghn: the hypernetwork, whose configuration is read, but not its weights.
        rank, workers: which worker this is, of how many.
        device: where the step will be computed.
        dtype: that of the images.
    """

    settings: RunSettings
    training_set: TrainingSet
    images: Images
    ghn: Hypernetwork
    rank: int
    workers: int
    device: torch.device
    dtype: torch.dtype

    def __call__(self, step: int) -> PreparedStep:
        """Return the data of a step, a function of the settings and of the step alone.

        Raises:
            ValueError: a hundred meta-batches in a row had too many nodes.
        """
        meta_batch = sample_meta_batch(
            self.training_set,
            meta_batch_settings(self.settings),
            self.settings.seed,
            step,
            self.settings.images.size,
            len(self.images.classes),
        )
        assignments = self._assignments(meta_batch)
        owner_of = {part.micro_batch: rank for rank, parts in enumerate(assignments) for part in parts}
        owners = [owner_of[number] for number in range(len(owner_of))]
        micro_batches = {
            part.micro_batch: MicroBatch.of(self.ghn, {at: meta_batch[at] for at in part.positions}, part.own)
            for part in assignments[self.rank]
        }
        images, labels = self._batch(step)
        return PreparedStep(step, meta_batch, micro_batches, owners, images, labels)

    def _assignments(self, meta_batch: Sequence[SampledArchitecture]) -> list[list[Assignment]]:
        """Return what each worker computes of a step."""
        costs = [training_seconds(sampled.program, self.settings.train.batch) for sampled in meta_batch]
        nodes = [int(self.training_set.nodes[sampled.index]) for sampled in meta_batch]
        return assign_meta_batch(costs, nodes, self.workers, self.settings.train.micro_batches)

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the images and labels of a step, in main memory: see `PreparedStep`."""
        settings = self.settings
        augmentation = Augmentation(settings.images.shift, settings.images.flip)
        images, labels = training_batch(self.images, settings.seed, step, settings.train.batch, augmentation)
        if images.is_floating_point():
            images = images.to(self.dtype).contiguous(memory_format=torch.channels_last)
        if self.device.type == "cuda":  # from pinned memory the copy to the device runs in the background
            return images.pin_memory(), labels.pin_memory()
        return images, labels


def meta_batch_settings(settings: RunSettings) -> MetaBatchSettings:
    """Return the settings by which the meta-batches of a run are sampled."""
    train = settings.train
    return MetaBatchSettings(settings.meta_batch, train.widths, train.head_widths, train.max_nodes, train.norm_free)


def training_set_of(split: Split, first: int | None = None) -> TrainingSet:
    """Return the first architectures of a split (None: all) as the set that meta-batches are sampled from."""
    columns = split.columns("nodes", "parameters") | {"norm_free": split.norm_free}
    return TrainingSet(**{name: column[:first] for name, column in columns.items()}, read=split.read)


def prefetch(prepare: Callable[[int], Prepared], steps: Sequence[int]) -> Iterator[tuple[Prepared, float]]:
    """Yield the data of each step, and the seconds that the caller had to wait for it.

    While the caller uses the data of one step, a thread prepares the next one.
    """
    if not steps:
        return
    torch.get_num_threads()  # fixes the number of this thread before the other thread sets its own
    with ThreadPoolExecutor(1, "prepare", torch.set_num_threads, (1,)) as pool:
        upcoming = pool.submit(prepare, steps[0])
        for following in range(1, len(steps) + 1):
            started = perf_counter()
            prepared = upcoming.result()
            waited = perf_counter() - started
            if following < len(steps):
                upcoming = pool.submit(prepare, steps[following])
            yield prepared, waited


def require_first_step(settings: RunSettings, store: ArchitectureStore) -> None:
    """Read all training architectures and sample the first meta-batch, before any worker starts.

    Raises:
        UserError: a shard is missing or damaged, or no meta-batch can be sampled as the settings say.
    """
    try:
        training_set = training_set_of(store["train"], settings.train.architectures)
        sample_indices(training_set, meta_batch_settings(settings), settings.seed, 0)
    except ValueError as error:
        raise UserError(f"train.{error}") from error
