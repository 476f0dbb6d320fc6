"""Network hashes, which are equal for equal networks, however these were described.

A network is read as a polynomial, which is evaluated at a pseudo-random point. An operation whose inputs have the
values x_1, …, x_k has the value

    A · (x_1 + c_1) ⋯ (x_k + c_k) + B   modulo the prime 2¹²⁷ - 1,

where A and B are digests of what the operation does, and c_i is a digest of the input's place. All places of a sum
have the same digest. So have those of a concatenation, because channels in another order only mean weights in another
order after them, which graphs do not show. Two different polynomials of degree d have the same value at a random point
with a probability of at most d / 2¹²⁷ (Schwartz, Journal of the ACM 1980).

A hash of each operation and its inputs would identify networks as well. But here a chain of operations is a single
affine map, so that the map of a block is computed once, not again in each network that contains the block.

Neither hash distinguishes two results that are computed in the same way with different parameters. Networks that
differ only in which of the two they read have the same hash, and only one of them is sampled.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from ghn.networks.operations import Operation

MODULUS = 2**127 - 1

Factor = tuple[int, int, int]
"""The numbers a, b and i of an affine map a·v_i + b of an earlier value."""


class Polynomial(NamedTuple):
    """The value of operations as a function of v_0, the value of the first one.

    Each of `joins` is a product of factors and gives the next value v_1, v_2, …; `last` gives the result.
    A chain of operations with one input each has no joins, only `last`.
    """

    joins: tuple[tuple[Factor, ...], ...]
    last: Factor

    def __call__(self, first: int) -> int:
        if not self.joins:
            a, b, _ = self.last
            return (a * first + b) % MODULUS
        values = [first]
        for factors in self.joins:
            values.append(math.prod([a * values[i] + b for a, b, i in factors]) % MODULUS)
        a, b, i = self.last
        return (a * values[i] + b) % MODULUS


def polynomial(operations: Sequence[Operation]) -> Polynomial:
    """Return the polynomial of operations in topological order; the first one stands for all that comes before."""
    joins: list[tuple[Factor, ...]] = []
    factors: list[Factor] = [(1, 0, 0)]  # the value of each operation
    for kind, inputs, shape, parameters, settings in operations[1:]:
        A, B = constants(kind, shape, settings, tuple([parameter.shape for parameter in parameters]))
        read = []
        for place, source in enumerate(inputs):
            a, b, i = factors[source]
            read.append((a, b + offset(kind, place), i))
        if len(read) > 1:
            joins.append(tuple(read))
            factors.append((A, B, len(joins)))
        else:
            a, b, i = read[0] if read else (0, 1, 0)
            factors.append((A * a % MODULUS, (A * b + B) % MODULUS, i))
    return Polynomial(tuple(joins), factors[-1])


def image_value(image_size: int) -> int:
    """Return the value of the image, the operation that networks of images begin with; its side is in pixels."""
    return input_value("image", (3, image_size, image_size))


def input_value(kind: str, shape: tuple[int, ...]) -> int:
    """Return the value of the operation that a network begins with: an image or a text."""
    A, B = constants(kind, shape)
    return (A + B) % MODULUS


def hash_of_value(value: int, num_operations: int, num_parameters: int) -> str:
    """Return the network hash, 24 hexadecimal digits, of a network from the value of its polynomial.

    The two numbers distinguish a result that is used twice from one that is computed twice.
    """
    return hashlib.blake2b(f"{value} {num_operations} {num_parameters}".encode(), digest_size=12).hexdigest()


@lru_cache(maxsize=1 << 16)
def constants(
    kind: str, shape: tuple[int, ...], settings: tuple[int, ...] = (), parameters: tuple[tuple[int, ...], ...] = ()
) -> tuple[int, int]:
    """Return A and B of an operation; `parameters` are the shapes of its parameters."""
    return _digest(f"A {kind} {shape} {settings} {parameters}"), _digest(f"B {kind} {shape} {settings} {parameters}")


@lru_cache(maxsize=1 << 10)
def offset(kind: str, place: int) -> int:
    """Return c_i of the place of an operation's input, from 0."""
    return _digest(f"c {0 if kind in ('add', 'concat') else place}")


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big") % MODULUS
