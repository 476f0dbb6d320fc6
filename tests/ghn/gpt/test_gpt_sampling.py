from __future__ import annotations

from itertools import combinations, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghn.design_spaces import DESIGN_SPACES, GPT, space_of
from ghn.gpt.sampling import GPT_SPLIT_RULES, gpt_samples
from ghn.networks.sample import HASH_BUCKETS, hash_bucket_of
from ghn.networks.summary import summarise


@settings(max_examples=20)
@given(st.integers(0, 2**40), st.sampled_from(list(GPT_SPLIT_RULES)), st.integers(0, 10**6))
def test_a_sample_is_a_function_of_seed_split_and_index(seed: int, split: str, index: int) -> None:
    first, second = islice(gpt_samples(seed, split, index), 2)
    assert next(gpt_samples(seed, split, index)) == first
    assert DESIGN_SPACES[GPT].sample(seed, split, index, 1) == second.architecture
    assert first.summary == summarise(first.architecture.compile(32, 10))
    assert first.parameters_large == first.architecture.compile(1024, 50_257).num_parameters
    assert space_of(first.architecture) == GPT


@pytest.mark.parametrize("split", GPT_SPLIT_RULES)
def test_samples_obey_the_rules_of_their_split(split: str) -> None:
    rules = GPT_SPLIT_RULES[split]
    networks = [next(gpt_samples(0, split, index)).architecture for index in range(60)]
    fewest, most = rules.blocks
    numbers = {len(network.blocks) for network in networks}
    assert numbers == set(range(fewest, most + 1))
    assert {hash_bucket_of(network.network_hash) for network in networks} <= set(rules.hash_buckets)
    assert {network.C for network in networks} == {32}


def test_splits_share_no_network_and_deep_ones_are_deeper_than_all_that_are_trained_on() -> None:
    for one, other in combinations(GPT_SPLIT_RULES.values(), 2):
        assert not set(one.hash_buckets) & set(other.hash_buckets)
    assert set().union(*(rules.hash_buckets for rules in GPT_SPLIT_RULES.values())) == set(range(HASH_BUCKETS))
    assert GPT_SPLIT_RULES["deep"].blocks[0] > GPT_SPLIT_RULES["train"].blocks[1]


def test_widths_are_chosen_by_the_first_number_alone() -> None:
    network = next(gpt_samples(0, "train", 0)).architecture
    widths = [network.with_sampled_widths(0, [16, 24, 64], [64], (at, 0.5)).C for at in (0.0, 0.34, 0.99)]
    assert widths == [16, 24, 64]
    assert network.widened(64).C == 4 * network.C
