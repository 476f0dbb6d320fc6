"""Networks that compile to a program, with the views of it.

PyTorch is imported where tensors are computed, because a process that only generates architectures saves 320 MiB
without it.

Networks read images or texts: for texts, `image_size` stands for their length in tokens, and classes for the tokens of
the vocabulary.

Dimensions: B images or texts, C channels, S×S pixels, T tokens, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ghn.networks.graph import Graph
from ghn.networks.node_table import NodeTable, table_of
from ghn.networks.program import Program
from ghn.networks.summary import Summary, summarise

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Network(ABC):
    """Any network that compiles to a program. Its views are a summary, a graph, a forward pass and a module."""

    reads_text: ClassVar[bool] = False
    """Whether the network is a language model."""

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

    def num_classes_of(self, parameters: Mapping[str, Tensor]) -> int:
        """Return the number of classes that parameters are for.

        By default it is the length of the last one, the bias (K,) of the last layer.
        """
        *_, last = parameters.values()
        return len(last)

    def forward(self, parameters: dict[str, Tensor], images: Tensor, dropout: torch.Generator | None = None) -> Tensor:
        """Return the logits (B, K) of images (B, 3, S, S), or (B, T, K) of texts (B, T), with the given parameters.

        Args:
            parameters: by name, in the order in which the network uses them.
            dropout: the generator of the dropout masks; None: no dropout.

        Raises:
            KeyError: a parameter is missing.
        """
        from ghn.networks.functional import run_program

        return run_program(self.program(images.shape[-1], self.num_classes_of(parameters)), parameters, images, dropout)

    def module(self, image_size: int, num_classes: int) -> nn.Module:
        """Return an ordinary module with its own parameters, in PyTorch's default initialisation."""
        from ghn.networks.module import ProgramModule

        return ProgramModule(self.program(image_size, num_classes))


class ScalableNetwork(Network):
    """A network of a design space, which has a width that can be chosen: C."""

    C: int

    @classmethod
    @abstractmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Return the network of a record that `to_dict` has returned; other keys are ignored.

        Raises:
            ValueError: a field is missing or impossible.
        """

    @abstractmethod
    def with_width(self, C: int, fc_dim: int | None = None) -> Self:
        """Return the same network with another width C; `fc_dim` is the hidden width of its head, where it has one."""

    @abstractmethod
    def with_sampled_widths(
        self, num_parameters: int, widths: Sequence[int], head_widths: Sequence[int], uniforms: Sequence[float]
    ) -> Self:
        """Return the same network with sampled widths, to train with.

        Args:
            num_parameters: elements of all parameters at width 32: see `ghn.networks.sample.Sample`.
            widths: values that C may have, smallest first.
            head_widths: values that fc_dim may have, smallest first.
            uniforms: two numbers in [0, 1), which choose C and fc_dim.
        """

    @staticmethod
    @abstractmethod
    def wide_factor(image_size: int) -> int:
        """Return how many times as wide the networks of split `wide` are as those of split `test`."""

    def widened(self, image_size: int) -> Self:
        """Return the network of split `wide` that this network of split `test` becomes."""
        return self.with_width(self.wide_factor(image_size) * self.C)


@lru_cache(maxsize=256)
def _cached_program(network: Network, image_size: int, num_classes: int) -> Program:
    return network.compile(image_size, num_classes)
