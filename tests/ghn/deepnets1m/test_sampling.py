from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, islice

import pytest
from examples import one_operation
from hypothesis import given
from hypothesis import strategies as st

from ghn import Architecture, Genotype
from ghn.deepnets1m.genotype import OPERATIONS
from ghn.deepnets1m.sampling import SPLIT_RULES, has_valid_operations, sample_architecture, samples
from ghn.networks.sample import HASH_BUCKETS, hash_bucket_of
from ghn.networks.summary import summarise

PINNED = {
    (0, "train", 0): "bc461ad3950bedfd176877ad",
    (0, "train", 999_999): "ac2740c5af11535f552120e6",
    (1, "train", 0): "aec212c246b3aa256015173a",
    (0, "val", 0): "9680e07b608470f42d687a67",
    (0, "test", 0): "1eea787c2826fd14a48f5000",
    (0, "test", 499): "80c7a57cc2505b505a0d41ed",
    (0, "deep", 0): "32ac13bdf264dde425ed2a14",
    (0, "dense", 0): "f21ff4be900d6f56ee5a044b",
    (0, "bn_free", 0): "1d5d293f104e5a7e78bdd93c",
}
"""A change here makes every stored data set another one: say so in the commit."""

LARGE = ("conv_5x5", "conv_7x7")
STREAMS = {"seed": st.integers(0, 2**40), "index": st.integers(0, 10**6)}


@pytest.mark.parametrize(("key", "network_hash"), PINNED.items(), ids=str)
def test_the_stream_of_architectures_is_pinned(key: tuple[int, str, int], network_hash: str) -> None:
    assert sample_architecture(*key).network_hash == network_hash


def test_another_process_samples_the_same_in_any_order() -> None:
    code = (
        "import json, sys; from ghn.deepnets1m.sampling import sample_architecture\n"
        "print(json.dumps([sample_architecture(*key).network_hash for key in json.loads(sys.argv[1])]))"
    )
    keys = list(PINNED)[::-1]
    printed = subprocess.run(
        [sys.executable, "-c", code, json.dumps(keys)],
        env={**os.environ, "PYTHONHASHSEED": "4321"},
        capture_output=True,
        check=True,
    ).stdout
    assert json.loads(printed) == [PINNED[key] for key in keys]


@given(st.permutations(range(8)))
def test_a_sample_does_not_depend_on_what_was_sampled_before(order: list[int]) -> None:
    sampled = {index: sample_architecture(5, "train", index) for index in order}
    assert all(sample_architecture(5, "train", index) == sampled[index] for index in range(8))
    assert len({architecture.network_hash for architecture in sampled.values()}) == 8


def test_each_bucket_of_network_hashes_belongs_to_one_split() -> None:
    buckets = {split: set(rules.hash_buckets) for split, rules in SPLIT_RULES.items()}
    assert set().union(*buckets.values()) <= set(range(HASH_BUCKETS))
    for one, other in combinations(buckets, 2):
        assert not buckets[one] & buckets[other]


def test_a_stream_goes_on_with_other_architectures() -> None:
    stream = [sample.architecture for sample in islice(samples(0, "val", 0), 3)]
    assert stream == [sample_architecture(0, "val", 0, attempt) for attempt in range(3)]
    assert len({architecture.network_hash for architecture in stream}) == 3


@given(split=st.sampled_from(sorted(SPLIT_RULES)), **STREAMS)
def test_a_sample_has_the_summary_of_its_programs(split: str, seed: int, index: int) -> None:
    architecture, summary, parameters_large = next(samples(seed, split, index))
    assert summary == summarise(architecture.compile(32, 10))
    assert parameters_large == architecture.compile(224, 1000).num_parameters


@pytest.mark.parametrize(
    ("split", "cells", "states", "threshold", "most"),
    [
        ("train", (4, 18), (1, 4), 10, 10_000_000),
        ("val", (4, 18), (1, 4), 10, 10_000_000),
        ("test", (4, 18), (1, 4), 10, 10_000_000),
        ("deep", (10, 36), (1, 4), 18, 100_000_000),
        ("dense", (4, 18), (2, 10), 10, 100_000_000),
        ("bn_free", (4, 18), (1, 4), 10, 10_000_000),
    ],
)
@given(**STREAMS)
def test_architectures_obey_their_split(
    split: str, cells: tuple, states: tuple, threshold: int, most: int, seed: int, index: int
) -> None:
    architecture = sample_architecture(seed, split, index)
    genotype, n_cells = architecture.genotype, architecture.n_cells
    count = len(genotype.normal) // 2
    is_deep = n_cells > threshold
    assert cells[0] <= n_cells <= cells[1]
    assert states[0] <= count <= ((6 if split == "dense" else 2) if is_deep else states[1])
    assert len(genotype.reduce) == len(genotype.normal) and genotype.normal_concat == genotype.reduce_concat
    assert genotype.normal_concat[-1] == count + 1
    for edges in (genotype.normal, genotype.reduce):
        sources = [source for _, source in edges]
        assert all(one != other for one, other in zip(sources[::2], sources[1::2], strict=True))
        assert count > 1 or "none" not in dict(edges)
    if split == "bn_free":
        assert architecture.norm is None
    elif architecture.norm is None:
        assert n_cells <= (11 if split == "deep" else 5) and count <= (6 if split == "dense" else 2)
    assert architecture.glob_avg or not (architecture.has_msa or is_deep)
    assert architecture.preproc or (architecture.has_msa and count == 1 and architecture.C_mult == 1)
    assert not architecture.stem_pool or architecture.stem_type == 0
    assert architecture.C == 32 and architecture.fc_dim == 256
    assert has_valid_operations(architecture)
    bucket = hash_bucket_of(architecture.network_hash)
    assert [name for name, rules in SPLIT_RULES.items() if bucket in rules.hash_buckets] == [split]
    assert max(architecture.num_parameters(32, 10), architecture.num_parameters(224, 1000)) <= most


def test_everything_that_the_design_space_has_is_sampled() -> None:
    sampled = [sample_architecture(0, "train", index) for index in range(300)]
    assert set().union(*(architecture.genotype.operations for architecture in sampled)) == set(OPERATIONS)
    everything = {
        "n_cells": set(range(4, 19)),
        "C_mult": {1, 2},
        "ks": {3, 5, 7},
        "stem_type": {0, 1},
        "stem_pool": {False, True},
        "norm": {None, "bnorm"},
        "preproc": {False, True},
        "glob_avg": {False, True},
        "fc_layers": {1, 2},
    }
    for field, values in everything.items():
        assert {getattr(architecture, field) for architecture in sampled} == values, field
    assert {len(a.genotype.normal) // 2 for a in sampled} == {1, 2, 3, 4}
    simple = [{operation for operation, _ in a.genotype.reduce} <= set(OPERATIONS[:4]) for a in sampled]
    assert 0.4 < sum(simple) / len(simple) < 0.65  # one half, and a few by chance
    dropped = [len(a.genotype.normal_concat) < len(a.genotype.normal) // 2 for a in sampled]
    assert 0.1 < sum(dropped) / len(dropped) < 0.5


def with_cells(normal: list[str], reduce: list[str]) -> Architecture:
    """Return an architecture whose cells have these operations, in pairs."""
    cells = [tuple((name, position % 2) for position, name in enumerate(names)) for names in (normal, reduce)]
    concat = tuple(range(2, 2 + len(normal) // 2))
    return Architecture(Genotype(cells[0], concat, cells[1], concat), n_cells=4)


@pytest.mark.parametrize(
    ("normal", "reduce", "valid"),
    [
        (["conv_3x3", "none"], ["max_pool_3x3", "none"], True),
        (["sep_conv_3x3", "cse"], ["max_pool_3x3", "none"], True),
        (["cse", "none"], ["dil_conv_5x5", "none"], True),
        (["msa", "none"], ["msa", "none"], True),
        (["cse", "conv_1x1"], ["cse", "none"], True),
        (["conv_5x5", "none"], ["conv_7x7", "none"], True),
        (["sep_conv_5x5", "conv_5x5"], ["none", "none"], True),
        (["cse", "max_pool_3x3"], ["skip_connect", "none"], False),
        (["cse", "msa"], ["msa", "none"], False),
        (["cse", "cse"], ["conv_1x1", "none"], False),
        (["conv_1x1", "none"], ["cse", "cse"], False),
        (["conv_5x5", "conv_7x7"], ["none", "none"], False),
        (["none", "none"], ["conv_5x5", "conv_5x5"], False),
        (["max_pool_3x3", "avg_pool_3x3"], ["skip_connect", "none"], False),
    ],
)
def test_combinations_of_operations_are_rejected_as_published(
    normal: list[str], reduce: list[str], valid: bool
) -> None:
    assert has_valid_operations(with_cells(normal, reduce)) == valid


@pytest.mark.parametrize(("size", "factor"), [(28, 4), (32, 4), (64, 4), (224, 2)])
def test_wide_is_test_at_four_times_the_width_and_twice_for_large_images(size: int, factor: int) -> None:
    architecture = sample_architecture(0, "test", 0)
    assert architecture.widened(size) == replace(architecture, C=32 * factor)


WIDTHS = (32, 48, 64, 80, 96, 112, 128)
HEADS = (64, 128, 192, 256, 320, 384, 448, 512)


def all_widths(architecture: Architecture, parameters: int) -> dict[int, set[int]]:
    """Return for each width that may be sampled the widths of the head that may be sampled with it."""
    result: dict[int, set[int]] = {}
    uniforms = [position / 56 for position in range(56)]
    for first in uniforms:
        for second in uniforms:
            sampled = architecture.with_sampled_widths(parameters, WIDTHS, HEADS, (first, second))
            assert sampled == replace(architecture, C=sampled.C, fc_dim=sampled.fc_dim)
            result.setdefault(sampled.C, set()).add(sampled.fc_dim)
    return result


def test_a_short_list_of_widths_does_not_lift_the_limit_of_the_head() -> None:
    architecture = one_operation("conv_3x3")
    assert architecture.with_sampled_widths(100_000, [32], HEADS, (0, 0.99)).fc_dim == HEADS[-1]
    assert architecture.with_sampled_widths(900_000, [32], HEADS, (0, 0.99)).fc_dim == HEADS[3]


@pytest.mark.parametrize(
    ("fields", "parameters", "choices"),
    [
        ({}, 100_000, 7),
        ({"n_cells": 8}, 200_000, 7),
        ({}, 200_001, 3),
        ({"n_cells": 9}, 100_000, 3),
        ({}, 400_001, 2),
        ({"n_cells": 11}, 100_000, 2),
        ({}, 800_001, 1),
        ({"n_cells": 13}, 100_000, 1),
        ({"glob_avg": False}, 100_000, 1),
    ],
)
def test_large_networks_are_trained_narrow(fields: dict, parameters: int, choices: int) -> None:
    sampled = all_widths(one_operation("conv_3x3", **fields), parameters)
    assert set(sampled) == set(WIDTHS[:choices])
    for width, heads in sampled.items():
        assert heads == set(HEADS if choices == 7 and width <= 64 else HEADS[:4])


@pytest.mark.parametrize("operation", LARGE)
def test_networks_with_large_kernels_are_trained_narrow(operation: str) -> None:
    assert set(all_widths(one_operation(operation), 100_000)) == {32}
