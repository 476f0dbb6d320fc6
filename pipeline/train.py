"""Stage `train`: Ray Train workers share each step's meta-batch and train one hypernetwork.

What a worker does is in `pipeline.train_loop`. A worker, a node or the controller that dies is replaced, and the run
goes on from its last checkpoint; so it does when this process was killed and the same command is given again.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import ray
import ray.train
import torch
from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.architecture_store import ArchitectureStore
from pipeline.arrow_storage import arrow_filesystem
from pipeline.cluster import capacity, ray_cluster
from pipeline.errors import Terminated, UserError
from pipeline.images import list_datasets
from pipeline.params import Params, fingerprint
from pipeline.results import RESULTS, results_folder, write_csv, write_json
from pipeline.step_log import Progress, StepLog, tell
from pipeline.storage import remove, storage_url, write_bytes
from pipeline.tracking import StageRun, stage_run
from pipeline.train_loop import images_of, train_loop_per_worker, training_set_of
from pipeline.training_state import MOST_DROPPED, TrainingState

NOT_PART_OF_THE_RUN = (
    "workers",
    "min_workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "placement",
    "max_failures",
    "checkpoint_every",
    "profile_steps",
)
"""Settings of `train` that may change between a crash and the next attempt: the run stays the same."""


def train(params: Params) -> None:
    """Trains a hypernetwork, or goes on where an interrupted run with the same settings stopped."""
    started = time.perf_counter()
    store = ArchitectureStore(params.storage)
    training_set_of(store["train"])  # a missing or damaged shard is noticed here, before any worker starts
    with (
        stage_run("train", params.model_dump(), experiment=params.tracking.experiment) as run,
        ray_cluster(params.cluster.address, params.cluster.cpus),
    ):
        _require_resources(params)
        images, _ = images_of(params, params.storage)
        run.log_data("architectures", store.digest)
        run.log_data(images.name, images.fingerprint)
        folder = run_folder(params, store, images.fingerprint)
        result = _fit(params, store, run, folder)
        with result.checkpoint.as_directory() as checkpoint:
            state = _final_state(params, Path(checkpoint), len(images.classes))
        run.set_tags({"precision": result.metrics["precision"]})
        _finish(params, run, state, len(images.train), time.perf_counter() - started, result.metrics["precision"])
        remove(folder)  # asked for again, the stage trains again


def run_folder(params: Params, store: ArchitectureStore, images: str) -> str:
    """Where Ray Train keeps this run's checkpoints: below the storage, keyed by all that the run depends on.

    `images` is the fingerprint of the data set.
    """
    everything = params.model_dump(include={"seed", "dataset", "meta_batch", "images", "hypernetwork", "train"})
    for key in NOT_PART_OF_THE_RUN:
        del everything["train"][key]
    splits = [store.manifest["splits"][name] for name in ("train", "val")]
    return storage_url(params.storage, f"training/{fingerprint([everything, splits, images])}")


def with_absolute_paths(params: Params) -> Params:
    """The settings with the paths of images as workers, which may run in another folder, find them."""
    dataset, folder = params.dataset, params.images.folder
    if dataset not in list_datasets():
        dataset = str(Path(dataset).expanduser().absolute())
    if folder is not None:
        folder = str(Path(folder).expanduser().absolute())
    images = params.images.model_copy(update={"folder": folder})
    return params.model_copy(update={"dataset": dataset, "images": images})


def _fit(params: Params, store: ArchitectureStore, run: StageRun, folder: str) -> Result:
    name = f"steps-{folder.rpartition('/')[2]}"
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    log = StepLog.options(name=name, num_cpus=0, scheduling_strategy=here).remote()
    config = {
        "params": with_absolute_paths(params).model_dump(),
        "storage": storage_url(params.storage, "").rstrip("/"),
        "manifest": store.manifest,
        "step_log": name,
    }
    # In the main thread Ray Train would take Ctrl-C for itself and exit with status 0.
    pool = ThreadPoolExecutor(1)
    try:
        with _termination() as stop:
            fitting = pool.submit(_fit_until_done, params, folder, config)
            Progress(log, params.train.steps, run).follow(fitting, stop)
        result = fitting.result()
        for file, content in ray.get(log.kept.remote()).items():
            write_bytes(RESULTS / "profile" / file, content)
            run.log_artifact(RESULTS / "profile" / file)
        return result
    except ray.train.TrainingFailedError as error:
        raise UserError(_explain(error, params.train.max_failures)) from error
    finally:
        pool.shutdown(wait=False)
        ray.kill(log)


def _fit_until_done(params: Params, folder: str, config: dict[str, Any]) -> Result:
    """Ray Train replaces workers; its controller is replaced here."""
    for attempt in range(params.train.max_failures + 1):
        try:
            return _trainer(params, folder, config).fit()
        except RayActorError as error:
            if attempt == params.train.max_failures:
                raise UserError(f"the controller of the training was lost {attempt + 1} times: {error}") from error
            tell("the controller of the training was lost: going on from the last checkpoint with another")
    raise AssertionError("not reached")


def _trainer(params: Params, folder: str, config: dict[str, Any]) -> TorchTrainer:
    settings = params.train
    filesystem, path = arrow_filesystem(folder)
    parent, _, name = path.rpartition("/")
    resources = {"CPU": settings.cpus_per_worker}
    if settings.gpus_per_worker:
        resources["GPU"] = settings.gpus_per_worker
    return TorchTrainer(
        train_loop_per_worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=(settings.min_workers, settings.workers) if settings.min_workers else settings.workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=resources,
            placement_strategy=settings.placement,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=parent,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig("WARNING"),
        ),
    )


@contextmanager
def _termination() -> Iterator[threading.Event]:
    """An event that SIGTERM sets within the block, instead of ending this process."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _require_resources(params: Params) -> None:
    settings, have = params.train, capacity()
    workers = settings.min_workers or settings.workers
    needs = {"CPU": workers * settings.cpus_per_worker, "GPU": workers * settings.gpus_per_worker}
    for name, need in needs.items():
        if need > have[name]:
            raise UserError(
                f"train.workers = {workers} need {need} {name}s, the cluster has {have[name]}: "
                "use fewer workers or a larger cluster"
            )


def _explain(error: ray.train.TrainingFailedError, restarts: int) -> str:
    """What went wrong in at most three lines, without Ray's many lines of where."""
    for failure in getattr(error, "worker_failures", {}).values():
        if isinstance(failure, (UserError, ValueError)):  # ours, or the library's: they explain themselves
            return "\n".join(str(failure).splitlines()[:3])
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        f"training stopped after {restarts} restarts: {lines[-1][:200]}\n"
        "what is done is kept: the same command goes on from the last checkpoint"
    )


def _final_state(params: Params, checkpoint: Path, num_classes: int) -> TrainingState:
    """The state of the last checkpoint, which is that of the last step, or what has ended the run says so."""
    state = TrainingState.new(params, num_classes, torch.device("cpu"), torch.float32)
    state.load(checkpoint)
    if state.has_diverged(params.meta_batch):
        most = pd.DataFrame(state.dropped_architectures)["identity"].value_counts()
        raise UserError(
            f"training diverged at step {state.step}: the loss or gradient of more than {MOST_DROPPED:.0%} of the last "
            f"architectures was not finite, most often of {most.index[0]} ({most.iloc[0]} times)\n"
            "lower train.learning_rate or set train.architecture_clip"
        )
    if state.step < params.train.steps:
        raise Terminated(f"terminated after step {state.step:,} of {params.train.steps:,}, whose checkpoint is kept")
    return state


def _finish(
    params: Params, run: StageRun, state: TrainingState, num_images: int, seconds: float, precision: str
) -> None:
    """Writes results/train and logs what came out; `precision` is what target networks had."""
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
    write_json(folder / "metrics.json", metrics | {"precision": precision})
    run.summary({f"train_{name}": metrics.pop(name) for name in headline})
    run.log_metrics({f"train_{name}": value for name, value in metrics.items()})
    run.log_artifact(folder / "history.csv")
    run.log_artifact(folder / "dropped.csv")
    run.log_ghn(folder / "checkpoint")
