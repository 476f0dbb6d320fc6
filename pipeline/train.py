"""Stage `train`: Ray Train workers share each step's meta-batch and train one hypernetwork.

Every worker knows the whole meta-batch, which is cut into a fixed number of slices; whole slices are shared among the
workers. What a step draws depends on (seed, step) alone, a slice gives the same gradient whoever computes it, and the
sum of them is taken in double precision. So the number of workers, and when they change, does not change the run.

A sum in single precision would: its last digit depends on the order, the gradient of target networks amplifies that a
thousandfold (a picture's background is thousands of equal pixels, all on the same side of a ReLU's kink), and after
four steps two runs that differ in it have nothing in common but their statistics.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow.fs
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from safetensors.torch import load_file, save_file

from ghn.hypernetwork import GHN, GHNConfig
from ghn.training import (
    SliceResult,
    StepSettings,
    TrainingSet,
    accumulate_slice,
    draw_meta_batch,
    learning_rate,
    share_out,
)
from pipeline.architecture_store import ArchitectureStore, Split
from pipeline.cluster import capacity, ray_cluster
from pipeline.errors import UserError
from pipeline.images import Augmentation, Images, list_datasets, load_images, training_batch
from pipeline.params import Params, fingerprint
from pipeline.results import image_cache, results_folder, write_csv, write_json
from pipeline.step_log import StepLog, follow
from pipeline.storage import storage_url
from pipeline.tracking import StageRun, stage_run

Row = dict[str, float]

MOST_DROPPED = 0.1
"""The run stops when more than this share of the last hundred steps' architectures had to be dropped."""


def train(params: Params) -> None:
    """Trains a hypernetwork, or goes on where an interrupted run with the same settings stopped."""
    started = time.perf_counter()
    store = ArchitectureStore(params.storage)
    _training_set(store["train"])  # a missing or damaged shard is noticed here, before any worker starts
    images = read_images(params)
    with (
        stage_run("train", params.model_dump(), experiment=params.tracking.experiment) as run,
        ray_cluster(params.cluster.address, params.cluster.cpus),
    ):
        _require_resources(params)
        run.log_data("architectures", store.digest)
        run.log_data(images.name, images.fingerprint)
        with run_folder(params, store, images) as (folder, filesystem, path):
            result = _fit(params, store, run, folder, filesystem, path)
            with result.checkpoint.as_directory() as checkpoint:
                _finish(params, run, Path(checkpoint), len(images.train), time.perf_counter() - started)


def _fit(
    params: Params, store: ArchitectureStore, run: StageRun, folder: str, filesystem: Any, path: str
) -> ray.train.Result:
    settings, log_name = params.train, f"steps-{folder.rpartition('/')[2]}"
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={
            "params": with_absolute_paths(params).model_dump(),
            "manifest": store.manifest,
            "storage": storage_url(params.storage, ""),
            "image_cache": str(image_cache(params.storage)),
            "step_log": log_name,
        },
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker={"CPU": settings.cpus_per_worker}
            | ({"GPU": settings.gpus_per_worker} if settings.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            name=path.rpartition("/")[2],
            storage_path=path.rpartition("/")[0],
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    log = StepLog.options(name=log_name, num_cpus=0, scheduling_strategy=here).remote()
    # In the main thread Ray Train would take Ctrl-C for itself and exit with status 0.
    pool = ThreadPoolExecutor(1)
    try:
        fitting = pool.submit(trainer.fit)
        follow(log, settings.steps, run, fitting)
        return fitting.result()
    except ray.train.TrainingFailedError as error:
        raise UserError(_explain(error, settings.max_failures)) from error
    finally:
        pool.shutdown(wait=False)
        ray.kill(log)


@contextmanager
def run_folder(params: Params, store: ArchitectureStore, images: Images) -> Iterator[tuple[str, Any, str]]:
    """Where Ray Train keeps this run's checkpoints: below the storage, keyed by all that the run depends on.

    The folder is removed once its block ends well, so that training is repeated when it is asked for again.
    """
    everything = params.model_dump(include={"seed", "dataset", "meta_batch", "images", "hypernetwork", "train"})
    # These may change between a crash and the next attempt: the run stays the same.
    for key in ("workers", "cpus_per_worker", "gpus_per_worker", "max_failures", "checkpoint_every"):
        del everything["train"][key]
    data = [store.manifest["splits"]["train"], images.fingerprint]
    folder = storage_url(params.storage, f"training/{fingerprint([everything, data])}")
    filesystem, path = fsspec.core.url_to_fs(folder)
    is_local = "file" in filesystem.protocol
    arrow = pyarrow.fs.LocalFileSystem() if is_local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))
    yield folder, arrow, path
    filesystem.rm(path, recursive=True)


def with_absolute_paths(params: Params) -> Params:
    """The settings with the paths of images as workers, which may run in another folder, find them."""
    dataset, folder = params.dataset, params.images.folder
    if dataset not in list_datasets():
        dataset = str(Path(dataset).expanduser().absolute())
    if folder is not None:
        folder = str(Path(folder).expanduser().absolute())
    images = params.images.model_copy(update={"folder": folder})
    return params.model_copy(update={"dataset": dataset, "images": images})


def read_images(params: Params, cache: str | Path | None = None) -> Images:
    """The images that the settings name, decoded once."""
    return load_images(
        params.dataset,
        params.images.size,
        cache or image_cache(params.storage),
        folder=params.images.folder,
        test_fraction=params.images.test_fraction,
    )


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    params = Params.model_validate(config["params"])
    settings = params.train
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = get_device()
    torch.set_num_threads(settings.cpus_per_worker)
    store = ArchitectureStore(config["storage"].rstrip("/"), config["manifest"])
    training_set = _training_set(store["train"])
    images = read_images(params, config["image_cache"])
    step_log = ray.get_actor(config["step_log"]) if rank == 0 else None

    state = TrainingState.new(params, len(images.classes), device)
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            state.load(Path(folder))
        if rank == 0:
            step_log.add.remote(state.history)

    augmentation = Augmentation(params.images.shift, params.images.flip)
    step_settings = StepSettings(
        seed=params.seed,
        label_smoothing=settings.label_smoothing,
        architecture_clip=settings.architecture_clip,
        precision=torch.bfloat16 if settings.precision == "bf16" else torch.float32,
    )
    while state.step < settings.steps:
        started = time.perf_counter()
        step = state.step
        drawn = draw_meta_batch(
            training_set,
            params.seed,
            step,
            params.meta_batch,
            settings.widths,
            settings.head_widths,
            settings.max_nodes,
        )
        slices = share_out([item.cost for item in drawn], min(settings.slices, params.meta_batch))
        mine = share_out([sum(drawn[position].cost for position in part) for part in slices], workers)[rank]
        pixels, labels = training_batch(images, params.seed, step, settings.batch, augmentation)
        pixels, labels = pixels.to(device), labels.to(device)
        rate = learning_rate(settings.learning_rate, step, settings.steps, settings.milestones, settings.decay)

        total = StepTotal(state.ghn, params.meta_batch)
        total.graph_seconds = time.perf_counter() - started
        for index in mine:
            part = {position: drawn[position] for position in slices[index]}
            total.add(accumulate_slice(state.ghn, part, pixels, labels, step, step_settings))
        row = total.combine(workers)
        row |= {"step": step + 1, "learning_rate": rate, "gradient_norm": state.update(rate, settings.clip)}
        if math.isnan(row["gradient_norm"]):
            row["dropped"] = params.meta_batch
        row["step_seconds"] = time.perf_counter() - started
        row["images_per_second"] = settings.batch * params.meta_batch / row["step_seconds"]
        row["architectures_per_second"] = params.meta_batch / row["step_seconds"]

        logged = state.finish_step(row, settings.log_every, settings.steps)
        if logged is not None and rank == 0:
            step_log.add.remote([logged])
        diverged = sum(state.dropped) > MOST_DROPPED * state.dropped.maxlen * params.meta_batch
        if state.step % settings.checkpoint_every == 0 or state.step == settings.steps or diverged:
            report(state, rank, diverged)
        if diverged:
            return


class TrainingState:
    """All that a run needs to go on.

    Attributes:
        step: optimisation steps taken.
        history: for every `log_every` steps a row of their means.
        pending: the rows of the steps since the last row of the history.
        dropped: architectures that were dropped in each of the last hundred steps.
    """

    def __init__(self, ghn: GHN, optimizer: torch.optim.Optimizer):
        self.ghn, self.optimizer = ghn, optimizer
        self.step = 0
        self.history: list[Row] = []
        self.pending: list[Row] = []
        self.dropped: deque[int] = deque(maxlen=100)

    @classmethod
    def new(cls, params: Params, num_classes: int, device: torch.device) -> TrainingState:
        """The state at step 0; the same on every worker."""
        torch.manual_seed(params.seed)
        h = params.hypernetwork
        ghn = GHN(GHNConfig(num_classes, params.images.size, h.variant, h.hidden, h.kernel, h.virtual_edges)).to(device)
        return cls(ghn, torch.optim.Adam(ghn.parameters(), weight_decay=params.train.weight_decay))

    def update(self, rate: float, clip: float) -> float:
        """Takes one optimiser step, unless the gradient is not finite; returns its norm before it was clipped."""
        norm = torch.nn.utils.clip_grad_norm_(self.ghn.parameters(), clip)
        if not norm.isfinite():
            return math.nan
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return norm.item()

    def finish_step(self, row: Row, log_every: int, steps: int) -> Row | None:
        """Counts a step; returns the row that the history got, if one is complete or the last step is done."""
        self.step += 1
        self.dropped.append(int(row["dropped"]))
        self.pending.append(row)
        if self.step % log_every and self.step < steps:
            return None
        means = pd.DataFrame(self.pending).mean().to_dict()  # without what is not a number
        self.history.append(means | {"step": self.step, "dropped": sum(r["dropped"] for r in self.pending)})
        self.pending = []
        return self.history[-1]

    def save(self, folder: Path) -> None:
        self.ghn.save(folder / "ghn")
        tensors = {
            f"{index}.{name}": value.detach().cpu()
            for index, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        save_file(tensors, folder / "optimizer.safetensors")
        progress = {"step": self.step, "pending": self.pending, "dropped": list(self.dropped), "history": self.history}
        (folder / "progress.json").write_text(json.dumps(progress))

    def load(self, folder: Path) -> None:
        self.ghn.load_state_dict(GHN.from_pretrained(folder / "ghn").state_dict())
        self.ghn.train()
        contents = self.optimizer.state_dict()
        for key, value in load_file(folder / "optimizer.safetensors").items():
            index, name = key.split(".")
            contents["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(contents)
        progress = json.loads((folder / "progress.json").read_text())
        self.step, self.history, self.pending = progress["step"], progress["history"], progress["pending"]
        self.dropped.extend(progress["dropped"])


class StepTotal:
    """The sum of a step's slices: of the gradients (double precision), scores and times."""

    def __init__(self, ghn: GHN, meta_batch: int):
        self.parameters = list(ghn.parameters())
        for parameter in self.parameters:
            parameter.grad = None
        count = sum(parameter.numel() for parameter in self.parameters)
        self.gradient = torch.zeros(count, dtype=torch.float64, device=self.parameters[0].device)
        self.scores = torch.zeros(3, meta_batch, dtype=torch.float64)  # loss, top-1, and 1 where an architecture counts
        self.graph_seconds = self.hypernetwork_seconds = self.target_seconds = 0.0

    def add(self, result: SliceResult) -> None:
        """Adds a slice, whose gradient it takes from `.grad`."""
        parts = self.gradient.split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            if parameter.grad is not None:
                part += parameter.grad.flatten()
                parameter.grad = None
        for position, loss in result.losses.items():
            if math.isfinite(loss):
                self.scores[:, position] = torch.tensor([loss, result.top1[position], 1.0])
        self.graph_seconds += result.graph_seconds
        self.hypernetwork_seconds += result.hypernetwork_seconds
        self.target_seconds += result.target_seconds

    def combine(self, workers: int) -> Row:
        """Adds up all workers' totals, leaves the mean gradient in `.grad`, and returns the step's row.

        One collective carries everything. Times are means over the workers.
        """
        times = torch.tensor([self.graph_seconds, self.hypernetwork_seconds, self.target_seconds]).double()
        device = self.gradient.device
        message = torch.cat([self.gradient, self.scores.flatten().to(device), times.to(device)])
        started = time.perf_counter()
        if workers > 1:
            dist.all_reduce(message)
        communication = time.perf_counter() - started
        gradient, rest = message[: len(self.gradient)], message[len(self.gradient) :].cpu()
        losses, top1, counts = rest[:-3].view(3, -1)
        kept = int(counts.sum())
        parts = (gradient / max(kept, 1)).float().split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        return {
            "loss": float(losses.sum() / kept) if kept else math.nan,
            "top1": float(top1.sum() / kept) if kept else math.nan,
            "dropped": len(counts) - kept,
            "graph_seconds": float(rest[-3]) / workers,
            "hypernetwork_seconds": float(rest[-2]) / workers,
            "target_seconds": float(rest[-1]) / workers,
            "communication_seconds": communication,
        }


def report(state: TrainingState, rank: int, diverged: bool) -> None:
    """Hands a checkpoint to Ray Train, which stores it before the workers go on."""
    metrics = {"step": state.step, "diverged": diverged}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder))
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _training_set(split: Split) -> TrainingSet:
    return TrainingSet(**split.columns("nodes", "parameters", "flops"), read=split.read)


def _require_resources(params: Params) -> None:
    settings, have = params.train, capacity()
    needs = {
        "CPU": settings.workers * settings.cpus_per_worker,
        "GPU": settings.workers * settings.gpus_per_worker,
    }
    for name, need in needs.items():
        if need > have[name]:
            raise UserError(
                f"train.workers = {settings.workers} need {need} {name}s, the cluster has {have[name]}: "
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


def _finish(params: Params, run: StageRun, checkpoint: Path, num_images: int, seconds: float) -> None:
    """Copies the last checkpoint to results/ and logs what came out."""
    state = TrainingState.new(params, GHN.from_pretrained(checkpoint / "ghn").config.num_classes, torch.device("cpu"))
    state.load(checkpoint)
    if state.step < params.train.steps:
        raise UserError(
            f"training diverged at step {state.step}: the loss or gradient of more than {MOST_DROPPED:.0%} of the "
            "architectures was not finite\nlower train.learning_rate or set train.architecture_clip"
        )
    folder = results_folder("train")
    state.ghn.save(folder / "checkpoint")
    history = pd.DataFrame(state.history)
    write_csv(folder / "history.csv", history)
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
    write_json(folder / "metrics.json", metrics)
    run.summary({f"train_{name}": metrics.pop(name) for name in ("loss", "top1", "seconds")})
    run.log_metrics({f"train_{name}": value for name, value in metrics.items()})
    run.log_artifact(folder / "history.csv")
    run.log_ghn(folder / "checkpoint")
