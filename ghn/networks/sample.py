"""Samples of a design space, and the buckets of network hashes that keep its splits apart."""

from __future__ import annotations

import hashlib
import random
from typing import Generic, NamedTuple, TypeVar

from ghn.networks.network import ScalableNetwork
from ghn.networks.summary import Summary

HASH_BUCKETS = 64
"""Number of buckets that network hashes fall into, equally often; each bucket belongs to one split."""

SampledNetwork = TypeVar("SampledNetwork", bound=ScalableNetwork)


class Sample(NamedTuple, Generic[SampledNetwork]):
    """A valid network at width 32, with the results of checking it."""

    architecture: SampledNetwork
    summary: Summary
    """Summary for 32×32 images and 10 classes, or for texts of 32 tokens out of 10."""
    parameters_large: int
    """Elements of all parameters for 224×224 images and 1000 classes, or for the texts of GPT-2."""


def random_stream(key: str) -> random.Random:
    """Return random numbers that are a function of a key alone."""
    return random.Random(int.from_bytes(hashlib.blake2b(key.encode()).digest()[:16], "big"))


def hash_bucket_of(network_hash: str) -> int:
    """Return which of the `HASH_BUCKETS` buckets a network hash falls into."""
    return int(network_hash[:8], 16) % HASH_BUCKETS
