"""What the parts of awkward networks are made of, and the lists of all parts, heads and wrappers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

C, SIDE, CLASSES = 4, 8, 3


class Part(nn.Module):
    """A part that is a function of its layers and of features."""

    def __init__(self, function: Callable[..., Any], **layers: Any):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(C, C, kernel, padding=kernel // 2, **options)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.1)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def image(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(len(x), C, SIDE, SIDE)


PARTS: dict[str, Callable[[], nn.Module]] = {}
HEADS: dict[str, Callable[[], nn.Module]] = {}
WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {}


def part(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    PARTS[make.__name__] = make
    return make


def head(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    HEADS[make.__name__] = make
    return make


def wrapper(make: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    WRAPPERS[make.__name__] = make
    return make
