"""All that a training run needs to go on, and its checkpoints: safetensors and JSON."""

from __future__ import annotations

import copy
import json
import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ghn.models.checkpoints import CheckpointError
from ghn.models.config import GHNConfig
from ghn.models.hypernetwork import Hypernetwork
from pipeline.params import Params

Row = dict[str, float]

MAX_NONFINITE_SHARE = 0.1
"""The run stops when more than this share of the last hundred steps' architectures had to be dropped."""


class TrainingState:
    """Where a run stands.

    Attributes:
        step: optimisation steps taken.
        precision: that of target networks; None before the first worker has chosen it.
        average: moving average of the weights; None if there is none.
        best: the weights that did best on validation so far, and `best_row` what they did; None before that.
        history: for every `log_every` steps a row of their means.
        pending: the rows of the steps since the last row of the history.
        dropped: architectures that were dropped in each of the last hundred steps.
        dropped_architectures: step, index and identity of each that was dropped.
    """

    def __init__(self, ghn: Hypernetwork, optimizer: torch.optim.Optimizer, ema: float | None = None):
        self.ghn, self.optimizer, self.ema = ghn, optimizer, ema
        self.average = None if ema is None else copy.deepcopy(ghn)
        self.best: Hypernetwork | None = None
        self.best_row: Row = {}
        self.step = 0
        self.precision: str | None = None
        self.history: list[Row] = []
        self.pending: list[Row] = []
        self.dropped: deque[int] = deque(maxlen=100)
        self.dropped_architectures: list[dict[str, Any]] = []

    @classmethod
    def new(cls, params: Params, num_classes: int, device: torch.device, dtype: torch.dtype) -> TrainingState:
        """The state at step 0; the same on every worker."""
        torch.manual_seed(params.seed)
        h = params.hypernetwork
        config = GHNConfig(num_classes, params.images.size, h.variant, h.hidden, h.kernel, h.virtual_edges)
        ghn = Hypernetwork(config).to(device, dtype)
        optimizer = torch.optim.Adam(ghn.parameters(), weight_decay=params.train.weight_decay)
        return cls(ghn, optimizer, params.train.ema)

    @property
    def result(self) -> Hypernetwork:
        """The weights that the run has arrived at: the moving average, where there is one."""
        return self.ghn if self.average is None else self.average

    def update(self, rate: float, clip: float) -> float:
        """Takes one step; returns the norm of the gradient before it was clipped.

        If that is not finite, the optimiser does nothing, and what is returned is NaN.
        """
        self.step += 1
        norm = torch.nn.utils.clip_grad_norm_(self.ghn.parameters(), clip)
        if not norm.isfinite():
            return math.nan
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self.average is not None:
            # Short at first, or the random weights of the beginning would stay in the average for long.
            decay = min(self.ema, self.step / (9 + self.step))
            averages = [weight.data for weight in self.average.parameters()]
            torch._foreach_lerp_(averages, [weight.data for weight in self.ghn.parameters()], 1 - decay)
        return norm.item()

    def drop(self, indices: list[int], network_hash: Callable[[int], str]) -> None:
        """Takes note of the architectures that this step dropped, by index in the training split."""
        self.dropped.append(len(indices))
        self.dropped_architectures += [
            {"step": self.step, "index": index, "identity": network_hash(index)} for index in indices
        ]

    def record(self, row: Row, log_every: int, steps: int) -> Row | None:
        """Takes a step's row; returns the row that the history got, if one is complete or the last step is done."""
        self.pending.append(row)
        if self.step % log_every and self.step < steps:
            return None
        means = pd.DataFrame(self.pending).mean().to_dict()  # without what is not a number
        self.history.append(means | {"step": self.step, "dropped": sum(r["dropped"] for r in self.pending)})
        self.pending = []
        return self.history[-1]

    def has_diverged(self, meta_batch: int) -> bool:
        """Whether too many architectures of the last hundred steps, or of the first ten, had to be dropped."""
        return sum(self.dropped) > MAX_NONFINITE_SHARE * max(len(self.dropped), 10) * meta_batch

    def keep_if_best(self, row: Row) -> None:
        """Takes note of what validation gave (`val_top1`, `val_loss`), and keeps the weights if they did best."""
        if self.best is None or row["val_top1"] > self.best_row["val_top1"]:
            self.best = copy.deepcopy(self.result)
            self.best_row = row | {"step": self.step}

    def save(self, folder: Path) -> None:
        for name, ghn in (("ghn", self.ghn), ("average", self.average), ("best", self.best)):
            if ghn is not None:
                ghn.save(folder / name)
        tensors = {
            f"{index}.{name}": value.detach().cpu()
            for index, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        save_file(tensors, folder / "optimizer.safetensors")
        progress = {
            "step": self.step,
            "precision": self.precision,
            "best": self.best_row,
            "pending": self.pending,
            "dropped": list(self.dropped),
            "dropped_architectures": self.dropped_architectures,
            "history": self.history,
        }
        (folder / "progress.json").write_text(json.dumps(progress))

    def load(self, folder: Path) -> None:
        """Takes up the state that was saved.

        Raises:
            CheckpointError: a file is missing, damaged or does not fit.
        """
        progress = _read(folder / "progress.json", lambda path: json.loads(path.read_text()))
        moments = _read(folder / "optimizer.safetensors", load_file)
        self.step, self.precision = progress["step"], progress["precision"]
        self.history, self.pending = progress["history"], progress["pending"]
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


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): remove its folder or train again") from error
