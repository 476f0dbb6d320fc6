"""Training of a network by SGD: the loop of all stages that train networks on images.

Dimensions: B images or texts of a batch, C channels, S image side in pixels, T tokens of a text, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from pipeline.evaluation.networks import available_device
from pipeline.images.batches import Augmentation, in_layout, training_batch
from pipeline.images.dataset import Images

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4

MEMORY_FORMAT = torch.channels_last
"""The order of values in memory: on a CPU, small networks train a third faster with channels last."""

Measure = Callable[[int, nn.Module], None]
"""A function of a step and the network after so many steps. It may leave the network in evaluation mode."""


@dataclass(frozen=True)
class SgdRun:
    """One training run, but for the network and the images.

    The learning rate falls to 0 along a cosine over the steps. The images of each step, their augmentation and the
    dropout masks are functions of `seed`.
    """

    learning_rate: float
    steps: int
    batch: int
    seed: int
    augmentation: Augmentation


def train_by_sgd(module: nn.Module, images: Images, run: SgdRun, measure: Measure | None = None) -> list[float]:
    """Train a network in place, on a GPU where there is one, and leave it there.

    Args:
        images: those of the train part are trained on; a batch has at most all of them.
        measure: called before the first step and after each one.

    Returns:
        The share of each step's images that the network classified correctly in the step.
    """
    device = available_device()
    module.to(device=device, memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]  # only some overloads have it
    # Fused, because small networks have many small tensors, whose updates one by one take a fifth of the time.
    optimizer = SGD(module.parameters(), run.learning_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = CosineAnnealingLR(optimizer, T_max=run.steps)
    batch = min(run.batch, len(images.train))
    correct: list[Tensor] = []
    if measure:
        measure(0, module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)  # of dropout, whose masks are sampled on the CPU
        for step in range(run.steps):
            x, labels = training_batch(images, run.seed, step, batch, run.augmentation)
            labels_R = labels.to(device).flatten()  # of texts, each position is a row
            logits_RK = module.train()(in_layout(x.to(device), MEMORY_FORMAT)).flatten(0, -2)
            loss = F.cross_entropy(logits_RK, labels_R)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            correct.append(
                (logits_RK.detach().argmax(1) == labels_R).float().mean()
            )  # read at the end: GPUs need not wait
            if measure:
                measure(step + 1, module)
    return torch.stack(correct).tolist()


def classifier(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function from images (B, 3, S, S) to logits (B, K) of a trained network, now in evaluation mode.

    Or from texts (B, T) to logits (B, T, K).
    """
    module.eval()
    return lambda x: module(in_layout(x, MEMORY_FORMAT))
