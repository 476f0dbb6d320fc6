"""The accuracy of the hypernetwork, while it trains, on architectures and images that it is not trained on.

Dimensions: A architectures, B images of a batch, C channels, K classes, S side of the images in pixels; 3 stands for
top-1, loss, and 1 where the loss is finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from ghn.models.hypernetwork import Hypernetwork
from ghn.networks.network import ScalableNetwork
from ghn.training.cost_model import training_seconds
from ghn.training.load_balance import assign_greedily
from pipeline.architectures.store import Split
from pipeline.errors import UserError
from pipeline.evaluation.scores import score
from pipeline.images.batches import evaluation_batches
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.subsets import hold_out
from pipeline.params import TrainSettings, ValidationSettings
from pipeline.training.history import Row


@dataclass(frozen=True)
class Validation:
    """The networks and images that the hypernetwork is validated on.

    Attributes:
        architectures: the architectures, at the width at which they are validated.
        held_out: images of the training part that are not trained on.
        images: the data set that they belong to.
        batch: how many images a network classifies at a time.
    """

    architectures: Sequence[ScalableNetwork]
    held_out: ImageSubset
    images: Images
    batch: int

    @classmethod
    def of(cls, split: Split, held_out: ImageSubset, images: Images, settings: TrainSettings) -> Validation:
        """Return the validation on the first architectures of a split, at the smallest width of training."""
        C, fc_dim = settings.widths[0], settings.head_widths[0]
        count = min(settings.validation.architectures, len(split))
        architectures = [split.read(index).with_width(C, fc_dim) for index in range(count)]
        return cls(architectures, held_out, images, settings.batch)

    @torch.no_grad()
    def measure(self, ghn: Hypernetwork, rank: int, workers: int) -> Row:
        """Return the mean top-1 over the architectures, and the mean loss of those where it is finite.

        The workers share the architectures, and all must call this. The parameters of each architecture are predicted
        alone, so that the result does not depend on the number of workers.
        """
        weight = next(ghn.parameters())
        num_classes, size = len(self.images.classes), ghn.config.image_size
        costs = [training_seconds(architecture.program(size, num_classes), 1) for architecture in self.architectures]
        results_3A = torch.zeros(3, len(costs), dtype=torch.float64)
        for position in assign_greedily(costs, workers)[rank]:
            architecture = self.architectures[position]
            (parameters,) = ghn.predict_parameters([architecture])
            classify = partial(_classify, architecture, parameters, weight.dtype)
            scores = score(classify, evaluation_batches(self.held_out, self.images, self.batch), weight.device)
            is_finite = scores.loss is not None
            results_3A[:, position] = torch.tensor([scores.top1, scores.loss or 0.0, is_finite], dtype=torch.float64)
        results_3A = results_3A.to(weight.device)
        if workers > 1:
            dist.all_reduce(results_3A)
        top1, loss, finite = results_3A.sum(1).tolist()
        return {"val_top1": top1 / len(costs), "val_loss": loss / finite if finite else math.nan}

    def top1(self, ghn: Hypernetwork) -> float:
        """Return the mean top-1 over the architectures, measured by this process alone."""
        return self.measure(ghn, 0, 1)["val_top1"]

    def top1_of_each(self, ghn: Hypernetwork, images: ImageSubset) -> list[float]:
        """Return the top-1 of each architecture on other images of the data set, measured by this process alone."""
        return [
            replace(self, architectures=[architecture], held_out=images).top1(ghn)
            for architecture in self.architectures
        ]


def _classify(
    architecture: ScalableNetwork, parameters: dict[str, Tensor], dtype: torch.dtype, inputs: Tensor
) -> Tensor:
    """Return the logits (B, K) of images, or (B, T, K) of texts, by a network with the given parameters."""
    return architecture.forward(parameters, inputs.to(dtype) if inputs.is_floating_point() else inputs)


def split_off_held_out(images: Images, settings: ValidationSettings) -> tuple[Images, ImageSubset]:
    """Return the images to train on, and those to validate on, which are none where validation is off.

    Raises:
        UserError: validation is on, and no class has an image to spare.
    """
    if settings.every is None:
        return hold_out(images, 0.0)
    remaining, held_out = hold_out(images, settings.images)
    if not len(held_out):
        raise UserError(
            f"train.validation.images = {settings.images}: no class of {images.name} has two training images\n"
            "use more images, or train.validation.every = null"
        )
    return remaining, held_out
