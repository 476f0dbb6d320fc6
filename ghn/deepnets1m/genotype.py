"""Genotypes of architectures: the edges of their two cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

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
"""Operations of a cell's edges, in the order of the published design space."""

LARGE_KERNELS = frozenset({"conv_5x5", "conv_7x7"})
"""Full convolutions with large kernels, of which a cell may have at most one."""

Edge = tuple[str, int]
"""An operation and the state that it reads: 0 and 1 are the outputs of the two previous cells, 2 is the first state of
the cell itself."""


@dataclass(frozen=True)
class Genotype:
    """The two cells of an architecture: two edges for each state, and the states that are concatenated."""

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
    def from_dict(cls, record: Mapping[str, Any]) -> Genotype:
        """Return the genotype of a record with the fields of the published data set.

        Raises:
            ValueError: a field is missing or impossible.
        """
        require_fields(record, [field.name for field in fields(cls)], "genotype")
        try:
            return cls(
                normal=tuple((operation, source) for operation, source in record["normal"]),
                normal_concat=tuple(record["normal_concat"]),
                reduce=tuple((operation, source) for operation, source in record["reduce"]),
                reduce_concat=tuple(record["reduce_concat"]),
            )
        except TypeError as error:
            raise ValueError("genotype: must hold pairs of an operation and a state, and lists of states") from error


def require_fields(record: Mapping[str, Any], keys: Iterable[str], what: str) -> None:
    """Raise ValueError if a record lacks one of the keys; the message names `what` the record is, and the keys."""
    missing = [key for key in keys if key not in record]
    if missing:
        raise ValueError(f"{what} without {' and '.join(missing)}")
