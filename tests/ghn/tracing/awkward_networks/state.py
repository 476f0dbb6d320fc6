"""Parts that write down something when they run: in themselves, in classes, in closures and in globals."""

from __future__ import annotations

import collections
import functools
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from awkward_networks.base import PARTS, SIDE, C, Part, conv, parameter, part

SEEN: list[Any] = []
BY_NAME: dict[str, Any] = {}
REGISTRY: weakref.WeakSet[Any] = weakref.WeakSet()
WEAK_KEYS: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
WEAK_VALUES: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
COUNTER = 0
LAST: Any = None

GLOBALS = ("SEEN", "BY_NAME", "REGISTRY", "WEAK_KEYS", "WEAK_VALUES", "COUNTER", "LAST")
"""Names of all that is written into here."""


def clear() -> None:
    """Remove what parts have noted in the containers."""
    for container in (SEEN, BY_NAME, REGISTRY, WEAK_KEYS, WEAK_VALUES):
        container.clear()


@part
def writes_buffers() -> nn.Module:
    class Ema(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(C))
            self.register_buffer("calls", torch.zeros((), dtype=torch.long), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            self.mean.lerp_(x.detach().mean((0, 2, 3)), 0.1)
            self.calls += 1
            return x

    return Ema()


@part
def replaces_buffers() -> nn.Module:
    class Replaces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", None)

        def forward(self, x: Tensor) -> Tensor:
            self.mean = x.detach().mean((0, 2, 3))
            return x

    return Replaces()


@part
def caches_by_size() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        side = x.shape[-1]
        if side not in self.cache:
            self.cache[side] = torch.arange(side, device=x.device) / side
        self.calls.append(x)
        self.last = x
        return x + self.cache[side]

    made = Part(forward)
    made.cache, made.calls = {}, []
    return made


@part
def keeps_features_in_plain_tensors() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.total += x.detach().mean((0, 2, 3))
        self.seen[0].add_(1)
        return self.conv(x)

    made = Part(forward, conv=conv())
    made.total, made.seen = torch.zeros(C), [torch.zeros(())]
    return made


@part
def keeps_arrays() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.histogram += 1
        self.lists["a"][0].append(len(x))
        self.recent.append(x)
        self.names.add(len(self.recent))
        return x

    made = Part(forward)
    made.histogram, made.lists = np.zeros(3), {"a": ([], 1)}
    made.recent, made.names = collections.deque([1, 2], maxlen=2), {5}
    return made


class Slotted:
    """An object without a dictionary."""

    __slots__ = ("items", "last")

    def __init__(self) -> None:
        self.items: list[Any] = []

    def note(self, x: Tensor) -> None:
        self.items.append(x)
        self.last = x


@part
def notes_in_slots() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.monitor.note(x)
        return x

    return Part(forward, monitor=Slotted())


class CountsInClass(nn.Module):
    calls = 0
    seen: list[Any] = []  # noqa: RUF012

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        self.seen.append(x)
        type(self).last = x
        return x


PARTS["counts_in_its_class"] = CountsInClass


@part
def notes_in_globals() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        global COUNTER, LAST
        COUNTER += 1
        LAST = x
        SEEN.append(x)
        BY_NAME[str(COUNTER)] = x
        return x

    return Part(forward)


@part
def notes_weakly() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        WEAK_KEYS[self] = WEAK_KEYS.get(self, 0) + 1
        REGISTRY.add(self)
        self.own.add(y := x.clone())
        WEAK_VALUES["features"], WEAK_VALUES["weight"] = y, self.weight
        self.kept = y
        return F.conv2d(x, self.weight)

    return Part(forward, weight=parameter(C, C, 1, 1), own=weakref.WeakSet())


@part
def counts_in_a_closure() -> nn.Module:
    calls, count, last = [], 0, None

    def forward(self: Any, x: Tensor) -> Tensor:
        nonlocal count, last
        count, last = count + 1, x
        calls.append(x)
        return x

    return Part(forward)


@functools.lru_cache
def table(side: int, device: torch.device) -> Tensor:
    return torch.linspace(0, 1, side, device=device)


@part
def cached_by_arguments() -> nn.Module:
    return Part(lambda self, x: x + table(x.shape[-1], x.device))


class CachesItsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = parameter(C, C, 1, 1)

    @functools.lru_cache  # noqa: B019
    def scaled(self) -> Tensor:
        return self.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.scaled())


PARTS["caches_a_product_of_its_weight"] = CachesItsWeight


class CachesProperty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    @functools.cached_property
    def grid(self) -> Tensor:
        return torch.ones(SIDE, device=self.conv.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.grid


PARTS["caches_a_property"] = CachesProperty


@part
def registers_hooks_when_it_runs() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.conv.register_forward_hook(lambda layer, inputs, output: output)
        return self.conv(x)

    return Part(forward, conv=conv())


@part
def adds_a_layer_when_it_runs() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        if not hasattr(self, "late"):
            self.late = nn.Identity()
        return self.late(self.conv(x))

    return Part(forward, conv=conv())
