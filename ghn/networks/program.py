"""Programs: networks compiled to a flat, topologically ordered list of operations.

The program is the only description of a network from which the others are made, so that these agree: the graph that
hypernetworks read (`ghn.networks.graph`), the functional forward pass (`ghn.networks.functional`), the `nn.Module`
(`ghn.networks.module`) and the costs (below).

Shapes are those of one image or text: see `ghn.networks.operations`. Networks read one or the other. What is said of
images and classes holds for texts and tokens too: the size of a text is its number of tokens, its classes are the
vocabulary, and there are logits of each position.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

from ghn.networks.canonical_hash import hash_of_value, input_value, polynomial
from ghn.networks.graph import Graph, graph_of_operations
from ghn.networks.operations import Operation, Parameter, flops_of

LARGE_IMAGE = 112
"""Side in pixels of the smallest images whose networks have the stems of the published ImageNet networks."""


class InvalidArchitecture(ValueError):
    """An architecture without an output: every path from the image ends in `none`."""

    def __init__(self) -> None:
        super().__init__("the network has no output: every path from the image ends in 'none'")


@dataclass(frozen=True)
class Program:
    """A compiled network. Its first operation is the image or the text, and the last one gives the logits.

    Attributes:
        image_size: side of the images, in pixels; length of the texts, in tokens.
    """

    operations: tuple[Operation, ...]
    image_size: int
    num_classes: int

    @property
    def reads_text(self) -> bool:
        """Whether the network is a language model."""
        return self.operations[0].kind == "text"

    def parameters(self) -> Iterator[Parameter]:
        """Yield all parameters, in the order in which the operations first use them."""
        return iter({parameter.name: parameter for op in self.operations for parameter in op.parameters}.values())

    @cached_property
    def num_parameters(self) -> int:
        """The number of elements of all parameters."""
        return sum(parameter.size for parameter in self.parameters())

    @cached_property
    def flops(self) -> int:
        """The floating-point operations of one image's forward pass.

        Each multiply-add of convolutions, linear layers and attention products counts two. Norms, activations and
        pools are left out, as is usual.
        """
        return sum(flops_of(operation) for operation in self.operations)

    @cached_property
    def activations(self) -> int:
        """The number of elements of all intermediate results for one image, which a backward pass keeps."""
        return sum(math.prod(operation.shape) for operation in self.operations)

    @cached_property
    def freed_after(self) -> tuple[tuple[int, ...], ...]:
        """The results that can be freed after each operation, because no later operation reads them."""
        last: dict[int, int] = {}
        for position, operation in enumerate(self.operations):
            for source in operation.inputs:
                last[source] = position
        freed: list[list[int]] = [[] for _ in self.operations]
        for source, position in last.items():
            freed[position].append(source)
        return tuple(map(tuple, freed))

    @cached_property
    def network_hash(self) -> str:
        """The network hash, which does not depend on the parameters' names: see `ghn.networks.canonical_hash`."""
        value = polynomial(self.operations)(input_value(self.operations[0].kind, self.operations[0].shape))
        return hash_of_value(value, len(self.operations), self.num_parameters)

    @cached_property
    def graph(self) -> Graph:
        """The computational graph of primitives, which hypernetworks read."""
        return graph_of_operations(self.operations)


class Builder(ABC):
    """A receiver of a network's description, one step after another.

    Every method returns the position of its result. A position may be None, which stands for an absent result, such
    as that of the operation `none`. An operation on an absent result has an absent result too.
    """

    @property
    def image(self) -> int:
        """The position of the image, or of the text."""
        return 0

    @abstractmethod
    def shape(self, x: int) -> tuple[int, ...]:
        """Return the shape of the result at a position."""

    @abstractmethod
    def emit(self, kind: str, inputs: tuple[int, ...], shape: tuple[int, ...]) -> int:
        """Append an operation without parameters and settings."""

    @abstractmethod
    def block(self, emit: Callable[..., int], x: int, name: str, *settings: Any) -> int:
        """Append the operations that `emit(builder, x, name, *settings)` appends to a `ProgramBuilder`.

        They may depend on the shape of `x` and on the settings, which are hashable, and on nothing else.
        """

    @overload
    def add(self, inputs: Sequence[int]) -> int: ...

    @overload
    def add(self, inputs: Sequence[int | None]) -> int | None: ...

    def add(self, inputs: Sequence[int | None]) -> int | None:
        """Append the sum of the present results; it is absent if all are absent."""
        present = [x for x in inputs if x is not None]
        if not present:
            return None
        if len(present) == 1:
            return present[0]
        return self.emit("add", tuple(present), self.shape(present[0]))

    @overload
    def concat(self, inputs: Sequence[int]) -> int: ...

    @overload
    def concat(self, inputs: Sequence[int | None]) -> int | None: ...

    def concat(self, inputs: Sequence[int | None]) -> int | None:
        """Append the concatenation along channels, with zeros for absent results; it is absent if all are absent."""
        present = next((x for x in inputs if x is not None), None)
        if present is None:
            return None
        shape = self.shape(present)
        filled = [self.emit("zeros", (), shape) if x is None else x for x in inputs]
        if len(filled) == 1:
            return filled[0]
        channels = sum([self.shape(x)[0] for x in filled])
        return self.emit("concat", tuple(filled), (channels, *shape[1:]))


class ProgramBuilder(Builder):
    """A builder that collects operations; `finish` returns the program of those that the output depends on."""

    def __init__(self, image_size: int, num_classes: int):
        self.image_size = image_size
        self.num_classes = num_classes
        self.operations: list[Operation] = [Operation("image", (), (3, image_size, image_size))]

    @classmethod
    def of_text(cls, length: int, vocabulary: int) -> ProgramBuilder:
        """Return a builder of a network that reads texts of so many tokens, out of a vocabulary of so many."""
        build = cls(length, vocabulary)
        build.operations[0] = Operation("text", (), (length,))
        return build

    @classmethod
    def on(cls, shape: tuple[int, ...]) -> ProgramBuilder:
        """Return a builder for a part of a network; its first operation has a shape and stands for the part before."""
        build = cls(shape[-1], 0)
        build.operations[0] = Operation("image", (), shape)
        return build

    def shape(self, x: int) -> tuple[int, ...]:
        """Return the shape of the result at a position."""
        return self.operations[x].shape

    def block(self, emit: Callable[..., int], x: int, name: str, *settings: Any) -> int:
        """Append the operations that `emit(self, x, name, *settings)` appends."""
        return emit(self, x, name, *settings)

    def emit(
        self,
        kind: str,
        inputs: tuple[int, ...],
        shape: tuple[int, ...],
        parameters: tuple[Parameter, ...] = (),
        settings: tuple[int, ...] = (),
    ) -> int:
        """Append an operation: see `ghn.networks.operations.Operation`."""
        self.operations.append(Operation(kind, inputs, shape, parameters, settings))
        return len(self.operations) - 1

    def unary(self, kind: str, x: int) -> int:
        """Append an operation without settings that keeps the shape: `relu`, `gelu`, `dropout`, …"""
        return self.emit(kind, (x,), self.operations[x].shape)

    def conv(
        self,
        x: int,
        out: int,
        kernel: int | tuple[int, int],
        name: str,
        stride: int | tuple[int, int] = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
    ) -> int:
        """Append a convolution without bias, of `out` channels; `padding` defaults to half the kernel, rounded down."""
        kh, kw = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        sh, sw = stride if isinstance(stride, tuple) else (stride, stride)
        ph, pw = (kh // 2, kw // 2) if padding is None else (padding, padding)
        channels, height, width = self.operations[x].shape
        height = (height + 2 * ph - dilation * (kh - 1) - 1) // sh + 1
        width = (width + 2 * pw - dilation * (kw - 1) - 1) // sw + 1
        weight = Parameter(f"{name}.weight", (out, channels // groups, kh, kw))
        settings = (sh, sw, ph, pw, dilation, groups)
        return self.emit("conv", (x,), (out, height, width), (weight,), settings)

    def batch_norm(self, x: int, name: str) -> int:
        """Append a batch norm."""
        shape = self.operations[x].shape
        parameters = (Parameter(f"{name}.weight", shape[:1], "scale"), Parameter(f"{name}.bias", shape[:1], "bias"))
        return self.emit("batch_norm", (x,), shape, parameters)

    def layer_norm(self, x: int, name: str) -> int:
        """Append a layer norm over the last axis."""
        shape = self.operations[x].shape
        parameters = (Parameter(f"{name}.weight", shape[-1:], "scale"), Parameter(f"{name}.bias", shape[-1:], "bias"))
        return self.emit("layer_norm", (x,), shape, parameters)

    def linear(self, x: int, out: int, name: str, bias: bool = True) -> int:
        """Append a linear layer over the last axis."""
        shape = self.operations[x].shape
        parameters = [Parameter(f"{name}.weight", (out, shape[-1]))]
        if bias:
            parameters.append(Parameter(f"{name}.bias", (out,), "bias"))
        return self.emit("linear", (x,), (*shape[:-1], out), tuple(parameters))

    def embedding(self, text: int, width: int, name: str) -> int:
        """Append the rows of a table (V, width) that a text's tokens choose, of shape (T, width)."""
        (length,) = self.operations[text].shape
        table = Parameter(f"{name}.weight", (self.num_classes, width), "encoding")
        return self.emit("embedding", (text,), (length, width), (table,))

    def tied(self, x: int, embedding: int) -> int:
        """Append a linear layer without bias whose weight is the table of an embedding."""
        (table,) = self.operations[embedding].parameters
        return self.emit("linear", (x,), (*self.operations[x].shape[:-1], table.shape[0]), (table,))

    def pool(self, kind: str, x: int, stride: int = 1) -> int:
        """Append a `max_pool` of 3×3 pixels, or an `avg_pool`, which does not count the padding."""
        channels, height, width = self.operations[x].shape
        shape = (channels, (height - 1) // stride + 1, (width - 1) // stride + 1)
        return self.emit(kind, (x,), shape, (), (3, stride, 1))

    def subsample(self, x: int, stride: int) -> int:
        """Append a choice of every `stride`-th row and column, beginning with the first."""
        channels, height, width = self.operations[x].shape
        return self.emit("subsample", (x,), (channels, -(-height // stride), -(-width // stride)), (), (stride,))

    def position_encoding(self, x: int, name: str) -> int:
        """Append the sum with a learned tensor (1, C, P, P) for `x` of shape (C, P, P)."""
        shape = self.operations[x].shape
        encoding = self.emit("position_encoding", (), shape, (Parameter(f"{name}.weight", (1, *shape), "encoding"),))
        return self.emit("add", (x, encoding), shape)

    def token_positions(self, x: int, name: str) -> int:
        """Append the sum with a learned table (T, C) of positions for `x` of shape (T, C)."""
        shape = self.operations[x].shape
        table = Parameter(f"{name}.weight", shape, "encoding", "tokens")
        return self.emit("add", (x, self.emit("position_encoding", (), shape, (table,))), shape)

    def global_pool(self, x: int) -> int:
        """Append the mean over rows and columns, of shape (C,)."""
        return self.emit("global_pool", (x,), self.operations[x].shape[:1])

    def flatten(self, x: int) -> int:
        """Append the same result with a single axis."""
        return self.emit("flatten", (x,), (math.prod(self.operations[x].shape),))

    def finish(self, output: int | None) -> Program:
        """Return the program of the operations that the result at a position depends on.

        Raises:
            InvalidArchitecture: the output is absent.
        """
        if output is None:
            raise InvalidArchitecture
        needed = [False] * len(self.operations)
        needed[0] = needed[output] = True
        for position in range(output, -1, -1):
            if needed[position]:
                for source in self.operations[position].inputs:
                    needed[source] = True
        place: dict[int, int] = {}
        kept: list[Operation] = []
        for position, operation in enumerate(self.operations[: output + 1]):
            if needed[position]:
                place[position] = len(kept)
                kind, inputs, shape, parameters, settings = operation
                kept.append(Operation(kind, tuple([place[x] for x in inputs]), shape, parameters, settings))
        return Program(tuple(kept), self.image_size, self.num_classes)
