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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import ray
import ray.train
import torch
from ray.exceptions import ActorDiedError, RayError
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ghn.meta_batch import draw_meta_batch
from pipeline.architecture_store import ArchitectureStore
from pipeline.arrow_storage import arrow_filesystem
from pipeline.cluster import capacity, ray_cluster, release_placement_groups, slots_of
from pipeline.errors import Terminated, UserError
from pipeline.images import Images, load_images
from pipeline.params import Params, fingerprint
from pipeline.results import RESULTS, image_cache, results_folder, write_csv, write_json
from pipeline.step_log import Progress, StepLog, tell
from pipeline.storage import file_sizes, remove, storage_url, write_bytes
from pipeline.tracking import StageRun, stage_run
from pipeline.train_loop import train_loop_per_worker, training_set_of, without_held_out
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

ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # asks for huge pages
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""How workers allocate memory (variables of glibc): what a tensor leaves is kept for the next one.

By default each large tensor is given back to the system and comes again as pages that the kernel has to clear, which
takes a fifth of a worker's time.
"""


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
        without_held_out(images, params.train)
        run.log_data("architectures", store.digest)
        run.log_data(images.name, images.fingerprint)
        folder = run_folder(params, store, images.fingerprint)
        config = {
            "params": params.model_dump(),
            "storage": storage_url(params.storage, "").rstrip("/"),
            "manifest": store.manifest,
            "images": images.place,
            "step_log": f"steps-{folder.rpartition('/')[2]}",
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
    return load_images(
        params.dataset,
        params.images.size,
        image_cache(params.storage),
        folder=params.images.folder,
        test_fraction=params.images.test_fraction,
    )


def _require_a_first_step(params: Params, store: ArchitectureStore) -> None:
    """Raises UserError, before any worker starts, if a shard is missing or damaged, or no meta-batch can be drawn."""
    settings = params.train
    training_set = training_set_of(store["train"])
    sizes = settings.widths, settings.head_widths, settings.max_nodes
    try:
        draw_meta_batch(training_set, params.seed, 0, params.meta_batch, *sizes)
    except ValueError as error:
        raise UserError(f"train.{error}") from error


def run_folder(params: Params, store: ArchitectureStore, images: str) -> str:
    """Where Ray Train keeps this run's checkpoints: below the storage, keyed by all that the run depends on.

    `images` is the fingerprint of the data set.
    """
    everything = params.model_dump(include={"seed", "dataset", "meta_batch", "images", "hypernetwork", "train"})
    for key in NOT_PART_OF_THE_RUN:
        del everything["train"][key]
    splits = [store.manifest["splits"][name] for name in ("train", "val")]
    return storage_url(params.storage, f"training/{fingerprint([everything, splits, images])}")


def _fit(params: Params, run: StageRun, folder: str, config: dict[str, Any]) -> Result:
    """Runs the workers to the end and tells of it meanwhile."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    log = StepLog.options(name=config["step_log"], num_cpus=0, scheduling_strategy=here).remote()
    ended = threading.Event()
    # In the main thread Ray Train would take Ctrl-C for itself and exit with status 0.
    pool = ThreadPoolExecutor(1)
    try:
        with _termination() as stop:
            fitting = pool.submit(_fit_until_done, params, folder, config, ended)
            Progress(log, params.train.steps, run).follow(fitting, stop)
        result = fitting.result()
        for file, content in ray.get(log.kept.remote()).items():
            write_bytes(RESULTS / "profile" / file, content)
            run.log_artifact(RESULTS / "profile" / file)
        return result
    except ray.train.TrainingFailedError as error:
        raise UserError(_explain(error, params.train.max_failures)) from error
    finally:
        ended.set()
        pool.shutdown(wait=False)
        with suppress(RayError):  # which may have ended already
            ray.kill(log)


def _fit_until_done(params: Params, folder: str, config: dict[str, Any], ended: threading.Event) -> Result:
    """Ray Train replaces workers; its controller is replaced here, unless the stage has `ended` and shuts Ray down."""
    for _ in range(params.train.max_failures + 1):
        try:
            return _trainer(params, folder, config).fit()
        except ActorDiedError as error:
            if ended.is_set():
                raise
            if "creation task" in str(error):
                raise UserError(
                    f"what is left of an interrupted run in {folder} cannot be used:\n"
                    f"{_last_line(error)}\nremove that folder to train from the start"
                ) from error
            tell("the controller of the training was lost: going on from the last checkpoint with another")
            release_placement_groups()  # Ray Train does so only where the cluster has a dashboard
    raise UserError(
        "the controller of the training was lost too often\nthe same command goes on from the last checkpoint"
    )


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
            worker_runtime_env={"env_vars": ALLOCATOR},
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


def _explain(error: ray.train.TrainingFailedError, restarts: int) -> str:
    """What went wrong in at most three lines, without Ray's many lines of where."""
    for failure in getattr(error, "worker_failures", {}).values():
        if isinstance(failure, (UserError, ValueError)):  # ours, or the library's: they explain themselves
            return "\n".join(str(failure).splitlines()[:3])
    return (
        f"training stopped after {restarts} restarts: {_last_line(error)}\n"
        "what is done is kept: the same command goes on from the last checkpoint"
    )


def _last_line(error: Exception) -> str:
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1][:200]


def _final_state(params: Params, checkpoint: Path, num_classes: int) -> TrainingState:
    """The state of the last checkpoint, which is that of the last step, or what has ended the run says so."""
    state = TrainingState.new(params, num_classes, torch.device("cpu"), torch.float32)
    state.load(checkpoint)
    if state.has_diverged(params.meta_batch) or not pd.DataFrame(state.history)["loss"].notna().any():
        most = pd.DataFrame(state.dropped_architectures)["identity"].value_counts()
        raise UserError(
            f"training diverged at step {state.step}: the loss or gradient of more than {MOST_DROPPED:.0%} of the last "
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
