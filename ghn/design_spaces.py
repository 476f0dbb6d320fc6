"""The design spaces that architectures are sampled from, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ghn.deepnets1m.architecture import Architecture
from ghn.deepnets1m.sampling import SPLIT_RULES, samples
from ghn.gpt.architecture import GptArchitecture
from ghn.gpt.sampling import GPT_SPLIT_RULES, LARGE_TEXTS, gpt_samples
from ghn.networks.network import ScalableNetwork
from ghn.networks.sample import Sample


@dataclass(frozen=True)
class DesignSpace:
    """A design space.

    Attributes:
        network: the class of its architectures.
        samples: yields the valid samples of the stream of a seed, a split and an index, without end.
        hash_buckets: of each sampled split, the buckets of network hashes that belong to it. Split `wide` is made from
            `test`.
        large: the size of large inputs and the number of their classes, for which parameters are counted too.
    """

    network: type[ScalableNetwork]
    samples: Callable[[int, str, int], Iterator[Sample[Any]]]
    hash_buckets: Mapping[str, tuple[int, ...]]
    large: tuple[int, int]

    def sample(self, seed: int, split: str, index: int, attempt: int = 0) -> ScalableNetwork:
        """Return the sample number `attempt` of the stream of an index, at width 32."""
        architecture: ScalableNetwork = next(islice(self.samples(seed, split, index), attempt, None)).architecture
        return architecture


DEEPNETS1M, GPT = "deepnets1m", "gpt"

DESIGN_SPACES = {
    DEEPNETS1M: DesignSpace(
        Architecture, samples, {name: rules.hash_buckets for name, rules in SPLIT_RULES.items()}, large=(224, 1000)
    ),
    GPT: DesignSpace(
        GptArchitecture,
        gpt_samples,
        {name: rules.hash_buckets for name, rules in GPT_SPLIT_RULES.items()},
        large=LARGE_TEXTS,
    ),
}
"""The design spaces by name."""


def space_of(network: ScalableNetwork) -> str:
    """Return the name of the design space that an architecture belongs to."""
    return next(name for name, space in DESIGN_SPACES.items() if isinstance(network, space.network))
