"""The training loop, which each Ray Train worker runs.

Every worker knows the whole meta-batch of a step and computes some of its micro-batches. The sum of the workers'
gradients is the gradient of one process that computes all of them. The data of a step is a function of (seed, step)
alone. So the number of workers may change whenever a run goes on from a checkpoint.
"""

from __future__ import annotations

import gc
import logging
import math
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint
from ray.train.torch import get_device

from ghn.training.load_balance import assigns_whole_micro_batches, count_micro_batches
from ghn.training.schedules import cosine, multi_step, warm_up
from ghn.training.step import StepSettings, Stopwatch, accumulate_micro_batch
from pipeline.architectures.store import ArchitectureStore
from pipeline.images.load import open_images
from pipeline.params import TrainSettings
from pipeline.training.driver_link import DriverLink
from pipeline.training.gradient_reduction import GradientReducer, StepResult
from pipeline.training.history import Row
from pipeline.training.job import WorkerJob
from pipeline.training.precision import TORCH_DTYPES, agree_on_precision, allow_tf32, choose_precision, has_native_bf16
from pipeline.training.profiling import profiled_steps
from pipeline.training.shared_gpu import take_memory
from pipeline.training.state import TrainingState
from pipeline.training.step_loader import PreparedStep, StepLoader, prefetch, training_set_of
from pipeline.training.validation import Validation, split_off_held_out


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Train from the last checkpoint, or from the start, to the last step.

    Args:
        config: a `WorkerJob`, as the dictionary of plain values that Ray Train passes on.
    """
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train logs several lines for each report
    Trainer(WorkerJob.model_validate(config)).train()


class Trainer:
    """One worker of a training run.

    Attributes:
        job: what the driver sent to this worker.
        train_settings: the section `train` of the settings.
        rank, workers: which worker this is, of how many.
        device: where this worker computes.
        driver: the connection to the driver; only rank 0 uses it.
        store: the stored architectures.
        state: the weights and all else that a checkpoint has.
        loader: prepares the data of each step.
        validation: what the weights are validated on; None where validation is off.
        step_settings: how the loss of a step is computed.
    """

    def __init__(self, job: WorkerJob):
        self.job, self.train_settings = job, job.settings.train
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.device = get_device()
        take_memory(self.device, job.workers.gpus)
        torch.set_num_threads(job.workers.cpus)
        self.driver = DriverLink(self.rank, job.metrics_buffer)
        self._announced_preemptions: set[str] = set()

        settings, train = job.settings, job.settings.train
        self.store = ArchitectureStore(job.storage, job.manifest)
        images, held_out = split_off_held_out(open_images(job.images), train.validation)
        dtype = torch.float64 if train.precision == "fp64" else torch.float32
        self.state = TrainingState.new(settings, len(images.classes), self.device, dtype)
        self.load_checkpoint()
        self.loader = StepLoader(
            settings,
            training_set_of(self.store["train"], train.architectures),
            images,
            self.state.ghn,
            self.rank,
            self.workers,
            self.device,
            dtype,
        )
        self.validation = (
            Validation.of(self.store["val"], held_out, images, train) if train.validation.every is not None else None
        )
        precision = TORCH_DTYPES[self.target_precision()]
        self.step_settings = StepSettings(
            settings.seed, train.label_smoothing, train.architecture_clip, precision, train.penalty
        )

    def load_checkpoint(self) -> None:
        """Load the last checkpoint, if the run has one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            self.state.load(Path(folder))
        self.driver.resume(self.state.step, self.workers, self.state.history, self.state.dropped_architectures)

    def target_precision(self) -> str:
        """Return the precision of target networks, which all workers choose together when the run begins."""
        auto = self.train_settings.precision == "auto"
        if self.state.precision is None and auto:
            image_size = None if self.job.settings.is_text else self.job.settings.images.size
            choice = choose_precision(self.device.type, has_native_bf16(self.device), image_size)
            choice = agree_on_precision(choice, self.workers, self.device)
            self.state.precision = choice.precision
            self.driver.announce(f"precision auto: {choice.precision} ({choice.reason})")
        elif self.state.precision is None:
            self.state.precision = self.train_settings.precision
        if auto and self.state.precision == "fp32" and self.device.type == "cuda":
            allow_tf32()
        return self.state.precision

    def train(self) -> None:
        """Take steps until the last one, or until the run diverges or the driver asks to stop."""
        state, settings, workers = self.state, self.train_settings, self.job.workers
        gc.freeze()  # all that exists now stays until the end: the collector need not look at it again
        with profiled_steps(workers.profile_steps if self.rank == 0 else 0, self.driver.keep_file) as count_step:
            for prepared, waited in prefetch(self.loader, range(state.step, settings.steps)):
                result = self.train_step(prepared, waited)
                stop, polled = (count > 0 for count in result.flags)
                ends = stop or state.has_diverged(self.job.settings.meta_batch) or state.step == settings.steps
                if self.is_validation_due():
                    result.row.update(self.validate())
                self.log(result.row)
                count_step()
                if ends or state.step % workers.checkpoint_every == 0 or (polled and self.is_preempted()):
                    self.report_checkpoint()
                if ends:
                    return

    def train_step(self, prepared: PreparedStep, waited: float) -> StepResult:
        """Take one step and return its outcome, which is the same on all workers.

        Args:
            waited: seconds that this worker waited for the data of the step.
        """
        started = perf_counter() - waited
        state, settings, meta_batch = self.state, self.train_settings, self.job.settings.meta_batch
        result = self.compute_gradient(prepared, waited, started)
        rate = learning_rate(settings, state.step)
        norm = state.update(rate, settings.clip)
        nonfinite = range(meta_batch) if math.isnan(norm) else result.dropped
        state.record_nonfinite([prepared.meta_batch[position].index for position in nonfinite], self.network_hash)
        step_seconds = perf_counter() - started
        result.row.update(
            step=state.step,
            learning_rate=rate,
            gradient_norm=norm,
            dropped=len(nonfinite),
            step_seconds=step_seconds,
            images_per_second=settings.batch * meta_batch / step_seconds,
            architectures_per_second=meta_batch / step_seconds,
        )
        return result

    def compute_gradient(self, prepared: PreparedStep, waited: float, started: float) -> StepResult:
        """Leave the gradient of a step, summed over all workers, in `.grad` of the weights, and return the scores.

        Args:
            waited: seconds that this worker waited for the data of the step.
            started: when that began, by `perf_counter`.
        """
        ghn, step, meta_batch = self.state.ghn, self.state.step, self.job.settings.meta_batch
        micro_batches, watch = self.train_settings.micro_batches, Stopwatch(self.device)
        whole = assigns_whole_micro_batches(self.workers, micro_batches)
        gradients = count_micro_batches(meta_batch, micro_batches) if whole else 1
        reducer = GradientReducer(ghn.parameters(), meta_batch, gradients)
        images = prepared.images.to(self.device, non_blocking=True)
        labels = prepared.labels.to(self.device, non_blocking=True)
        for number, micro_batch in prepared.micro_batches.items():
            scores = accumulate_micro_batch(ghn, micro_batch, images, labels, step, self.step_settings, watch)
            reducer.add(scores, number if whole else 0)
        seconds = {"graph": prepared.graph_seconds, "wait": waited, **watch.seconds()}
        busy = perf_counter() - started
        owners = prepared.owners if whole else None
        return reducer.all_reduce(self.rank, self.workers, seconds, busy, self.driver.poll_stop(), owners)

    def network_hash(self, index: int) -> str:
        """Return the network hash of an architecture of the training split."""
        return self.store["train"].row(index, "identity")["identity"][0].as_py()

    def is_validation_due(self) -> bool:
        """Return whether the weights are validated after this step."""
        every, step = self.train_settings.validation.every, self.state.step
        return every is not None and (step % every == 0 or step == self.train_settings.steps)

    def validate(self) -> Row:
        """Measure the weights, and keep them if they are the best so far. All workers must call this."""
        assert self.validation is not None
        measured = self.validation.measure(self.state.eval_model, self.rank, self.workers)
        self.state.keep_if_best(measured)
        return measured

    def log(self, row: Row) -> None:
        """Add a step's row to the history, and send the driver new rows and the architectures that the step dropped."""
        logged = self.state.record(row, self.train_settings.log_every, self.train_settings.steps)
        self.driver.send([logged] if logged else [], self.state.dropped_in_last_step)

    def is_preempted(self) -> bool:
        """Return whether Ray announces the loss of a node for the first time. All workers must call this."""
        info = ray.train.get_preemption_info()
        nodes = set(info.preempted_node_ids) if info else set()
        known, self._announced_preemptions = self._announced_preemptions, self._announced_preemptions | nodes
        return not nodes <= known

    def report_checkpoint(self) -> None:
        """Hand a checkpoint to Ray Train, which stores it before the workers go on. All workers must call this."""
        metrics = {**self.state.best_row, "step": self.state.step}
        if self.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            self.state.save(Path(folder))
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Return the learning rate of the step that follows `step` others."""
    schedule = settings.schedule
    rate = settings.optimizer.learning_rate * warm_up(step, schedule.warmup)
    if schedule.name == "cosine":
        return cosine(rate, step, settings.steps)
    return multi_step(rate, step, settings.steps, schedule.milestones, schedule.decay)
