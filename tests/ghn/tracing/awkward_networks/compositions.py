"""Networks that are composed of parts, a head and a wrapper, and what watches them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import nn

from awkward_networks.base import HEADS, PARTS, SIDE, WRAPPERS, C


class Observer:
    """Counts the calls of the network's hooks, and keeps what they saw."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.seen: list[Any] = []

    def watch(self, network: nn.Module) -> None:
        network.register_forward_pre_hook(lambda layer, inputs: self._note("before", inputs))
        network.register_forward_hook(lambda layer, inputs, output: self._note("after", output))
        network.register_full_backward_hook(lambda layer, inputs, outputs: self._note("backward", None))

    def _note(self, name: str, value: Any) -> None:
        self.calls.append(name)
        self.seen.append(value)


class Composition(NamedTuple):
    """The names of what a network is made of, which a failure prints."""

    parts: tuple[str, ...]
    head: str
    wrapper: str
    is_training: bool
    ran_before: bool
    is_observed: bool

    def build(self) -> tuple[nn.Module, Observer | None]:
        """Return the network, with seeded parameters, and the observer of its first layer."""
        torch.manual_seed(0)
        parts = [PARTS[name]() for name in self.parts]
        network: nn.Module = nn.Sequential(nn.Conv2d(3, C, 3, padding=1), *parts, HEADS[self.head]())
        observer = None
        if self.is_observed:
            observer = Observer()
            observer.watch(network[0])
        if self.ran_before:
            network.eval()(torch.randn(2, 3, SIDE, SIDE))
        network = WRAPPERS[self.wrapper](network)
        if observer is not None:
            observer.calls.clear()
            observer.seen.clear()
        return network.train(self.is_training), observer


def compositions() -> st.SearchStrategy[Composition]:
    """Return a strategy of networks of up to four awkward parts."""
    return st.builds(
        Composition,
        st.lists(st.sampled_from(sorted(PARTS)), max_size=4).map(tuple),
        st.sampled_from(sorted(HEADS)),
        st.sampled_from(sorted(WRAPPERS)),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    )
