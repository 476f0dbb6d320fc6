"""Network hashes: equal networks have equal ones, however they were described.

A network is read as a polynomial, which is evaluated at a point that looks random. An operation with inputs of the
values x_1, …, x_k has the value

    A · (x_1 + c_1) ⋯ (x_k + c_k) + B   modulo the prime 2¹²⁷ - 1,

where A and B are digests of what the operation does, and c_i one of the input's place. All places are the same for
sums, and for concatenations: channels in another order are weights in another order after them, and graphs do not show
it. Two polynomials of degree d that differ have the same value at a random point with a probability of d / 2¹²⁷ at most
(Schwartz, Journal of the ACM 1980).

A hash of each operation and its inputs would name networks as well. But here operations one after the other are a
single affine map, so that what is known of a block need not be computed again in each network that contains it.

What neither sees is which of two results is read that are computed in the same way, with parameters of their own. Such
networks can be different and have the same hash; then only one of them is drawn.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from ghn.networks.operations import Operation

MODULUS = 2**127 - 1

Sizes = tuple[int, ...]

Factor = tuple[int, int, int]
"""a, b and i of an affine map a·v_i + b of an earlier value."""


class Polynomial(NamedTuple):
    """The value of operations as a function of the first one's, v_0.

    Each of `joins` is a product of factors and gives the next value v_1, v_2, …; `last` gives the result.
    Operations of one input each have no joins: they are `last` alone.
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
    """The polynomial of operations in topological order; the first one stands for whatever comes before."""
    joins: list[tuple[Factor, ...]] = []
    factors: list[Factor] = [(1, 0, 0)]  # of each operation
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
    """The value of the operation that all networks begin with."""
    A, B = constants("image", (3, image_size, image_size))
    return (A + B) % MODULUS


def hash_of_value(value: int, num_operations: int, num_parameters: int) -> str:
    """The network hash, 24 hexadecimal digits, of a network whose polynomial has a value.

    The two numbers tell apart a result that is used twice and one that is computed twice.
    """
    return hashlib.blake2b(f"{value} {num_operations} {num_parameters}".encode(), digest_size=12).hexdigest()


@lru_cache(maxsize=1 << 16)
def constants(kind: str, shape: Sizes, settings: Sizes = (), parameters: tuple[Sizes, ...] = ()) -> tuple[int, int]:
    """A and B of an operation; `parameters` are their shapes."""
    return _digest(f"A {kind} {shape} {settings} {parameters}"), _digest(f"B {kind} {shape} {settings} {parameters}")


@lru_cache(maxsize=1 << 10)
def offset(kind: str, place: int) -> int:
    """c of an input's place."""
    return _digest(f"c {0 if kind in ('add', 'concat') else place}")


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big") % MODULUS
