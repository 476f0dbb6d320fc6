"""The part that builders share which add up architectures block by block.

Architectures are made of some hundred different *blocks*: a sep_conv_3x3 with 32 channels on 16×16 pixels is the same
in all of them. Each block is compiled once, by the code that compiles whole programs, and what a builder needs of it is
kept. A builder adds up the blocks of a network, many times faster than its program is compiled.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from ghn.networks.program import Builder

NO_NODE = -1
"""Stands for the node of a result that comes from no node."""

Block = TypeVar("Block")

Part = tuple[Block | str, tuple[int, ...], tuple[int, ...]]
"""A part of a network: a block, or the kind of an operation without parameters; the positions of its inputs; the shape
of its result."""


class BlockBuilder(Builder, Generic[Block]):
    """A builder that collects blocks, sums and concatenations."""

    def __init__(self, image_size: int) -> None:
        self._image_size = image_size
        self._parts: list[Part[Block]] = [("image", (), (3, image_size, image_size))]

    @abstractmethod
    def compiled(
        self, emit: Callable[..., int], shape: tuple[int, ...], *settings: Hashable
    ) -> tuple[Block, tuple[int, ...]]:
        """Return what is kept of the block that `emit` emits for an input of a shape, and the shape of its result."""

    def shape(self, x: int) -> tuple[int, ...]:
        """Return the shape of the result at a position."""
        return self._parts[x][2]

    def block(self, emit: Callable[..., int], x: int, name: str, *settings: Any) -> int:
        """Add a block; return its position."""
        block, shape = self.compiled(emit, self._parts[x][2], *settings)
        self._parts.append((block, (x,), shape))
        return len(self._parts) - 1

    def emit(self, kind: str, inputs: tuple[int, ...], shape: tuple[int, ...]) -> int:
        """Add an operation without parameters and settings; return its position."""
        self._parts.append((kind, inputs, shape))
        return len(self._parts) - 1

    def needed(self, output: int) -> list[int]:
        """Return the positions of the parts that `output` depends on, in order; the image is always the first."""
        needed = {0, output}
        for position in range(output, 0, -1):
            if position in needed:
                needed.update(self._parts[position][1])
        return sorted(needed)
