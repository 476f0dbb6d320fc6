"""Stage `train`: Ray Train workers share each step's meta-batch and train one hypernetwork.

What a worker does is in `pipeline.training.loop`, and how the workers are run in `pipeline.training.run`.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ray.train import Checkpoint

from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.errors import Terminated, UserError
from pipeline.images.load import load_images
from pipeline.params import Params, WorkerSettings
from pipeline.results import results_folder
from pipeline.storage.paths import storage_root, training_folder
from pipeline.storage.tables import write_csv, write_json
from pipeline.tracking.mlflow_runs import StageRun, stage_run
from pipeline.training.job import RunSettings, WorkerJob, run_name
from pipeline.training.run import fit, remove_run, require_resources
from pipeline.training.state import MAX_NONFINITE_SHARE, TrainingState
from pipeline.training.step_loader import require_first_step
from pipeline.training.tables import DroppedArchitectures, TrainingMetrics, history_model
from pipeline.training.validation import split_off_held_out

LISTED_METRICS = ("loss", "top1", "seconds", "val_top1")
"""Metrics that MLflow shows in its list of runs."""

TAGS = ("precision", "workers", "device")
"""Metrics that are tags in MLflow, because they say how the run was computed."""


def train(params: Params) -> None:
    """Train a hypernetwork, or go on where an interrupted run with the same settings stopped.

    Raises:
        UserError: the settings do not fit the data or the cluster, the run cannot go on, or it has diverged.
        Terminated: SIGTERM came before the last step.
    """
    started = time.perf_counter()
    settings, store = RunSettings.of(params), ArchitectureStore(params.storage)
    require_first_step(settings, store)
    with (
        stage_run("train", params.model_dump(), experiment=params.tracking.experiment) as run,
        ray_cluster(params.cluster.address, params.cluster.cpus),
    ):
        require_resources(params.workers)
        images = load_images(params.dataset, params.images, params.storage)
        split_off_held_out(images, params.train.validation)  # raises UserError before any worker starts
        run.log_data("architectures", store.digest)
        run.log_data(images.name, images.settings_hash)

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
        checkpoint = fit(job, folder, run)
        state = _final_state(settings, checkpoint, len(images.classes))
        metrics = _metrics(settings, params.workers, state, len(images.train), time.perf_counter() - started)
        _write_results(state, metrics)
        _log_results(run, metrics)
        remove_run(folder)


def _final_state(settings: RunSettings, checkpoint: Checkpoint, num_classes: int) -> TrainingState:
    """Return the state after the last step.

    Raises:
        UserError: the run has diverged.
        Terminated: the workers were asked to stop before the last step.
    """
    state = TrainingState.new(settings, num_classes, torch.device("cpu"), torch.float32)
    with checkpoint.as_directory() as folder:
        state.load(Path(folder))
    if state.has_diverged(settings.meta_batch) or not pd.DataFrame(state.history)["loss"].notna().any():
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


def _write_results(state: TrainingState, metrics: TrainingMetrics) -> None:
    """Write the checkpoint, the tables and the metrics to results/train."""
    folder = results_folder("train")
    (state.best or state.eval_model).save(folder / "checkpoint")
    history = pd.DataFrame(state.history)
    dropped = pd.DataFrame(state.dropped_architectures, columns=list(DroppedArchitectures.to_schema().columns))
    write_csv(folder / "history.csv", history_model(history.columns).validate(history))
    write_csv(folder / "dropped.csv", DroppedArchitectures.validate(dropped))
    write_json(folder / "metrics.json", _without_none(metrics))


def _log_results(run: StageRun, metrics: TrainingMetrics) -> None:
    """Log the metrics and the files of results/train to MLflow, and register the hypernetwork there."""
    folder = results_folder("train")
    values = {name: value for name, value in _without_none(metrics).items() if name not in TAGS}
    run.set_tags({name: getattr(metrics, name) for name in TAGS})
    run.summary({f"train_{name}": values[name] for name in LISTED_METRICS if name in values})
    run.log_metrics({f"train_{name}": value for name, value in values.items() if name not in LISTED_METRICS})
    run.log_artifact(folder / "history.csv")
    run.log_artifact(folder / "dropped.csv")
    run.log_ghn(folder / "checkpoint")


def _without_none(metrics: TrainingMetrics) -> dict[str, Any]:
    return {name: value for name, value in asdict(metrics).items() if value is not None}
