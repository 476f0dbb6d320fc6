"""The sum of a step over its slices and over the workers.

Where each worker computes whole slices, their gradients are exchanged one by one and added up by everyone in the same
order, so that the sum is the same to the last digit whoever computed what. It matters: the gradient of target networks
amplifies a difference in the last digit a thousandfold (a picture's background is thousands of equal pixels, all on the
same side of a ReLU's kink), and after some steps two runs have nothing in common but their statistics.
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

PERCENTILES = {"median": 0.5, "p90": 0.9, "max": 1.0}


@dataclass(frozen=True)
class StepResult:
    """What a step came to, the same on every worker but for the seconds of communication, which are its own.

    `row` are the values to log; `dropped` the positions of architectures that were dropped; `flags` how many workers
    raised each of the flags.
    """

    row: dict[str, float]
    dropped: list[int]
    flags: tuple[int, ...]


class GradientReducer:
    """Adds up gradients, scores and times of a step.

    `rows` are the sums that are exchanged: one for each slice, in the weights' precision, or a single one in double
    precision.
    """

    def __init__(self, weights: Iterable[torch.nn.Parameter], meta_batch: int, rows: int = 1):
        self.weights = list(weights)
        for weight in self.weights:
            weight.grad = None
        first, count = self.weights[0], sum(weight.numel() for weight in self.weights)
        dtype = first.dtype if rows > 1 else torch.float64
        self.gradients = torch.zeros(rows, count, dtype=dtype, device=first.device)
        self.scores = torch.zeros(4, meta_batch, dtype=torch.float64)  # loss, top-1, norm; 1 where one counts

    def add(self, scores: Mapping[int, TargetScores], row: int = 0) -> None:
        """Adds the scores of a slice, and to a row its gradient, which it takes from `.grad`."""
        for weight, part in zip(self.weights, self._parts(self.gradients[row]), strict=True):
            if weight.grad is not None:
                part += weight.grad.flatten()
                weight.grad = None
        for position, score in scores.items():
            if score.is_finite:
                values = [score.loss, score.top1, score.gradient_norm, 1.0]
                self.scores[:, position] = torch.tensor(values, dtype=torch.float64)

    def all_reduce(
        self, rank: int, workers: int, seconds: Mapping[str, float], busy: float, flags: Sequence[bool]
    ) -> StepResult:
        """Adds up all workers' totals and leaves the mean gradient over architectures in `.grad`.

        Args:
            seconds: of this worker for each part of a step; the row has the means over the workers.
            busy: seconds that this worker has spent on the step until now.
        """
        everyone = torch.zeros(workers, dtype=torch.float64)
        everyone[rank] = busy
        mine = [self.scores.flatten(), everyone, _doubles(seconds.values()), _doubles(flags)]
        message = torch.cat(mine).to(self.gradients.device)
        started = perf_counter()
        if workers > 1:
            dist.all_reduce(message)
            dist.all_reduce(self.gradients)
        scores, everyone, sums, raised = message.cpu().split([len(part) for part in mine])
        *values, counts = scores.view(4, -1)
        kept = counts.bool()
        self._leave(self.gradients.sum(0, dtype=torch.float64) / max(int(kept.sum()), 1))
        exchange = perf_counter() - started
        row = self._means(*(value[kept] for value in values))
        row["dropped"] = int((~kept).sum())
        row |= {f"{name}_seconds": float(total) / workers for name, total in zip(seconds, sums, strict=True)}
        # Whoever is done first waits in the exchange for the slowest: that is imbalance, not communication.
        row["communication_seconds"] = max(0.0, exchange - (float(everyone.max()) - busy))
        row["imbalance"] = float(everyone.max() / everyone.mean())
        return StepResult(row, (~kept).nonzero().flatten().tolist(), tuple(int(count) for count in raised))

    def _leave(self, gradient: Tensor) -> None:
        for weight, part in zip(self.weights, self._parts(gradient), strict=True):
            weight.grad = part.to(weight.dtype).view_as(weight)

    def _parts(self, flat: Tensor) -> tuple[Tensor, ...]:
        return flat.split([weight.numel() for weight in self.weights])

    def _means(self, losses: Tensor, top1: Tensor, norms: Tensor) -> dict[str, float]:
        """Means of the kept architectures' scores, and how the norms of their gradients are distributed."""
        if not len(losses):
            return dict.fromkeys(("loss", "top1", *(f"architecture_norm_{name}" for name in PERCENTILES)), math.nan)
        quantiles = {f"architecture_norm_{name}": float(norms.quantile(share)) for name, share in PERCENTILES.items()}
        return {"loss": float(losses.mean()), "top1": float(top1.mean()), **quantiles}


def _doubles(values: Iterable[float]) -> Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)
