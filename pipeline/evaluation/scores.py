"""How well a network classifies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Scores:
    """The shares of images whose class is the first, or among the first five, and the mean cross entropy.

    An image with a logit that is not a number counts as wrong. `loss` is None where it is not finite.
    """

    top1: float
    top5: float
    loss: float | None


@torch.no_grad()
def score(
    classify: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Scores:
    """How well `classify`, from images (B, 3, S, S) to logits (B, classes), names the classes."""
    count, top1, top5, loss = 0, 0, 0, 0.0
    for x_BCSS, labels_B in batches:
        labels_B = labels_B.to(device)
        logits = classify(x_BCSS.to(device)).float()
        numbers_B = ~logits.isnan().any(1)
        ranked = logits.topk(min(5, logits.shape[1])).indices
        correct = (ranked == labels_B[:, None]) & numbers_B[:, None]
        count += len(labels_B)
        top1 += int(correct[:, 0].sum())
        top5 += int(correct.sum())
        loss += float(F.cross_entropy(logits, labels_B, reduction="sum"))
    return Scores(top1 / count, top5 / count, loss / count if np.isfinite(loss) else None)
