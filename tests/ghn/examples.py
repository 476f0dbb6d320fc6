"""Architectures, graphs and hypernetworks for tests: narrow, so that a forward pass takes milliseconds."""

from __future__ import annotations

from functools import lru_cache

import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor

from ghn import GHN, Architecture, Genotype, GHNConfig
from ghn.deepnets1m.genotype import OPERATIONS
from ghn.deepnets1m.sampling import SPLIT_RULES, sample_architecture
from ghn.networks.graph import Graph, Node
from ghn.networks.program import InvalidArchitecture, Program

CLASSES = 3
CONFIG = GHNConfig(num_classes=CLASSES, image_size=16, hidden=8, kernel=3)


def one_operation(operation: str, **fields) -> Architecture:
    """Return an architecture of three cells, the second a reduction, that apply `operation` to the previous cell."""
    cell = ((operation, 1), ("none", 0))
    genotype = Genotype(normal=cell, normal_concat=(2,), reduce=cell, reduce_concat=(2,))
    return Architecture(genotype, **{"n_cells": 3, "C": 8, "fc_dim": 16, **fields})


@lru_cache(maxsize=512)
def sample(split: str, index: int, seed: int = 0) -> Architecture:
    return sample_architecture(seed, split, index).with_width(8, fc_dim=16)


@st.composite
def composed(draw) -> Architecture:
    """Return any valid combination of cells, stem, norm and head, even one that no split samples."""
    states = draw(st.integers(1, 3))

    def cell() -> tuple[tuple[str, int], ...]:
        sources = [draw(st.integers(0, 1 + position // 2)) for position in range(2 * states)]
        return tuple((draw(st.sampled_from(OPERATIONS)), source) for source in sources)

    concat = tuple(sorted(draw(st.sets(st.integers(2, 1 + states), min_size=1))))
    C_mult = draw(st.sampled_from((1, 2)))
    architecture = Architecture(
        Genotype(cell(), concat, cell(), concat),
        n_cells=draw(st.integers(1, 5)),
        C=8,
        C_mult=C_mult,
        ks=draw(st.sampled_from((3, 5, 7))),
        stem_type=draw(st.sampled_from((0, 1))),
        stem_pool=draw(st.booleans()),
        norm=draw(st.sampled_from(("bnorm", None))),
        preproc=len(concat) > 1 or C_mult > 1 or draw(st.booleans()),
        glob_avg=draw(st.booleans()),
        fc_layers=draw(st.sampled_from((1, 2))),
        fc_dim=16,
    )
    try:
        architecture.compile(32, 10)
    except InvalidArchitecture:
        reject()
    return architecture


def sampled() -> st.SearchStrategy[Architecture]:
    """Return a strategy of architectures that a split samples."""
    return st.builds(sample, st.sampled_from(sorted(SPLIT_RULES)), st.integers(0, 9999), st.integers(0, 9999))


def architectures() -> st.SearchStrategy[Architecture]:
    return composed() | sampled()


@st.composite
def graphs(draw, most: int = 10) -> Graph:
    """Return any directed acyclic graph; the out channels of a node are its position plus one."""
    count = draw(st.integers(1, most))
    pairs = [(u, v) for v in range(count) for u in range(v)]
    edges = draw(st.sets(st.sampled_from(pairs))) if pairs else set()
    return Graph(tuple(Node("conv", (v + 1, 1, 1, 1)) for v in range(count)), tuple(sorted(edges)))


def images(size: int, count: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(size))


def random_parameters(program: Program, device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {p.name: torch.randn(p.shape, device=device, dtype=dtype) for p in program.parameters()}


def tiny_ghn(variant: str = "ghn2", dtype: torch.dtype = torch.float32) -> GHN:
    torch.manual_seed(1)
    return GHN(GHNConfig(**{**CONFIG.to_dict(), "variant": variant})).to(dtype)
