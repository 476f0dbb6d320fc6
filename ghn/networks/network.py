"""Networks that compile to a program, and what can be made of one.

PyTorch is imported where tensors are computed: a process that only generates architectures does without it, which saves
it 320 MiB.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ghn.networks.graph import Graph
from ghn.networks.program import Program
from ghn.networks.summary import Summary, summarise

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Network(ABC):
    """Anything that compiles to a program, seen in four ways."""

    @abstractmethod
    def compile(self, image_size: int, num_classes: int) -> Program:
        """The program for square images of `image_size` pixels and `num_classes` classes."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable record; `network_from_dict` is its inverse."""

    def program(self, image_size: int, num_classes: int) -> Program:
        """Like `compile`, with the most recent programs kept."""
        return _cached_program(self, image_size, num_classes)

    @property
    def network_hash(self) -> str:
        """24 hexadecimal digits, equal for equal networks, of 32×32 images and 10 classes (`ghn.networks.canonical_hash`)."""
        return self.summary(32, 10).network_hash

    def summary(self, image_size: int, num_classes: int) -> Summary:
        """Network hash, parameters, FLOPs and size of the graph."""
        return summarise(self.compile(image_size, num_classes))

    def graph(self, image_size: int, num_classes: int) -> Graph:
        """The computational graph that a hypernetwork reads."""
        return self.program(image_size, num_classes).graph

    def num_parameters(self, image_size: int, num_classes: int) -> int:
        """The number of elements of all parameters, after pruning."""
        return self.program(image_size, num_classes).num_parameters

    def forward(self, parameters: dict[str, Tensor], images: Tensor, dropout: torch.Generator | None = None) -> Tensor:
        """Logits (B, classes) of `images` (B, 3, S, S) with the given parameters.

        The sizes are read off the tensors: S from the images, the classes from the last layer's bias.
        Dropout is off unless a generator is given to draw it from.
        """
        from ghn.networks.functional import run_program

        *_, last = parameters.values()
        return run_program(self.program(images.shape[-1], len(last)), parameters, images, dropout)

    def module(self, image_size: int, num_classes: int) -> nn.Module:
        """An ordinary module with its own parameters in PyTorch's default initialisation."""
        from ghn.networks.module import ProgramModule

        return ProgramModule(self.program(image_size, num_classes))


@lru_cache(maxsize=256)
def _cached_program(network: Network, image_size: int, num_classes: int) -> Program:
    return network.compile(image_size, num_classes)
