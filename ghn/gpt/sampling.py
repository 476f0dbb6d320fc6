"""Sampling of language models, and their splits.

As in `ghn.deepnets1m.sampling`, each (seed, split, index) has its own stream of samples, and the network hash decides
which split a network may belong to. Split `wide` is not sampled but made from `test` (`GptArchitecture.widened`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from ghn.gpt.architecture import ACTIVATIONS, POSITIONS, GptArchitecture, TransformerBlock
from ghn.networks.sample import Sample, hash_bucket_of, random_stream

HEADS = (1, 2, 4)
"""The numbers of heads that a block may have."""

MLP_RATIOS = (1, 2, 3, 4)
"""The hidden widths of MLPs, in multiples of the width."""

WIDTH = 32
"""The width C of samples; another one is chosen when they are trained or evaluated."""

LARGE_TEXTS = 1024, 50_257
"""Length and vocabulary of GPT-2's texts, for which the parameters are counted beside the small ones."""


@dataclass(frozen=True)
class GptSplitRules:
    """Rules of a split: the buckets of network hashes that belong to it, and the range of its numbers of blocks.

    The range includes both ends.
    """

    hash_buckets: tuple[int, ...]
    blocks: tuple[int, int] = (1, 6)


GPT_SPLIT_RULES = {
    "train": GptSplitRules(tuple(range(60))),
    "val": GptSplitRules((60,)),
    "test": GptSplitRules((61,)),
    "deep": GptSplitRules((62, 63), blocks=(8, 12)),
}
"""Rules of each sampled split: deep networks have more blocks than any that is trained on."""


def gpt_samples(seed: int, split: str, index: int) -> Iterator[Sample[GptArchitecture]]:
    """Yield the samples of the stream of an index, without end.

    Args:
        split: a key of `GPT_SPLIT_RULES`.
    """
    rules = GPT_SPLIT_RULES[split]
    rng = random_stream(f"gpt/{seed}/{split}/{index}")
    while True:
        architecture = _sample_once(rules, rng)
        summary = architecture.summary(32, 10)
        if hash_bucket_of(summary.network_hash) in rules.hash_buckets:
            yield Sample(architecture, summary, architecture.compile(*LARGE_TEXTS).num_parameters)


def _sample_once(rules: GptSplitRules, rng: random.Random) -> GptArchitecture:
    """Return an architecture of any network hash; the order of calls of `rng` is part of the splits' definition.

    Only `random()` is called, because Python promises the same sequence of that in all versions.
    """

    def below(count: int) -> int:
        return int(rng.random() * count)

    fewest, most = rules.blocks
    number = fewest + below(most - fewest + 1)
    return GptArchitecture(
        blocks=tuple(
            TransformerBlock(HEADS[below(len(HEADS))], MLP_RATIOS[below(len(MLP_RATIOS))]) for _ in range(number)
        ),
        C=WIDTH,
        positions=POSITIONS[below(len(POSITIONS))],
        activation=ACTIVATIONS[below(len(ACTIVATIONS))],
        tied=rng.random() < 0.5,
        parallel=rng.random() < 0.5,
    )
