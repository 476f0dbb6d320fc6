"""Stage `train`: Ray Train workers share each step's meta-batch and train one hypernetwork.

Every worker knows the whole meta-batch and computes its slice; the sum of all slices' gradients is the gradient of
one process computing all of it. What a step draws depends on (seed, step) alone, so a run goes on from its last
checkpoint, also on another number of workers, as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import tempfile
import threading
import time
from collections.abc import Iterator
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
from safetensors.torch import load_file, save_file
from torch import Tensor

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
from pipeline.cluster import ray_cluster
from pipeline.errors import UserError
from pipeline.images import Augmentation, Images, load_images, training_batch
from pipeline.params import Params, fingerprint
from pipeline.results import MANIFEST, image_cache, results_folder, storage_url, write_csv, write_json
from pipeline.step_log import StepLog, follow
from pipeline.tracking import StageRun, stage_run

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
        with run_folder(params, store) as (folder, filesystem, path):
            result = _fit(params, run, folder, filesystem, path)
            with result.checkpoint.as_directory() as checkpoint:
                _finish(params, run, Path(checkpoint), len(images.train), time.perf_counter() - started)


def _fit(params: Params, run: StageRun, folder: str, filesystem: Any, path: str) -> ray.train.Result:
    settings, log_name = params.train, f"steps-{folder.rpartition('/')[2]}"
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={
            "params": params.model_dump(),
            "manifest": str(MANIFEST.resolve()),
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
    log = StepLog.options(name=log_name, num_cpus=0).remote()
    stop = threading.Event()
    follower = threading.Thread(target=follow, args=(log, settings.steps, run, stop))
    follower.start()
    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise UserError(
            f"training stopped after {settings.max_failures} restarts: {_last_line(error)}\n"
            "what is done is kept: `dvc repro` goes on from the last checkpoint"
        ) from error
    finally:
        stop.set()
        follower.join()
        ray.kill(log)


@contextmanager
def run_folder(params: Params, store: ArchitectureStore) -> Iterator[tuple[str, Any, str]]:
    """Where Ray Train keeps this run's checkpoints: below the storage, keyed by all that the run depends on.

    The folder is removed once its block ends well, so that training is repeated when it is asked for again.
    """
    everything = params.model_dump(include={"seed", "dataset", "meta_batch", "images", "hypernetwork", "train"})
    # These may change between a crash and the next attempt: the run stays the same.
    for key in ("workers", "cpus_per_worker", "gpus_per_worker", "max_failures", "checkpoint_every"):
        del everything["train"][key]
    folder = storage_url(params.storage, f"training/{fingerprint([everything, store.manifest['splits']['train']])}")
    filesystem, path = fsspec.core.url_to_fs(folder)
    is_local = "file" in filesystem.protocol
    arrow = pyarrow.fs.LocalFileSystem() if is_local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))
    yield folder, arrow, path
    filesystem.rm(path, recursive=True)


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
        mine = share_out([item.cost for item in drawn], workers)[rank]
        pixels, labels = training_batch(images, params.seed, step, settings.batch, augmentation)
        rate = learning_rate(settings.learning_rate, step, settings.steps, settings.milestones, settings.decay)

        state.optimizer.zero_grad()
        drawing = time.perf_counter() - started
        slice_result = accumulate_slice(
            state.ghn, {p: drawn[p] for p in mine}, pixels.to(device), labels.to(device), step, step_settings
        )
        slice_result.graph_seconds += drawing
        row = combine(state.ghn, slice_result, params.meta_batch, device)
        row |= {"step": step + 1, "learning_rate": rate, "gradient_norm": state.update(rate, settings.clip)}
        row["step_seconds"] = time.perf_counter() - started
        row["images_per_second"] = settings.batch * params.meta_batch / row["step_seconds"]
        row["architectures_per_second"] = params.meta_batch / row["step_seconds"]
        state.step += 1
        state.history.append(row)
        if rank == 0:
            step_log.add.remote([row])

        diverged = _diverged(state.history, params.meta_batch)
        if state.step % settings.checkpoint_every == 0 or state.step == settings.steps or diverged:
            report(state, rank, diverged)
        if diverged:
            return


class TrainingState:
    """All that a run needs to go on: hypernetwork, optimiser, step and history."""

    def __init__(self, ghn: GHN, optimizer: torch.optim.Optimizer):
        self.ghn, self.optimizer = ghn, optimizer
        self.step = 0
        self.history: list[dict[str, float]] = []

    @classmethod
    def new(cls, params: Params, num_classes: int, device: torch.device) -> TrainingState:
        """The state at step 0; the same on every worker."""
        torch.manual_seed(params.seed)
        h = params.hypernetwork
        ghn = GHN(GHNConfig(num_classes, params.images.size, h.variant, h.hidden, h.kernel, h.virtual_edges)).to(device)
        return cls(ghn, torch.optim.Adam(ghn.parameters(), weight_decay=params.train.weight_decay))

    def update(self, rate: float, clip: float) -> float:
        """Takes one optimiser step; returns the gradient's norm before it was clipped."""
        norm = torch.nn.utils.clip_grad_norm_(self.ghn.parameters(), clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return norm.item()

    def save(self, folder: Path) -> None:
        self.ghn.save(folder / "ghn")
        tensors = {
            f"{index}.{name}": value.detach().cpu()
            for index, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        save_file(tensors, folder / "optimizer.safetensors")
        (folder / "history.json").write_text(json.dumps(self.history))

    def load(self, folder: Path) -> None:
        self.ghn.load_state_dict(GHN.from_pretrained(folder / "ghn").state_dict())
        self.ghn.train()
        contents = self.optimizer.state_dict()
        for key, value in load_file(folder / "optimizer.safetensors").items():
            index, name = key.split(".")
            contents["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(contents)
        self.history = json.loads((folder / "history.json").read_text())
        self.step = len(self.history)


def combine(ghn: GHN, result: SliceResult, meta_batch: int, device: torch.device) -> dict[str, float]:
    """Adds up all workers' gradients and results; leaves the mean gradient in `.grad` and returns the step's row.

    One collective carries everything: the gradient, each architecture's loss and top-1, and whether it counted.
    """
    parameters = list(ghn.parameters())
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    scores = torch.zeros(3, meta_batch)
    for position, loss in result.losses.items():
        if math.isfinite(loss):
            scores[:, position] = torch.tensor([loss, result.top1[position], 1.0])
    times = torch.tensor([result.graph_seconds, result.hypernetwork_seconds, result.target_seconds])
    message = torch.cat([flat, scores.flatten().to(device), times.to(device)])
    started = time.perf_counter()
    if dist.is_initialized():
        dist.all_reduce(message)
    communication = time.perf_counter() - started
    workers = dist.get_world_size() if dist.is_initialized() else 1
    gradient, rest = message[: len(flat)], message[len(flat) :].cpu()
    scores, times = rest[: 3 * meta_batch].view(3, meta_batch), rest[3 * meta_batch :] / workers
    kept = int(scores[2].sum())
    _spread(gradient / max(kept, 1), parameters)
    return {
        "loss": float(scores[0].sum() / kept) if kept else math.nan,
        "top1": float(scores[1].sum() / kept) if kept else math.nan,
        "dropped": meta_batch - kept,
        "graph_seconds": float(times[0]),
        "hypernetwork_seconds": float(times[1]),
        "target_seconds": float(times[2]),
        "communication_seconds": communication,
    }


def report(state: TrainingState, rank: int, diverged: bool) -> None:
    """Hands a checkpoint to Ray Train, which stores it before the workers go on."""
    metrics = {"step": state.step, "diverged": diverged, "loss": state.history[-1]["loss"]}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder))
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _training_set(split: Split) -> TrainingSet:
    return TrainingSet(**split.columns("nodes", "parameters", "flops"), read=split.read)


def _spread(flat: Tensor, parameters: list[torch.nn.Parameter]) -> None:
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def _diverged(history: list[dict[str, float]], meta_batch: int) -> bool:
    recent = history[-100:]
    return sum(row["dropped"] for row in recent) > MOST_DROPPED * 100 * meta_batch


def _require_resources(params: Params) -> None:
    settings = params.train
    have = ray.cluster_resources()
    needs = {
        "CPU": settings.workers * settings.cpus_per_worker,
        "GPU": settings.workers * settings.gpus_per_worker,
    }
    for name, need in needs.items():
        if need > have.get(name, 0):
            raise UserError(
                f"train.workers = {settings.workers} need {need} {name}s, the cluster has {have.get(name, 0):g}: "
                "use fewer workers or a larger cluster"
            )


def _last_line(error: BaseException) -> str:
    """What went wrong, without Ray's many lines of where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]


def _finish(params: Params, run: StageRun, checkpoint: Path, num_images: int, seconds: float) -> None:
    """Copies the last checkpoint to results/ and logs what came out."""
    state = TrainingState.new(params, GHN.from_pretrained(checkpoint / "ghn").config.num_classes, torch.device("cpu"))
    state.load(checkpoint)
    if state.step < params.train.steps:
        raise UserError(
            f"training diverged at step {state.step}: the loss of more than {MOST_DROPPED:.0%} of the architectures "
            "was not finite\nlower train.learning_rate or set train.architecture_clip"
        )
    folder = results_folder("train")
    state.ghn.save(folder / "checkpoint")
    history = pd.DataFrame(state.history)
    write_csv(folder / "history.csv", history)
    recent = history.tail(100)
    metrics = {
        "loss": float(recent["loss"].mean()),
        "top1": float(recent["top1"].mean()),
        "steps": state.step,
        "epochs": state.step * params.train.batch / num_images,
        "seconds": seconds,
        "architectures_per_second": params.meta_batch / float(history["step_seconds"].median()),
        "dropped": int(history["dropped"].sum()),
        "parameters": sum(p.numel() for p in state.ghn.parameters()),
    }
    write_json(folder / "metrics.json", metrics)
    run.summary({f"train_{name}": value for name, value in metrics.items()})
    run.log_artifact(folder / "history.csv")
    run.log_ghn(folder / "checkpoint")
