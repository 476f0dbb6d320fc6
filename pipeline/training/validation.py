"""How well the hypernetwork does, while it trains, on architectures and images that it is not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from ghn.deepnets1m.architecture import Architecture
from ghn.models.hypernetwork import Hypernetwork
from ghn.training.cost_model import training_seconds
from ghn.training.load_balance import assign_greedily
from pipeline.evaluation.scores import score
from pipeline.images.batches import evaluation_batches
from pipeline.images.dataset import Images, ImageSubset


@dataclass(frozen=True)
class Validation:
    """Architectures to validate on, at their width, and held-out images of `images`, `batch` at a time."""

    architectures: Sequence[Architecture]
    held_out: ImageSubset
    images: Images
    batch: int

    @torch.no_grad()
    def measure(self, ghn: Hypernetwork, rank: int, workers: int) -> dict[str, float]:
        """Means over the architectures: top-1, and the loss of those where it is finite.

        The workers share the architectures; each is predicted alone, so that the result does not depend on them.
        """
        weight = next(ghn.parameters())
        classes, size = len(self.images.classes), ghn.config.image_size
        costs = [training_seconds(architecture.program(size, classes), 1) for architecture in self.architectures]
        results = torch.zeros(3, len(costs), dtype=torch.float64)  # top-1, loss; 1 where the loss is finite
        for position in assign_greedily(costs, workers)[rank]:
            architecture = self.architectures[position]
            (parameters,) = ghn.predict_parameters([architecture])
            classify = partial(self._classify, architecture, parameters, weight.dtype)
            scores = score(classify, evaluation_batches(self.held_out, self.images, self.batch), weight.device)
            finite = scores.loss is not None
            results[:, position] = torch.tensor([scores.top1, scores.loss or 0.0, finite], dtype=torch.float64)
        results = results.to(weight.device)
        if workers > 1:
            dist.all_reduce(results)
        top1, loss, finite = results.sum(1).tolist()
        return {"val_top1": top1 / len(costs), "val_loss": loss / finite if finite else math.nan}

    @staticmethod
    def _classify(
        architecture: Architecture, parameters: dict[str, torch.Tensor], dtype: torch.dtype, images: torch.Tensor
    ) -> torch.Tensor:
        return architecture.forward(parameters, images.to(dtype))
