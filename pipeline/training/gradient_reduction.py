"""The gradient of a step, summed over its micro-batches and over the workers.

Where each worker computes whole micro-batches, the workers exchange one gradient for each micro-batch, and every worker
adds them up in the same order. So the sum is the same to the last digit for any assignment of micro-batches to workers.
This matters because the gradient of a target network amplifies a difference in the last digit a thousandfold: the
background of an image is thousands of equal pixels, all on the same side of a ReLU's kink. After some steps two runs
would agree in nothing but their statistics.

Dimensions: M architectures of the meta-batch, R gradients that are exchanged, P weights of the hypernetwork, W workers,
T phases of a step, F flags; 4 stands for loss, top-1, norm of the gradient, and 1 where they are finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
import torch.distributed as dist
from torch import Tensor

from ghn.training.step import TargetScores
from pipeline.training.history import NORM_QUANTILES, Row


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step. It is the same on all workers, except for the seconds of communication.

    Attributes:
        row: the values to log.
        dropped: positions in the meta-batch of architectures whose loss or gradient was not finite.
        flags: how many workers raised each of the flags.
    """

    row: Row
    dropped: list[int]
    flags: tuple[int, ...]


class GradientReducer:
    """The sums of gradients, scores and seconds of one step, over its micro-batches and the workers.

    Args:
        weights: those of the hypernetwork; their `.grad` is cleared.
        meta_batch: number of architectures of the step.
        gradients: how many gradients the workers exchange: one for each micro-batch, in the precision of the weights,
            or a single one, in double precision.
    """

    def __init__(self, weights: Iterable[torch.nn.Parameter], meta_batch: int, gradients: int = 1):
        self.weights = list(weights)
        for weight in self.weights:
            weight.grad = None
        first, count = self.weights[0], sum(weight.numel() for weight in self.weights)
        dtype = first.dtype if gradients > 1 else torch.float64
        self.gradients_RP = torch.zeros(gradients, count, dtype=dtype, device=first.device)
        self.scores_4M = torch.zeros(4, meta_batch, dtype=torch.float64)

    def add(self, scores: Mapping[int, TargetScores], gradient: int = 0) -> None:
        """Add the scores of a micro-batch, and its gradient, which is moved there from the weights' `.grad`.

        Args:
            scores: by position in the meta-batch.
            gradient: number of the exchanged gradient that this one is added to.
        """
        for weight, total in zip(self.weights, self._split(self.gradients_RP[gradient]), strict=True):
            if weight.grad is not None:
                total += weight.grad.flatten()
                weight.grad = None
        for position, score in scores.items():
            if score.is_finite:
                values = [score.loss, score.top1, score.gradient_norm, 1.0]
                self.scores_4M[:, position] = torch.tensor(values, dtype=torch.float64)

    def all_reduce(
        self,
        rank: int,
        workers: int,
        seconds: Mapping[str, float],
        busy: float,
        flags: Sequence[bool],
        owners: Sequence[int] | None = None,
    ) -> StepResult:
        """Add up the totals of all workers and leave the mean gradient of the architectures in `.grad`.

        Args:
            owners: the worker that computed each of the exchanged gradients, which then sends it to the others; None:
                all workers computed parts of them, which are added up.
            seconds: of this worker, by phase of the step; the row has their means over the workers.
            busy: seconds that this worker has spent on the step so far.
            flags: of this worker.
        """
        busy_W = torch.zeros(workers, dtype=torch.float64)
        busy_W[rank] = busy
        own = [self.scores_4M.flatten(), busy_W, _float64(seconds.values()), _float64(flags)]
        message = torch.cat(own).to(self.gradients_RP.device)
        started = perf_counter()
        if workers > 1:
            dist.all_reduce(message)
            self._exchange(owners)
        scores, busy_W, seconds_T, flags_F = message.cpu().split([len(part) for part in own])
        *scores_M, is_finite_M = scores.view(4, -1)
        kept_M = is_finite_M.bool()
        self._set_grad(self.gradients_RP.sum(0, dtype=torch.float64).div_(max(int(kept_M.sum()), 1)))
        exchange = perf_counter() - started

        row = _summarise(*(values_M[kept_M] for values_M in scores_M))
        row["dropped"] = int((~kept_M).sum())
        row |= {f"{phase}_seconds": float(total) / workers for phase, total in zip(seconds, seconds_T, strict=True)}
        # A fast worker waits for the slowest within the exchange: that is imbalance, not communication.
        row["communication_seconds"] = max(0.0, exchange - (float(busy_W.max()) - busy))
        row["imbalance"] = float(busy_W.max() / busy_W.mean())
        return StepResult(row, (~kept_M).nonzero().flatten().tolist(), tuple(int(count) for count in flags_F))

    def _exchange(self, owners: Sequence[int] | None) -> None:
        """Give all workers the gradients: those of their owners, or the sums of all workers' parts."""
        if owners is None:
            dist.all_reduce(self.gradients_RP)
            return
        pairs = zip(self.gradients_RP, owners, strict=True)
        pending = [dist.broadcast(gradient_P, owner, async_op=True) for gradient_P, owner in pairs]
        for broadcast in filter(None, pending):
            broadcast.wait()

    def _set_grad(self, gradient_P: Tensor) -> None:
        for weight, part in zip(self.weights, self._split(gradient_P), strict=True):
            weight.grad = part.to(weight.dtype).view_as(weight)

    def _split(self, gradient_P: Tensor) -> tuple[Tensor, ...]:
        """Return the flat parts of a gradient that belong to each of the weights."""
        return gradient_P.split([weight.numel() for weight in self.weights])


def _summarise(loss_M: Tensor, top1_M: Tensor, norm_M: Tensor) -> Row:
    """Return the means of the architectures' scores, and quantiles of the norms of their gradients; NaN for none."""
    if not len(loss_M):
        return dict.fromkeys(("loss", "top1", *(f"architecture_norm_{name}" for name in NORM_QUANTILES)), math.nan)
    quantiles = {f"architecture_norm_{name}": float(norm_M.quantile(share)) for name, share in NORM_QUANTILES.items()}
    return {"loss": float(loss_M.mean()), "top1": float(top1_M.mean()), **quantiles}


def _float64(values: Iterable[float]) -> Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)
