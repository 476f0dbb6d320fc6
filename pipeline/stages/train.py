"""Stage `train`: Ray Train workers share each step's meta-batch and train one hypernetwork.

What a worker does is in `pipeline.training.loop`. A worker, a node or the controller that dies is replaced, and the run
goes on from its last checkpoint; so it does when this process was killed and the same command is given again.
"""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import torch

from ghn.training.meta_batch import sample_indices
from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.ray_cluster import capacity, ray_cluster, slots_of
from pipeline.errors import Terminated, UserError
from pipeline.images.dataset import Images
from pipeline.images.load import load_images
from pipeline.params import Params
from pipeline.results import results_folder
from pipeline.storage.files import file_sizes, remove
from pipeline.storage.paths import storage_root
from pipeline.storage.tables import write_csv, write_json
from pipeline.tracking.mlflow_runs import StageRun, stage_run
from pipeline.training.loop import split_off_held_out, training_set_of
from pipeline.training.run import _fit, run_folder
from pipeline.training.state import MAX_NONFINITE_SHARE, TrainingState
from pipeline.training.step_loader import meta_batch_settings


def train(params: Params) -> None:
    """Trains a hypernetwork, or goes on where an interrupted run with the same settings stopped."""
    started = time.perf_counter()
    store = ArchitectureStore(params.storage)
    _require_a_first_step(params, store)
    with (
        stage_run("train", params.model_dump(), experiment=params.tracking.experiment) as run,
        ray_cluster(params.cluster.address, params.cluster.cpus),
    ):
        _require_resources(params)
        images = _images(params)
        split_off_held_out(images, params.train)
        run.log_data("architectures", store.digest)
        run.log_data(images.name, images.settings_hash)
        folder = run_folder(params, store, images.settings_hash)
        config = {
            "params": params.model_dump(),
            "storage": storage_root(params.storage),
            "manifest": store.manifest,
            "images": images.place,
            "metrics_buffer": f"steps-{folder.rpartition('/')[2]}",
        }
        result = _fit(params, run, folder, config)
        with result.checkpoint.as_directory() as checkpoint:
            state = _final_state(params, Path(checkpoint), len(images.classes))
        _finish(params, run, state, len(images.train), time.perf_counter() - started)
        for record in file_sizes(folder):  # first: Ray Train's says which checkpoints there are
            remove(f"{folder}/{record}")
        remove(folder)  # asked for again, the stage trains again


def _images(params: Params) -> Images:
    """The images that the settings name, decoded once, on the whole cluster."""
    return load_images(params.dataset, params.images, params.storage)


def _require_a_first_step(params: Params, store: ArchitectureStore) -> None:
    """Raises UserError, before any worker starts, if a shard is missing or damaged, or no meta-batch can be drawn."""
    training_set = training_set_of(store["train"])
    try:
        sample_indices(training_set, meta_batch_settings(params), params.seed, 0)
    except ValueError as error:
        raise UserError(f"train.{error}") from error


def _require_resources(params: Params) -> None:
    settings, have = params.train, capacity()
    name = "min_workers" if settings.min_workers else "workers"
    workers = getattr(settings, name)
    for resource, each in {"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker}.items():
        if workers * each > have[resource]:
            raise UserError(
                f"train.{name} = {workers} need {workers * each} {resource}s, the cluster has {have[resource]}: "
                "use fewer workers or a larger cluster"
            )
    if slots_of(settings.cpus_per_worker, settings.gpus_per_worker) < workers:
        raise UserError(
            f"train.{name} = {workers}: the cluster's nodes have no room for so many workers of "
            f"{settings.cpus_per_worker} CPUs and {settings.gpus_per_worker} GPUs\n"
            "use fewer of both, or larger nodes"
        )


def _final_state(params: Params, checkpoint: Path, num_classes: int) -> TrainingState:
    """The state of the last checkpoint, which is that of the last step, or what has ended the run says so."""
    state = TrainingState.new(params, num_classes, torch.device("cpu"), torch.float32)
    state.load(checkpoint)
    if state.has_diverged(params.meta_batch) or not pd.DataFrame(state.history)["loss"].notna().any():
        most = pd.DataFrame(state.dropped_architectures)["identity"].value_counts()
        raise UserError(
            f"training diverged at step {state.step}: the loss or gradient of more than {MAX_NONFINITE_SHARE:.0%} of the last "
            f"architectures was not finite, most often of {most.index[0]} ({most.iloc[0]} times)\n"
            "lower train.learning_rate or set train.architecture_clip"
        )
    if state.step < params.train.steps:
        raise Terminated(f"terminated after step {state.step:,} of {params.train.steps:,}, whose checkpoint is kept")
    return state


def _finish(params: Params, run: StageRun, state: TrainingState, num_images: int, seconds: float) -> None:
    """Writes results/train and logs what came out."""
    folder = results_folder("train")
    (state.best or state.result).save(folder / "checkpoint")
    history = pd.DataFrame(state.history)
    write_csv(folder / "history.csv", history)
    write_csv(folder / "dropped.csv", pd.DataFrame(state.dropped_architectures, columns=["step", "index", "identity"]))
    recent = history.tail(100)
    metrics = {
        # Medians: the loss of one network that explodes would decide a mean.
        "loss": float(recent["loss"].median()),
        "top1": float(recent["top1"].median()),
        "steps": state.step,
        "epochs": state.step * params.train.batch / num_images,
        "seconds": seconds,
        "architectures_per_second": params.meta_batch / float(history["step_seconds"].median()),
        "dropped": int(history["dropped"].sum()),
        "parameters": sum(p.numel() for p in state.ghn.parameters()),
    }
    headline = ["loss", "top1", "seconds"]
    if state.best is not None:
        metrics |= {"val_top1": state.best_row["val_top1"], "best_step": state.best_row["step"]}
        headline.append("val_top1")
    write_json(folder / "metrics.json", metrics | {"precision": state.precision})
    run.set_tags({"precision": state.precision})
    run.summary({f"train_{name}": metrics.pop(name) for name in headline})
    run.log_metrics({f"train_{name}": value for name, value in metrics.items()})
    run.log_artifact(folder / "history.csv")
    run.log_artifact(folder / "dropped.csv")
    run.log_ghn(folder / "checkpoint")
