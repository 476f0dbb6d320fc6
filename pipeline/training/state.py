"""The state of a training run, and its checkpoints in safetensors and JSON."""

from __future__ import annotations

import copy
import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ghn.models.checkpoints import CheckpointError
from ghn.models.hypernetwork import Hypernetwork
from pipeline.training.history import DroppedArchitecture, Row
from pipeline.training.job import RunSettings

MAX_NONFINITE_SHARE = 0.1
"""Largest share of the architectures of recent steps that may be dropped; above it the run has diverged."""

RECENT_STEPS = 100
"""How many steps are looked at to tell whether a run has diverged."""

Content = TypeVar("Content")


class TrainingState:
    """All that a run needs to go on.

    Attributes:
        ghn: the hypernetwork that is trained.
        optimizer: that of its weights.
        ema: largest decay of the moving average; None if there is none.
        step: optimisation steps taken.
        precision: that of target networks; None before the workers have chosen it.
        average: the hypernetwork with the moving average of the weights; None if there is none.
        best: the hypernetwork that did best on validation so far; None before the first validation.
        best_row: what validation measured then.
        history: a row of means for every `log_every` steps.
        unlogged_rows: the rows of the steps since the last row of the history.
        dropped: how many architectures each of the recent steps dropped.
        dropped_architectures: every architecture that a step dropped.
    """

    def __init__(self, ghn: Hypernetwork, optimizer: torch.optim.Optimizer, ema: float | None = None):
        self.ghn, self.optimizer, self.ema = ghn, optimizer, ema
        self.average = None if ema is None else copy.deepcopy(ghn)
        self.best: Hypernetwork | None = None
        self.best_row: Row = {}
        self.step = 0
        self.precision: str | None = None
        self.history: list[Row] = []
        self.unlogged_rows: list[Row] = []
        self.dropped: deque[int] = deque(maxlen=RECENT_STEPS)
        self.dropped_architectures: list[DroppedArchitecture] = []

    @classmethod
    def new(cls, settings: RunSettings, num_classes: int, device: torch.device, dtype: torch.dtype) -> TrainingState:
        """Return the state at step 0, which is the same on every worker."""
        torch.manual_seed(settings.seed)
        config = settings.hypernetwork.config(num_classes, settings.images.size)
        ghn = Hypernetwork(config).to(device, dtype)
        optimizer = torch.optim.Adam(ghn.parameters(), weight_decay=settings.train.optimizer.weight_decay, fused=True)
        return cls(ghn, optimizer, settings.train.ema)

    @property
    def eval_model(self) -> Hypernetwork:
        """The hypernetwork to validate and to keep: with the moving average of the weights, if there is one."""
        return self.ghn if self.average is None else self.average

    @property
    def dropped_in_last_step(self) -> list[DroppedArchitecture]:
        """The architectures that the last step dropped."""
        return self.dropped_architectures[len(self.dropped_architectures) - self.dropped[-1] :]

    def update(self, rate: float, clip: float) -> float:
        """Take a step at a learning rate and return the norm of the gradient before it was clipped.

        Where the norm is not finite, the step is counted, the weights stay the same, and NaN is returned.
        """
        self.step += 1
        norm = torch.nn.utils.clip_grad_norm_(self.ghn.parameters(), clip)
        if not norm.isfinite():
            return math.nan
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self._update_average()
        return norm.item()

    def _update_average(self) -> None:
        if self.average is None or self.ema is None:
            return
        # A short average at first, because a long one would keep the random weights of the beginning.
        decay = min(self.ema, self.step / (9 + self.step))
        averages = [weight.data for weight in self.average.parameters()]
        get_ema_multi_avg_fn(decay)(averages, [weight.data for weight in self.ghn.parameters()], None)

    def record_nonfinite(self, indices: Sequence[int], network_hash: Callable[[int], str]) -> None:
        """Record which architectures the last step dropped, by their index in the training split."""
        self.dropped.append(len(indices))
        self.dropped_architectures += [
            {"step": self.step, "index": index, "identity": network_hash(index)} for index in indices
        ]

    def record(self, row: Row, log_every: int, steps: int) -> Row | None:
        """Record a step's row, and return the row that completes the history so far, if this step completes one.

        Args:
            log_every: steps whose means are a row of the history.
            steps: steps of the run, of which the last always completes a row.
        """
        self.unlogged_rows.append(row)
        if self.step % log_every and self.step < steps:
            return None
        means = pd.DataFrame(self.unlogged_rows).mean().to_dict()  # leaves out NaN
        dropped = sum(unlogged["dropped"] for unlogged in self.unlogged_rows)
        self.history.append(means | {"step": self.step, "dropped": dropped})
        self.unlogged_rows = []
        return self.history[-1]

    def has_diverged(self, meta_batch: int) -> bool:
        """Return whether too many architectures of the recent steps were dropped; ten steps count at least."""
        return sum(self.dropped) > MAX_NONFINITE_SHARE * max(len(self.dropped), 10) * meta_batch

    def keep_if_best(self, row: Row) -> None:
        """Keep a copy of the weights if they did better on validation than all before.

        Args:
            row: `val_top1` and `val_loss`, as validation measured them.
        """
        if self.best is None or row["val_top1"] > self.best_row["val_top1"]:
            self.best = copy.deepcopy(self.eval_model)
            self.best_row = row | {"step": self.step}

    def save(self, folder: Path) -> None:
        """Write the state to an empty folder."""
        for name, ghn in (("ghn", self.ghn), ("average", self.average), ("best", self.best)):
            if ghn is not None:
                ghn.save(folder / name)
        moments = {
            f"{index}.{name}": value.detach().cpu()
            for index, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        save_file(moments, folder / "optimizer.safetensors")
        progress = {
            "step": self.step,
            "precision": self.precision,
            "best": self.best_row,
            "pending": self.unlogged_rows,
            "dropped": list(self.dropped),
            "dropped_architectures": self.dropped_architectures,
            "history": self.history,
        }
        (folder / "progress.json").write_text(json.dumps(progress))

    def load(self, folder: Path) -> None:
        """Replace this state by a saved one of a run with the same settings.

        Raises:
            CheckpointError: a file is missing, damaged, or belongs to another hypernetwork.
        """
        progress = _read(folder / "progress.json", lambda path: json.loads(path.read_text()))
        moments = _read(folder / "optimizer.safetensors", load_file)
        self.step, self.precision = progress["step"], progress["precision"]
        self.history, self.unlogged_rows = progress["history"], progress["pending"]
        self.dropped.extend(progress["dropped"])
        self.dropped_architectures, self.best_row = progress["dropped_architectures"], progress["best"]
        self.best = copy.deepcopy(self.ghn) if self.best_row else None
        for name, ghn in (("ghn", self.ghn), ("average", self.average), ("best", self.best)):
            if ghn is not None:
                ghn.load_weights(folder / name)
        self.ghn.train()
        contents = self.optimizer.state_dict()
        for key, value in moments.items():
            index, name = key.split(".")
            contents["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(contents)


def _read(path: Path, read: Callable[[Path], Content]) -> Content:
    """Return what `read` makes of a file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return read(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): remove its folder or train again") from error
