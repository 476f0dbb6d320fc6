"""A training run on Ray Train: its workers, their replacement where they are lost, and its end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig, TorchTrainer

from pipeline.cluster.ray_cluster import capacity, release_placement_groups, slots_of
from pipeline.errors import UserError
from pipeline.params import WorkerSettings
from pipeline.results import RESULTS
from pipeline.storage.arrow import arrow_filesystem
from pipeline.storage.files import file_sizes, remove, write_bytes
from pipeline.tracking.mlflow_runs import StageRun
from pipeline.training.job import WorkerJob
from pipeline.training.loop import train_loop_per_worker
from pipeline.training.progress import Progress, print_above_bar, start_metrics_buffer
from pipeline.training.shared_gpu import backend_of

ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # asks for huge pages
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""Environment variables of glibc by which workers keep the memory of a freed tensor for the next one.

By default glibc returns the memory of each large tensor to the system, and gets it back as pages that the kernel has to
clear. That takes a fifth of a worker's time.
"""


def require_resources(settings: WorkerSettings) -> None:
    """Check that the cluster can run the workers.

    Raises:
        UserError: it has too few CPUs or GPUs, or no node has room for one worker.
    """
    name, number = ("minimum", settings.minimum) if settings.minimum else ("number", settings.number)
    available = capacity()
    for resource, each in {"CPU": settings.cpus, "GPU": settings.gpus}.items():
        if number * each > available[resource]:
            raise UserError(
                f"workers.{name} = {number} need {number * each:g} {resource}s, the cluster has {available[resource]}: "
                "use fewer workers or a larger cluster"
            )
    if slots_of(settings.cpus, settings.gpus) < number:
        raise UserError(
            f"workers.{name} = {number}: the cluster's nodes have no room for so many workers of "
            f"{settings.cpus} CPUs and {settings.gpus:g} GPUs\n"
            "use fewer of both, or larger nodes"
        )


def fit(job: WorkerJob, folder: str, run: StageRun | None) -> Checkpoint:
    """Run the workers to the end, show their progress, and return the last checkpoint.

    A lost worker, node or controller is replaced, and the run goes on from its last checkpoint. So does a run that an
    earlier process has left in the folder. SIGTERM makes the workers write a checkpoint and end.

    Args:
        folder: where Ray Train keeps the checkpoints of this run.
        run: where the history and recorded steps are logged; None: nowhere.

    Raises:
        UserError: the run cannot go on.
        Terminated: SIGTERM came, and the workers have not written a checkpoint in time.
    """
    buffer = start_metrics_buffer(job.metrics_buffer)
    stage_ended = threading.Event()
    pool = ThreadPoolExecutor(1)  # in the main thread Ray Train would handle Ctrl-C itself, and exit with status 0
    try:
        with _sigterm_as_event() as stop:
            fitting = pool.submit(_fit_until_done, job, folder, stage_ended)
            is_elastic = job.workers.minimum is not None
            Progress(buffer, job.settings.train.steps, run, is_elastic).follow(fitting, stop)
        checkpoint = fitting.result().checkpoint
        for file, content in ray.get(buffer.kept.remote()).items():
            write_bytes(RESULTS / "profile" / file, content)
            if run is not None:
                run.log_artifact(RESULTS / "profile" / file)
    except TrainingFailedError as error:
        raise UserError(_explain(error, job.workers.max_failures)) from error
    finally:
        stage_ended.set()
        pool.shutdown(wait=False)
        with suppress(RayError):  # Ray may have ended already
            ray.kill(buffer)
    assert checkpoint is not None  # the workers report one when they end
    return checkpoint


def remove_run(folder: str) -> None:
    """Delete the checkpoints of a finished run, so that the stage trains again when it is run again."""
    for record in file_sizes(folder):  # first, because Ray Train's records name the checkpoints to go on from
        remove(f"{folder}/{record}")
    remove(folder)


def _fit_until_done(job: WorkerJob, folder: str, stage_ended: threading.Event) -> Result:
    """Train with one controller after the other: Ray Train replaces workers, but not its own controller."""
    for _ in range(job.workers.max_failures + 1):
        try:
            return _trainer(job, folder).fit()
        except ActorDiedError as error:
            if stage_ended.is_set():  # the driver has shut Ray down
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


def _trainer(job: WorkerJob, folder: str) -> TorchTrainer:
    """Return Ray Train's description of the run."""
    # mypy finds the classes of Ray Train's first version, where Ray imports those of the second: the ignored errors.
    workers = job.workers
    filesystem, path = arrow_filesystem(folder)
    parent, _, name = path.rpartition("/")
    resources = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    return TorchTrainer(
        train_loop_per_worker,
        train_loop_config=job.model_dump(),
        torch_config=TorchConfig(backend=backend_of(workers)),
        scaling_config=ScalingConfig(
            num_workers=(workers.minimum, workers.number) if workers.minimum else workers.number,  # type: ignore[arg-type]
            use_gpu=workers.gpus > 0,
            resources_per_worker=resources,
            placement_strategy=workers.placement,
        ),
        run_config=RunConfig(  # type: ignore[call-arg]
            name=name,
            storage_path=parent,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig("WARNING"),
            worker_runtime_env={"env_vars": ALLOCATOR},
        ),
    )


@contextmanager
def _sigterm_as_event() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets within the block, instead of ending this process."""
    terminated = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield terminated
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: terminated.set())
    try:
        yield terminated
    finally:
        signal.signal(signal.SIGTERM, before)


def _explain(error: TrainingFailedError, restarts: int) -> str:
    """Return what went wrong in at most three lines, without the many lines in which Ray says where."""
    failures: dict[int, Any] = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    for failure in failures.values():
        if isinstance(failure, (UserError, ValueError)):  # raised by this code for the user: it explains itself
            return "\n".join(str(failure).splitlines()[:3])
    return (
        f"training stopped after {restarts} restarts: {_last_line(error)}\n"
        "what is done is kept: the same command goes on from the last checkpoint"
    )


def _last_line(error: Exception) -> str:
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1][:200]
