from __future__ import annotations

import pytest

from ghn.deepnets1m.architecture import Architecture
from ghn.deepnets1m.genotype import Genotype
from ghn.deepnets1m.predefined import PREDEFINED
from ghn.deepnets1m.traits import TRAITS, traits_of


def traits(*operations: str, **fields: object) -> set[str]:
    edges = tuple((operation, source) for source, operation in enumerate(operations))
    architecture = Architecture(Genotype(edges, (2,), edges, (2,)), **{"n_cells": 2, **fields})
    return {name for name, has_it in traits_of(architecture.graph(16, 10)).items() if has_it}


@pytest.mark.parametrize(
    ("operations", "fields", "expected"),
    [
        (("conv_3x3", "skip_connect"), {}, set()),
        (("conv_3x3", "skip_connect"), {"norm": None}, {"norm_free"}),
        (("conv_3x3", "skip_connect"), {"glob_avg": False}, {"no_global_pool"}),
        (("conv_1x1", "max_pool_3x3"), {"stem_type": 1}, {"no_convolution"}),
        (("conv_7x1_1x7", "max_pool_3x3"), {}, set()),
        (("sep_conv_5x5", "cse"), {}, {"squeeze_excitation"}),
        (("msa", "skip_connect"), {}, {"attention", "no_convolution"}),
        (("sep_conv_3x3", "sep_conv_3x3"), {"n_cells": 20}, {"deep"}),
    ],
)
def test_traits_are_those_of_what_is_computed(operations: tuple[str, ...], fields: dict, expected: set[str]) -> None:
    assert traits(*operations, **fields) == expected


def test_an_operation_that_nothing_reads_counts_for_nothing() -> None:
    edges = (("conv_3x3", 0), ("conv_3x3", 1), ("max_pool_3x3", 0), ("conv_1x1", 1))
    genotype = Genotype(edges, (3,), edges, (3,))
    assert traits_of(Architecture(genotype, n_cells=2).graph(16, 10))["no_convolution"]


def test_predefined_networks_have_the_traits_that_they_are_known_for() -> None:
    found = {name: traits_of(network.graph(16, 10)) for name, network in PREDEFINED.items()}
    assert not any(found["resnet50"].values())
    assert found["vit"]["attention"] and found["vit"]["norm_free"] and found["vit"]["no_convolution"]
    assert set(found["darts"]) == set(TRAITS)
