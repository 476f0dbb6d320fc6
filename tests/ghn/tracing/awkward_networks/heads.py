"""Heads, each of which returns something else."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from awkward_networks.base import CLASSES, HEADS, C, Part, head, parameter

HEADS |= {
    "linear": lambda: Part(lambda self, x: self.fc(x.mean((2, 3))), fc=nn.Linear(C, CLASSES)),
    "other_classes": lambda: Part(lambda self, x: self.fc(x.mean((2, 3))), fc=nn.Linear(C, CLASSES + 2)),
    "map": nn.Identity,
    "convolution_and_pool": lambda: nn.Sequential(nn.Conv2d(C, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "softmax_at_the_end": lambda: Part(lambda self, x: self.fc(x.mean((2, 3))).softmax(1), fc=nn.Linear(C, CLASSES)),
    "two_heads": lambda: Part(
        lambda self, x: (self.one(x.mean((2, 3))), self.other(x.mean((2, 3)))),
        one=nn.Linear(C, CLASSES),
        other=nn.Linear(C, 2),
    ),
    "map_beside_logits": lambda: Part(
        lambda self, x: {"logits": self.fc(x.mean((2, 3))), "maps": [x, None, 3]}, fc=nn.Linear(C, CLASSES)
    ),
}


@dataclasses.dataclass
class Output:
    logits: Tensor
    nothing: None = None


class Named(NamedTuple):
    logits: Tensor
    features: Tensor


@head
def gives_a_dataclass() -> nn.Module:
    return Part(lambda self, x: Output(self.fc(x.mean((2, 3)))), fc=nn.Linear(C, CLASSES))


@head
def gives_a_named_tuple() -> nn.Module:
    return Part(lambda self, x: Named(self.fc(x.mean((2, 3))), x), fc=nn.Linear(C, CLASSES))


@head
def gives_a_distribution() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        return torch.distributions.Categorical(logits=self.fc(x.mean((2, 3))), validate_args=False)

    return Part(forward, fc=nn.Linear(C, CLASSES))


@head
def temperature() -> nn.Module:
    return Part(
        lambda self, x: self.fc(x.mean((2, 3))) / self.t, fc=nn.Linear(C, CLASSES), t=nn.Parameter(torch.ones(()))
    )


@head
def cosine() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x.mean((2, 3))), F.normalize(self.weight))

    return Part(forward, weight=parameter(CLASSES, C))


@head
def tied_to_an_embedding() -> nn.Module:
    made = Part(lambda self, x: F.linear(x.mean((2, 3)) + self.table.weight[0], self.table.weight))
    made.table = nn.Embedding(CLASSES, C)
    return made
