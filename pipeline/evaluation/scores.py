"""The scores of a network as a classifier.

Dimensions: B images or texts of a batch, C channels, S image side in pixels, T tokens of a text, K classes, R rows: the
images of a batch, or the positions of its texts.
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
    """Shares of the images whose class is ranked first, or among the first five, and the mean cross entropy in nats.

    An image with a logit that is not a number counts as wrong. `loss` is None if it is not finite. Of texts, each
    position counts as an image, and the token that comes next is its class.
    """

    top1: float
    top5: float
    loss: float | None


@torch.no_grad()
def score(
    classify: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Scores:
    """Return the scores of a function from images (B, 3, S, S) on the device to logits (B, K).

    Or from texts (B, T), int64, to logits (B, T, K); the labels of a batch are then the tokens (B, T) that come next.
    """
    count, top1, top5, loss = 0, 0, 0, 0.0
    for x, labels in batches:
        labels_R = labels.to(device).flatten()
        logits_RK = classify(x.to(device)).float().flatten(0, -2)
        are_numbers_R = ~logits_RK.isnan().any(1)
        ranked_RK = logits_RK.topk(min(5, logits_RK.shape[1])).indices
        correct_RK = (ranked_RK == labels_R[:, None]) & are_numbers_R[:, None]
        count += len(labels_R)
        top1 += int(correct_RK[:, 0].sum())
        top5 += int(correct_RK.sum())
        loss += float(F.cross_entropy(logits_RK, labels_R, reduction="sum"))
    return Scores(top1 / count, top5 / count, loss / count if np.isfinite(loss) else None)
