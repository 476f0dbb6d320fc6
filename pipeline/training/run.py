"""A training run on Ray Train: its workers, restarted where they are lost, and its end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import ray
import ray.train
from ray.exceptions import ActorDiedError, RayError
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.ray_cluster import release_placement_groups
from pipeline.errors import UserError
from pipeline.params import Params, settings_hash
from pipeline.results import RESULTS
from pipeline.storage.arrow import arrow_filesystem
from pipeline.storage.files import write_bytes
from pipeline.storage.paths import training_folder
from pipeline.tracking.mlflow_runs import StageRun
from pipeline.training.loop import train_loop_per_worker
from pipeline.training.progress import MetricsBuffer, Progress, print_above_bar

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


def run_folder(params: Params, store: ArchitectureStore, images: str) -> str:
    """Where Ray Train keeps this run's checkpoints: below the storage, keyed by all that the run depends on.

    `images` is the settings hash of the data set.
    """
    everything = params.model_dump(include={"seed", "dataset", "meta_batch", "images", "hypernetwork", "train"})
    for key in NOT_PART_OF_THE_RUN:
        del everything["train"][key]
    splits = [store.manifest["splits"][name] for name in ("train", "val")]
    return training_folder(params.storage, settings_hash([everything, splits, images]))


def _fit(params: Params, run: StageRun, folder: str, config: dict[str, Any]) -> Result:
    """Runs the workers to the end and tells of it meanwhile."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    log = MetricsBuffer.options(name=config["metrics_buffer"], num_cpus=0, scheduling_strategy=here).remote()
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
            print_above_bar("the controller of the training was lost: going on from the last checkpoint with another")
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
