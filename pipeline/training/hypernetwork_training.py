"""Training one hypernetwork from settings to results, for the stages that do so."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ray.train import Checkpoint

from ghn.models.hypernetwork import Hypernetwork
from pipeline.architectures.store import ArchitectureStore
from pipeline.errors import Terminated, UserError
from pipeline.images.dataset import Images
from pipeline.params import Params, WorkerSettings
from pipeline.storage.paths import storage_root, training_folder
from pipeline.storage.tables import write_csv, write_json
from pipeline.tracking.mlflow_runs import StageRun
from pipeline.training.job import RunSettings, WorkerJob, run_name
from pipeline.training.run import fit, remove_run
from pipeline.training.state import MAX_NONFINITE_SHARE, TrainingState
from pipeline.training.tables import DroppedArchitectures, TrainingMetrics, history_model


@dataclass(frozen=True, eq=False)
class TrainedHypernetwork:
    """A finished run: its state after the last step, and its metrics."""

    state: TrainingState
    metrics: TrainingMetrics

    @property
    def ghn(self) -> Hypernetwork:
        """The hypernetwork with the weights that did best in validation; without validation, those of the last step."""
        return self.state.best or self.state.eval_model

    @property
    def history(self) -> pd.DataFrame:
        """A row for each logged step."""
        return pd.DataFrame(self.state.history)

    def write(self, folder: Path) -> None:
        """Write the checkpoint, the tables and the metrics to a folder of the results."""
        self.ghn.save(folder / "checkpoint")
        dropped = pd.DataFrame(self.state.dropped_architectures, columns=list(DroppedArchitectures.to_schema().columns))
        write_csv(folder / "history.csv", history_model(self.history.columns).validate(self.history))
        write_csv(folder / "dropped.csv", DroppedArchitectures.validate(dropped))
        write_json(folder / "metrics.json", self.present_metrics())

    def present_metrics(self) -> dict[str, Any]:
        """Return the metrics that have a value, by name."""
        return {name: value for name, value in asdict(self.metrics).items() if value is not None}


@contextmanager
def trained_hypernetwork(
    params: Params, store: ArchitectureStore, images: Images, run: StageRun | None
) -> Iterator[TrainedHypernetwork]:
    """Train a hypernetwork, or go on where an interrupted run with the same settings stopped.

    The checkpoints of the run are removed when the block ends without an error, so that the block writes the results.

    Args:
        params: all settings, of which training reads `RunSettings`, the workers and the storage.
        images: the data set that the settings name.
        run: where the history is logged; None: nowhere.

    Raises:
        UserError: the run cannot go on, or it has diverged.
        Terminated: SIGTERM came before the last step.
    """
    started = time.perf_counter()
    settings = RunSettings.of(params)
    name = run_name(settings, store.manifest, images.settings_hash)
    folder = training_folder(params.storage, name)
    job = WorkerJob(
        settings=settings,
        workers=params.workers,
        storage=storage_root(params.storage),
        manifest=store.manifest,
        images=images.place,
        metrics_buffer=f"steps-{name}",
    )
    state = final_state(settings, fit(job, folder, run), len(images.classes))
    seconds = time.perf_counter() - started
    yield TrainedHypernetwork(state, _metrics(settings, params.workers, state, len(images.train), seconds))
    remove_run(folder)


def final_state(settings: RunSettings, checkpoint: Checkpoint, num_classes: int) -> TrainingState:
    """Return the state after the last step.

    Raises:
        UserError: the run has diverged.
        Terminated: the workers were asked to stop before the last step.
    """
    state = TrainingState.new(settings, num_classes, torch.device("cpu"), torch.float32)
    with checkpoint.as_directory() as folder:
        state.load(Path(folder))
    losses = [row["loss"] for row in state.history]  # none where the run was stopped before its first row
    if state.has_diverged(settings.meta_batch) or (losses and all(map(math.isnan, losses))):
        most = pd.DataFrame(state.dropped_architectures)["identity"].value_counts()
        raise UserError(
            f"training diverged at step {state.step}: the loss or gradient of more than {MAX_NONFINITE_SHARE:.0%} of "
            f"the last architectures was not finite, most often of {most.index[0]} ({most.iloc[0]} times)\n"
            "lower train.optimizer.learning_rate or set train.architecture_clip"
        )
    steps = settings.train.steps
    if state.step < steps:
        raise Terminated(f"terminated after step {state.step:,} of {steps:,}, whose checkpoint is kept")
    return state


def _metrics(
    settings: RunSettings, workers: WorkerSettings, state: TrainingState, num_images: int, seconds: float
) -> TrainingMetrics:
    """Return the metrics of a run, with the number and the device of its workers, which the report reads here.

    Loss and top-1 are medians, because one network that explodes decides a mean.
    """
    history = pd.DataFrame(state.history)
    recent = history.tail(100)
    best = state.best_row if state.best is not None else {}
    return TrainingMetrics(
        loss=float(recent["loss"].median()),
        top1=float(recent["top1"].median()),
        steps=state.step,
        epochs=state.step * settings.train.batch / num_images,
        seconds=seconds,
        architectures_per_second=settings.meta_batch / float(history["step_seconds"].median()),
        dropped=int(history["dropped"].sum()),
        parameters=sum(weight.numel() for weight in state.ghn.parameters()),
        precision=str(state.precision),
        workers=workers.number,
        device="cuda" if workers.gpus else "cpu",
        val_top1=best.get("val_top1"),
        best_step=int(best["step"]) if best else None,
    )
