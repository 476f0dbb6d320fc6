"""Networks that compile to a program, with the views of it.

PyTorch is imported where tensors are computed, because a process that only generates architectures saves 320 MiB
without it.

Dimensions: B images, C channels, S×S pixels, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ghn.networks.graph import Graph
from ghn.networks.node_table import NodeTable, table_of
from ghn.networks.program import Program
from ghn.networks.summary import Summary, summarise

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Network(ABC):
    """Any network that compiles to a program. Its views are a summary, a graph, a forward pass and a module."""

    @abstractmethod
    def compile(self, image_size: int, num_classes: int) -> Program:
        """Return the program for images of `image_size` pixels a side and for `num_classes` classes.

        Raises:
            ValueError: a size is impossible.
            InvalidArchitecture: the network has no output.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable record, of which `network_from_dict` makes the network again."""

    def program(self, image_size: int, num_classes: int) -> Program:
        """Return the program as `compile` does; the most recent programs are kept in memory."""
        return _cached_program(self, image_size, num_classes)

    @property
    def network_hash(self) -> str:
        """The network hash for 32×32 images and 10 classes: see `ghn.networks.canonical_hash`."""
        return self.summary(32, 10).network_hash

    def summary(self, image_size: int, num_classes: int) -> Summary:
        """Return the network hash, the number of parameters, the FLOPs and the size of the graph."""
        return summarise(self.compile(image_size, num_classes))

    def graph(self, image_size: int, num_classes: int) -> Graph:
        """Return the computational graph that hypernetworks read."""
        return self.program(image_size, num_classes).graph

    def node_table(self, image_size: int, num_classes: int) -> NodeTable:
        """Return the primitives, shapes and edges of the graph as arrays."""
        return table_of(self.graph(image_size, num_classes))

    def num_parameters(self, image_size: int, num_classes: int) -> int:
        """Return the number of elements of all parameters that the output depends on."""
        return self.program(image_size, num_classes).num_parameters

    def forward(self, parameters: dict[str, Tensor], images: Tensor, dropout: torch.Generator | None = None) -> Tensor:
        """Return the logits (B, K) of images (B, 3, S, S) with the given parameters.

        Args:
            parameters: by name. The last one is the bias (K,) of the last layer, which gives the number of classes.
            dropout: the generator of the dropout masks; None: no dropout.

        Raises:
            KeyError: a parameter is missing.
        """
        from ghn.networks.functional import run_program

        *_, last = parameters.values()
        return run_program(self.program(images.shape[-1], len(last)), parameters, images, dropout)

    def module(self, image_size: int, num_classes: int) -> nn.Module:
        """Return an ordinary module with its own parameters, in PyTorch's default initialisation."""
        from ghn.networks.module import ProgramModule

        return ProgramModule(self.program(image_size, num_classes))


@lru_cache(maxsize=256)
def _cached_program(network: Network, image_size: int, num_classes: int) -> Program:
    return network.compile(image_size, num_classes)
