"""What each Ray Train worker runs: the training loop.

Every worker knows the whole meta-batch of a step and computes its slices of it; the sum over the workers is the
gradient of one process computing all of it. What a step samples depends on (seed, step) alone. So the number of workers
may change whenever a run goes on from a checkpoint.
"""

from __future__ import annotations

import gc
import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from ray.train.torch import get_device

from ghn.training.load_balance import assigns_whole_micro_batches, count_micro_batches
from ghn.training.meta_batch import TrainingSet
from ghn.training.schedules import cosine, multi_step, warm_up
from ghn.training.step import StepSettings, Stopwatch, accumulate_micro_batch
from pipeline.architectures.store import ArchitectureStore, Split
from pipeline.errors import UserError
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.load import open_images
from pipeline.images.subsets import hold_out
from pipeline.params import Params, TrainSettings
from pipeline.training.gradient_reduction import GradientReducer, StepResult
from pipeline.training.state import Row, TrainingState
from pipeline.training.step_loader import PreparedStep, StepLoader, prefetch
from pipeline.training.validation import Validation

LOOK_SECONDS = 1.0
"""How often the workers look whether the run is to stop, or a node is about to go."""

BF16_PAYS = 24
"""Side of images, in pixels, from which bfloat16 is faster on a CPU that has it; on a GPU it always is."""

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}

STEPS_BEFORE_PROFILE = 2
"""Steps before those that are profiled: the first ones are slower."""


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Trains from the last checkpoint, or from the start, to the last step.

    `config` has the settings (`params`), the `storage` as this worker reaches it, the content of the `manifest`, the
    place of the decoded `images`, and the name of the actor that takes what is to be logged (`metrics_buffer`).
    """
    worker = Worker(config)
    settings = worker.settings
    state = worker.first_state()
    gc.freeze()  # what there is by now stays: the collector need not look through it again
    with worker.profile() as profiled:
        for prepared, waited in prefetch(worker.preparation(state), range(state.step, settings.steps)):
            taken = worker.train_step(state, prepared, waited)
            stops, looks = (bool(count) for count in taken.flags)
            diverged = state.has_diverged(worker.params.meta_batch)
            ends = stops or diverged or state.step == settings.steps
            if settings.validate_every and (state.step % settings.validate_every == 0 or state.step == settings.steps):
                taken.row.update(worker.validate(state))
            worker.log(state, taken.row)
            profiled()
            if ends or state.step % settings.checkpoint_every == 0 or (looks and worker.is_preempted()):
                report(state, worker.rank)
            if ends:
                return


class Worker:
    """One process of a run: its place among the workers, its device, and the data that it reads."""

    def __init__(self, config: dict[str, Any]):
        self.params = Params.model_validate(config["params"])
        self.settings: TrainSettings = self.params.train
        logging.getLogger().setLevel(logging.WARNING)  # Ray Train has some lines for each report
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.device = get_device()
        torch.set_num_threads(self.settings.cpus_per_worker)
        self.dtype = torch.float64 if self.settings.precision == "fp64" else torch.float32
        self.store = ArchitectureStore(config["storage"], config["manifest"])
        self.images, held_out = split_off_held_out(open_images(config["images"]), self.settings)
        self.validation = self._validation(held_out)
        self.metrics_buffer = ray.get_actor(config["metrics_buffer"]) if self.rank == 0 else None
        self.looked = perf_counter()
        self.preemptions: set[str] = set()

    def _validation(self, held_out: ImageSubset) -> Validation | None:
        if not self.settings.validate_every:
            return None
        split, (C, *_), (fc_dim, *_) = self.store["val"], self.settings.widths, self.settings.head_widths
        count = min(self.settings.validate_architectures, len(split))
        architectures = [split.read(index).with_width(C, fc_dim) for index in range(count)]
        return Validation(architectures, held_out, self.images, self.settings.batch)

    def first_state(self) -> TrainingState:
        """The state of the last checkpoint; without one, that before the first step."""
        state = TrainingState.new(self.params, len(self.images.classes), self.device, self.dtype)
        if (checkpoint := ray.train.get_checkpoint()) is not None:
            with checkpoint.as_directory() as folder:
                state.load(Path(folder))
            if self.rank == 0:
                self.metrics_buffer.resume.remote(state.step, state.history, state.dropped_architectures)
        state.precision = state.precision or self._precision()
        return state

    def _precision(self) -> str:
        """The precision of target networks, the same on all workers, whatever each of them has."""
        if self.settings.precision != "auto":
            return self.settings.precision
        pays = torch.tensor(float(bf16_pays(self.device, self.params.images.size)), device=self.device)
        if self.workers > 1:
            dist.all_reduce(pays, dist.ReduceOp.MIN)
        return "bf16" if pays else "fp32"

    def preparation(self, state: TrainingState) -> StepLoader:
        training_set = training_set_of(self.store["train"])
        return StepLoader(
            self.params, training_set, self.images, state.ghn, self.rank, self.workers, self.device, self.dtype
        )

    def train_step(self, state: TrainingState, prepared: PreparedStep, waited: float) -> StepResult:
        """Takes one step; returns what it came to, with its row for the history."""
        started = perf_counter() - waited
        settings, meta_batch = self.settings, self.params.meta_batch
        step_settings = StepSettings(
            self.params.seed, settings.label_smoothing, settings.architecture_clip, TORCH_DTYPES[state.precision]
        )
        watch = Stopwatch(self.device)
        whole = assigns_whole_micro_batches(self.workers, settings.slices)
        total = GradientReducer(
            state.ghn.parameters(), meta_batch, count_micro_batches(meta_batch, settings.slices) if whole else 1
        )
        images = prepared.images.to(self.device, non_blocking=True)
        labels = prepared.labels.to(self.device, non_blocking=True)
        for number, part in prepared.slices.items():
            scores = accumulate_micro_batch(state.ghn, part, images, labels, state.step, step_settings, watch)
            total.add(scores, number if whole else 0)
        seconds = {"graph": prepared.graph_seconds, "wait": waited, **watch.seconds}
        result = total.all_reduce(self.rank, self.workers, seconds, perf_counter() - started, self._flags())

        rate = learning_rate(settings, state.step)
        norm = state.update(rate, settings.clip)
        dropped = range(meta_batch) if math.isnan(norm) else result.dropped
        state.drop([prepared.drawn[position].index for position in dropped], self._network_hash)
        taken = perf_counter() - started
        result.row.update(
            step=state.step,
            learning_rate=rate,
            gradient_norm=norm,
            dropped=len(dropped),
            step_seconds=taken,
            images_per_second=settings.batch * meta_batch / taken,
            architectures_per_second=meta_batch / taken,
        )
        return result

    def _flags(self) -> tuple[bool, bool]:
        """Whether the run is to stop, and whether it was looked after that: the first worker does it for all."""
        if self.rank != 0 or perf_counter() - self.looked < LOOK_SECONDS:
            return False, False
        self.looked = perf_counter()
        return ray.get(self.metrics_buffer.is_stopping.remote()), True

    def is_preempted(self) -> bool:
        """Whether a worker's node is about to go, which was not known before. All workers have to ask."""
        announced = ray.train.get_preemption_info()
        nodes = set(announced.preempted_node_ids) if announced else set()
        known, self.preemptions = self.preemptions, self.preemptions | nodes
        return not nodes <= known

    def validate(self, state: TrainingState) -> Row:
        """Measures the weights, and keeps them if they are the best so far."""
        measured = self.validation.measure(state.result, self.rank, self.workers)
        state.keep_if_best(measured)
        return measured

    def log(self, state: TrainingState, row: Row) -> None:
        """Puts a step's row into the history; the first worker sends what is new to the log."""
        logged = state.record(row, self.settings.log_every, self.settings.steps)
        dropped = state.dropped_architectures[len(state.dropped_architectures) - state.dropped[-1] :]
        if self.rank == 0 and (logged or dropped):
            self.metrics_buffer.add.remote([logged] if logged else [], dropped)

    def _network_hash(self, index: int) -> str:
        return self.store["train"].row(index, "identity")["identity"][0].as_py()

    @contextmanager
    def profile(self) -> Iterator[Callable[[], None]]:
        """Records `profile_steps` steps of the first worker as a Chrome trace; what it yields counts a step."""
        if self.rank != 0 or not self.settings.profile_steps:
            yield lambda: None
            return
        schedule = torch.profiler.schedule(
            wait=STEPS_BEFORE_PROFILE - 1, warmup=1, active=self.settings.profile_steps, repeat=1
        )
        with torch.profiler.profile(schedule=schedule, on_trace_ready=self._keep_trace) as profiler:
            yield profiler.step

    def _keep_trace(self, profiler: torch.profiler.profile) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json.gz"
            profiler.export_chrome_trace(str(file))
            ray.get(self.metrics_buffer.keep.remote(file.name, file.read_bytes()))


def split_off_held_out(images: Images, settings: TrainSettings) -> tuple[Images, ImageSubset]:
    """The images to train on, and those that are only validated on.

    Raises UserError if validation is on and there are too few images for it.
    """
    images, held_out = hold_out(images, settings.validate_images if settings.validate_every else 0.0)
    if settings.validate_every and not len(held_out):
        raise UserError(
            f"train.validate_images = {settings.validate_images}: no class of {images.name} has two training images\n"
            "use more images, or train.validate_every = null"
        )
    return images, held_out


def training_set_of(split: Split) -> TrainingSet:
    return TrainingSet(**split.columns("nodes", "parameters"), read=split.read)


def bf16_pays(device: torch.device, image_size: int) -> bool:
    """Whether target networks run faster in bfloat16 on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return image_size >= BF16_PAYS and torch.cpu.get_capabilities().get("avx512_bf16", False)


def learning_rate(settings: TrainSettings, step: int) -> float:
    rate = settings.learning_rate * warm_up(step, settings.warmup)
    if settings.schedule == "cosine":
        return cosine(rate, step, settings.steps)
    return multi_step(rate, step, settings.steps, settings.milestones, settings.decay)


def report(state: TrainingState, rank: int) -> None:
    """Hands a checkpoint to Ray Train, which stores it before the workers go on."""
    metrics = {**state.best_row, "step": state.step}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder))
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
