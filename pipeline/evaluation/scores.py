"""The scores of a network as a classifier.

Dimensions: B images of a batch, C channels, S image side in pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Scores:
    """Shares of the images whose class is ranked first, or among the first five, and the mean cross entropy.

    An image with a logit that is not a number counts as wrong. `loss` is None if it is not finite.
    """

    top1: float
    top5: float
    loss: float | None


@torch.no_grad()
def score(
    classify: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Scores:
    """Return the scores of `classify`, a function from images (B, 3, S, S) on the device to logits (B, K)."""
    count, top1, top5, loss = 0, 0, 0, 0.0
    for x_BCSS, labels_B in batches:
        labels_B = labels_B.to(device)
        logits_BK = classify(x_BCSS.to(device)).float()
        are_numbers_B = ~logits_BK.isnan().any(1)
        ranked_BK = logits_BK.topk(min(5, logits_BK.shape[1])).indices
        correct_BK = (ranked_BK == labels_B[:, None]) & are_numbers_B[:, None]
        count += len(labels_B)
        top1 += int(correct_BK[:, 0].sum())
        top5 += int(correct_BK.sum())
        loss += float(F.cross_entropy(logits_BK, labels_B, reduction="sum"))
    return Scores(top1 / count, top5 / count, loss / count if np.isfinite(loss) else None)
