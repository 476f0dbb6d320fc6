"""Architectures of DeepNets-1M: records that compile to programs.

Sources: Knyazev, Drozdzal, Taylor, Romero-Soriano, "Parameter Prediction for Unseen Deep Architectures", NeurIPS 2021;
the cells follow DARTS (Liu, Simonyan, Yang, ICLR 2019). Field names are those of the published data set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ghn.deepnets1m.block_summary import SummaryBuilder
from ghn.deepnets1m.block_table import TableBuilder
from ghn.deepnets1m.blocks import edge, factorised_reduction, head, patches, relu_conv_norm, stem_0, stem_1, subsample
from ghn.deepnets1m.genotype import LARGE_KERNELS, Genotype, require_fields
from ghn.networks.network import ScalableNetwork
from ghn.networks.node_table import NodeTable
from ghn.networks.program import LARGE_IMAGE, Builder, Program, ProgramBuilder
from ghn.networks.summary import Summary

INTEGER_FIELDS = ("n_cells", "C", "C_mult", "ks", "stem_type", "fc_layers", "fc_dim")
BOOLEAN_FIELDS = ("stem_pool", "preproc", "glob_avg")


@dataclass(frozen=True)
class Architecture(ScalableNetwork):
    """A network of stacked cells: a genotype and everything else needed to build it.

    Attributes:
        genotype: the edges of the normal and of the reduction cell.
        n_cells: number of cells; those after one and two thirds of them are reduction cells.
        C: channels of the first cells' states.
        C_mult: factor of the channels at each reduction cell.
        ks: side of the stem's first kernel, in pixels.
        stem_type: 0 for a stem of one convolution, 1 for the three convolutions of DARTS's ImageNet stem.
        stem_pool: whether a max-pool ends stem 0.
        norm: `bnorm` for batch norms, None for none.
        preproc: whether convolutions prepare the two inputs of each cell.
        glob_avg: whether the head averages over all pixels; otherwise it reads every pixel.
        fc_layers: linear layers of the head.
        fc_dim: features between two linear layers of the head.
    """

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
        for names, kind, words in ((INTEGER_FIELDS, int, "an integer"), (BOOLEAN_FIELDS, bool, "true or false")):
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
        """Whether the network is a transformer: with patches, a position encoding and a single resolution."""
        return "msa" in self.genotype.operations

    @property
    def n_states(self) -> int:
        """The number of concatenated states of the cell that has more of them."""
        return max(len(self.genotype.normal_concat), len(self.genotype.reduce_concat))

    def compile(self, image_size: int, num_classes: int) -> Program:
        """Return the program of the architecture for square images and a number of classes.

        Args:
            image_size: side of the images, in pixels.

        Raises:
            InvalidArchitecture: nothing reaches the output.
            ValueError: the image is too small or the number of classes is not positive.
        """
        build = ProgramBuilder(image_size, num_classes)
        return build.finish(assemble(build, self, image_size, num_classes))

    def summary(self, image_size: int, num_classes: int) -> Summary:
        """Return the same as `summarise(self.compile(image_size, num_classes))`, faster: added up from its blocks.

        Raises:
            InvalidArchitecture, ValueError: see `compile`.
        """
        build = SummaryBuilder(image_size)
        return build.finish(assemble(build, self, image_size, num_classes))

    def node_table(self, image_size: int, num_classes: int) -> NodeTable:
        """Return the same as `table_of(self.graph(image_size, num_classes))`, faster: put together from its blocks.

        Raises:
            InvalidArchitecture, ValueError: see `compile`.
        """
        build = TableBuilder(image_size)
        return build.finish(assemble(build, self, image_size, num_classes))

    def num_parameters(self, image_size: int, num_classes: int) -> int:
        """Return the number of elements of all parameters that reach the output, added up from blocks.

        Raises:
            InvalidArchitecture, ValueError: see `compile`.
        """
        build = SummaryBuilder(image_size)
        return build.num_parameters(assemble(build, self, image_size, num_classes))

    def with_width(self, C: int, fc_dim: int | None = None) -> Architecture:
        """Return the same architecture with another width, and with another hidden width of the head if it is given."""
        return replace(self, C=C, fc_dim=self.fc_dim if fc_dim is None else fc_dim)

    @staticmethod
    def wide_factor(image_size: int) -> int:
        """Return how many times as wide the architectures of split `wide` are: 4, for large images 2."""
        return 2 if image_size >= LARGE_IMAGE else 4

    def with_sampled_widths(
        self, num_parameters: int, widths: Sequence[int], head_widths: Sequence[int], uniforms: Sequence[float]
    ) -> Architecture:
        """Return the architecture with sampled widths; large networks stay narrow.

        Args:
            num_parameters: elements of all parameters at width 32, for 32×32 images and 10 classes.
            widths: values that C may have, smallest first.
            head_widths: values that fc_dim may have, smallest first.
            uniforms: two numbers in [0, 1), which choose C and fc_dim.
        """
        n_cells, used = self.n_cells, self.genotype.operations
        smallest = None  # how many of the widths may be sampled, smallest first; None: all
        if num_parameters > 800_000 or not self.glob_avg or used & LARGE_KERNELS or n_cells > 12:
            smallest = 1
        elif num_parameters > 400_000 or n_cells > 10:
            smallest = 2
        elif num_parameters > 200_000 or n_cells > 8:
            smallest = 3
        allowed = widths[:smallest]
        C = allowed[int(uniforms[0] * len(allowed))]
        heads = head_widths if smallest is None and C <= 64 else head_widths[:4]
        return replace(self, C=C, fc_dim=heads[int(uniforms[1] * len(heads))])

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the architecture in plain JSON types: edges are lists, not tuples."""
        record: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Architecture:
        """Return the architecture of a record with the fields of the published data set; other keys are ignored.

        Raises:
            ValueError: a field is missing or impossible.
        """
        require_fields(record, ["genotype", "n_cells"], "architecture record")
        known = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        return cls(**{**known, "genotype": Genotype.from_dict(record["genotype"])})


def assemble(build: Builder, architecture: Architecture, image_size: int, num_classes: int) -> int | None:
    """Emit an architecture to a builder, block by block; return the position of the logits, None if absent.

    The builder is a `ProgramBuilder`, which keeps every operation, or a `BlockBuilder`, which keeps of every block what
    it adds up.

    Raises:
        ValueError: the image is too small or the number of classes is not positive.
    """
    if image_size < 8:
        raise ValueError(f"image_size = {image_size}: must be at least 8 pixels")
    if num_classes < 1:
        raise ValueError(f"num_classes = {num_classes}: must be at least 1")
    x = _cells(build, architecture, *_stem(build, architecture, image_size >= LARGE_IMAGE))
    if x is None:
        return None
    hidden = architecture.fc_dim if architecture.fc_layers == 2 else None
    return build.block(head, x, "classifier", architecture.glob_avg, hidden, num_classes)


def _stem(build: Builder, architecture: Architecture, large: bool) -> tuple[int, int]:
    """Emit the stem; return the positions of the two results that the first cell reads."""
    C, ks, norm = architecture.C, architecture.ks, architecture.norm is not None
    if architecture.has_msa:
        x = build.block(patches, build.image, "", C, large)
        return x, x
    if architecture.stem_type == 0:
        channels = 3 * C if architecture.preproc and not large else C
        x = build.block(stem_0, build.image, "stem", channels, ks, 4 if large else 1, architecture.stem_pool, norm)
        return x, x
    first = build.block(stem_1, build.image, "stem0", C, ks, 2 if large else 1, norm)
    return first, build.block(relu_conv_norm, first, "stem1", C, 3, 2, norm)


def _cells(build: Builder, architecture: Architecture, older: int | None, newer: int | None) -> int | None:
    """Emit all cells; return the position of the last one's result.

    `older` and `newer` are the positions of the results that the first cell reads.
    """
    genotype, norm, width = architecture.genotype, architecture.norm is not None, architecture.C
    keeps_resolution = architecture.has_msa
    reductions = {n for n in (architecture.n_cells // 3, 2 * architecture.n_cells // 3) if n > 0}
    # Stem 1 halves the resolution between its two results: cell 0 reads them like a cell after a reduction.
    shrink = architecture.stem_type == 1 and not keeps_resolution
    for index in range(architecture.n_cells):
        edges, concat, stride = genotype.normal, genotype.normal_concat, 1
        if index in reductions:
            edges, concat, stride = genotype.reduce, genotype.reduce_concat, 1 if keeps_resolution else 2
            width *= architecture.C_mult
        name = f"cells.{index}"
        if architecture.preproc:
            states = [
                _preprocess(build, older, f"{name}.preprocess0", width, shrink, norm),
                _preprocess(build, newer, f"{name}.preprocess1", width, False, norm),
            ]
        else:
            states = [build.block(subsample, older, name) if shrink and older is not None else older, newer]
        for place in range(0, len(edges), 2):
            ends = [
                _edge(build, states[source], f"{name}._ops.{k}", operation, width, stride if source < 2 else 1, norm)
                for k, (operation, source) in enumerate(edges[place : place + 2], start=place)
            ]
            states.append(build.add(ends))
        older, newer = newer, build.concat([states[state] for state in concat])
        shrink = stride == 2
    return newer


def _preprocess(build: Builder, x: int | None, name: str, width: int, shrink: bool, norm: bool) -> int | None:
    """Emit the preprocessing of a cell's input, which halves the resolution if `shrink`; return its position."""
    if x is None:
        return None
    if shrink:
        return build.block(factorised_reduction, x, name, width, norm)
    return build.block(relu_conv_norm, x, f"{name}.op", width, 1, 1, norm)


def _edge(build: Builder, x: int | None, name: str, operation: str, width: int, stride: int, norm: bool) -> int | None:
    """Emit an edge of a cell; return the position of its result, which is `x` for an identity and None for `none`."""
    if x is None or operation == "none":
        return None
    if operation == "skip_connect" and stride == 1:
        return x
    return build.block(edge, x, name, operation, width, stride, norm)
