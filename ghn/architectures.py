"""Architectures of DeepNets-1M: records that compile to programs.

Source: Knyazev, Drozdzal, Taylor, Romero-Soriano, "Parameter Prediction for Unseen Deep Architectures",
NeurIPS 2021; the cells follow DARTS (Liu, Simonyan, Yang, ICLR 2019). Field names are those of the published
data set.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ghn.program import Program

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ghn.graphs import Graph
    from ghn.outlines import Summary

OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_1x1",
    "conv_7x1_1x7",
    "conv_3x3",
    "conv_5x5",
    "conv_7x7",
    "msa",
    "cse",
)
"""The operations of a cell's edges, in the order of the published design space."""

INTEGERS = ("n_cells", "C", "C_mult", "ks", "stem_type", "fc_layers", "fc_dim")
SWITCHES = ("stem_pool", "preproc", "glob_avg")

Edge = tuple[str, int]
"""An operation and the state it reads: 0 and 1 are the outputs of the two previous cells, 2 the first own state."""


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
    def identity(self) -> str:
        """24 hexadecimal digits; equal for equal networks (see `ghn.identity`), on 32×32 images, 10 classes."""
        return self.summary(32, 10).identity

    def summary(self, image_size: int, num_classes: int) -> Summary:
        """Identity, parameters, FLOPs and size of the graph."""
        from ghn.outlines import summarise

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
        from ghn.interpreter import run_program

        *_, last = parameters.values()
        return run_program(self.program(images.shape[-1], len(last)), parameters, images, dropout)

    def module(self, image_size: int, num_classes: int) -> nn.Module:
        """An ordinary module with its own parameters in PyTorch's default initialisation."""
        from ghn.module import ProgramModule

        return ProgramModule(self.program(image_size, num_classes))


@dataclass(frozen=True)
class Genotype:
    """The two cells of an architecture: for each state two edges, and which states are concatenated."""

    normal: tuple[Edge, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Edge, ...]
    reduce_concat: tuple[int, ...]

    def __post_init__(self) -> None:
        for cell in ("normal", "reduce"):
            edges, concat = getattr(self, cell), getattr(self, f"{cell}_concat")
            if any(type(number) is not int for number in (*(source for _, source in edges), *concat)):
                raise ValueError(f"genotype.{cell} and genotype.{cell}_concat: states must be integers")
            if len(set(concat)) < len(concat):
                raise ValueError(f"genotype.{cell}_concat = {list(concat)}: names a state twice")
            if not edges or len(edges) % 2:
                raise ValueError(
                    f"genotype.{cell} has {len(edges)} edges: must be two for each state, at least one state"
                )
            for position, (operation, source) in enumerate(edges):
                if operation not in OPERATIONS:
                    raise ValueError(
                        f"genotype.{cell}: unknown operation {operation!r}; one of {', '.join(OPERATIONS)}"
                    )
                if not 0 <= source < 2 + position // 2:
                    raise ValueError(f"genotype.{cell}: edge {position} reads state {source}, which comes later")
            if not concat or not all(2 <= state < 2 + len(edges) // 2 for state in concat):
                raise ValueError(
                    f"genotype.{cell}_concat = {list(concat)}: must name own states, 2 to {1 + len(edges) // 2}"
                )

    @property
    def operations(self) -> frozenset[str]:
        """The operations that occur in either cell."""
        return frozenset(operation for operation, _ in self.normal + self.reduce)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Genotype:
        """The genotype of a record with the fields of the published data set.

        Raises:
            ValueError: a field is missing or impossible.
        """
        _require(record, [field.name for field in fields(cls)], "genotype")
        try:
            return cls(
                normal=tuple((operation, source) for operation, source in record["normal"]),
                normal_concat=tuple(record["normal_concat"]),
                reduce=tuple((operation, source) for operation, source in record["reduce"]),
                reduce_concat=tuple(record["reduce_concat"]),
            )
        except TypeError as error:
            raise ValueError("genotype: must hold pairs of an operation and a state, and lists of states") from error


@dataclass(frozen=True)
class Architecture(Network):
    """A network of stacked cells: a genotype and everything else needed to build it."""

    genotype: Genotype
    n_cells: int
    C: int = 32
    C_mult: int = 1
    ks: int = 3
    stem_type: int = 0
    stem_pool: bool = False
    norm: str | None = "bnorm"
    preproc: bool = True
    glob_avg: bool = True
    fc_layers: int = 1
    fc_dim: int = 256

    def __post_init__(self) -> None:
        for names, kind, words in ((INTEGERS, int, "an integer"), (SWITCHES, bool, "true or false")):
            for name in names:
                if type(getattr(self, name)) is not kind:
                    raise ValueError(f"{name} = {getattr(self, name)!r}: must be {words}")
        if self.n_cells < 1:
            raise ValueError(f"n_cells = {self.n_cells}: must be at least 1")
        if self.C < 2 or self.C % 2:
            raise ValueError(f"C = {self.C}: must be even and at least 2")
        if self.C_mult not in (1, 2):
            raise ValueError(f"C_mult = {self.C_mult}: must be 1 or 2")
        if self.ks not in (3, 5, 7):
            raise ValueError(f"ks = {self.ks}: must be 3, 5 or 7")
        if self.stem_type not in (0, 1):
            raise ValueError(f"stem_type = {self.stem_type}: must be 0 or 1")
        if self.norm not in ("bnorm", None):
            raise ValueError(f"norm = {self.norm!r}: must be 'bnorm' or null")
        if self.fc_layers not in (1, 2):
            raise ValueError(f"fc_layers = {self.fc_layers}: must be 1 or 2")
        if self.fc_dim < 1:
            raise ValueError(f"fc_dim = {self.fc_dim}: must be at least 1")
        if self.has_msa and self.C % 8:
            raise ValueError(f"C = {self.C}: must be divisible by the 8 heads of msa")
        if not self.preproc and (self.C_mult > 1 or self.n_states > 1):
            raise ValueError("preproc = false: only possible with one state a cell and C_mult = 1")

    @property
    def has_msa(self) -> bool:
        """Whether the network is a transformer: patches, a position encoding, one resolution throughout."""
        return "msa" in self.genotype.operations

    @property
    def n_states(self) -> int:
        """The number of concatenated states, the larger of the two cells'."""
        return max(len(self.genotype.normal_concat), len(self.genotype.reduce_concat))

    def compile(self, image_size: int, num_classes: int) -> Program:
        from ghn.cells import compile_architecture

        return compile_architecture(self, image_size, num_classes)

    def summary(self, image_size: int, num_classes: int) -> Summary:
        from ghn.cells import outline_architecture

        return outline_architecture(self, image_size, num_classes)

    def num_parameters(self, image_size: int, num_classes: int) -> int:
        from ghn.cells import count_parameters

        return count_parameters(self, image_size, num_classes)

    def with_width(self, C: int, fc_dim: int | None = None) -> Architecture:
        """The same architecture with another width (and hidden width of the head)."""
        return replace(self, C=C, fc_dim=self.fc_dim if fc_dim is None else fc_dim)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types (edges as lists, not tuples)."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Architecture:
        """The architecture of a record with the fields of the published data set; other keys are ignored.

        Raises:
            ValueError: a field is missing or impossible.
        """
        _require(record, ["genotype", "n_cells"], "architecture record")
        known = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        return cls(**{**known, "genotype": Genotype.from_dict(record["genotype"])})


def _require(record: dict[str, Any], keys: list[str], what: str) -> None:
    missing = [key for key in keys if key not in record]
    if missing:
        raise ValueError(f"{what} without {' and '.join(missing)}")


def network_from_dict(record: dict[str, Any]) -> Network:
    """The network of a record written by `to_dict`: an `Architecture`, or a predefined one by its name."""
    if "predefined" in record:
        from ghn.predefined import ResNet

        return ResNet.from_dict(record)
    return Architecture.from_dict(record)


@lru_cache(maxsize=256)
def _cached_program(network: Network, image_size: int, num_classes: int) -> Program:
    return network.compile(image_size, num_classes)
