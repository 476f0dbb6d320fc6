from __future__ import annotations

import hashlib
from dataclasses import replace
from random import Random

from examples import CLASSES, architectures
from hypothesis import given, settings
from hypothesis import strategies as st

from ghn import Architecture, Genotype
from ghn.deepnets1m.sampling import samples
from ghn.networks.canonical_hash import constants, polynomial
from ghn.networks.operations import Operation
from ghn.networks.program import Program


def merkle(program: Program) -> str:
    """Name a network in another way: each operation by a hash of what it does and of its inputs."""
    names: list[bytes] = []
    for operation in program.operations:
        inputs = [names[source] for source in operation.inputs]
        if operation.kind in ("add", "concat"):
            inputs.sort()
        shapes = [parameter.shape for parameter in operation.parameters]
        text = f"{operation.kind}{operation.shape}{operation.settings}{shapes}".encode()
        names.append(hashlib.sha256(text + b"".join(inputs)).digest())
    return f"{names[-1].hex()} {len(program.operations)} {program.num_parameters}"


@settings(max_examples=30)
@given(st.lists(architectures(), min_size=2, max_size=12))
def test_networks_have_the_same_identity_if_and_only_if_they_are_the_same(networks: list[Architecture]) -> None:
    programs = [network.compile(16, CLASSES) for network in networks]
    for one in programs:
        for other in programs:
            assert (one.network_hash == other.network_hash) == (merkle(one) == merkle(other))


def test_it_tells_apart_two_thousand_samples_as_hashes_do() -> None:
    """Small networks only, of which many are the same."""
    programs = []
    for index in range(2000):
        architecture = next(samples(3, "train", index)).architecture
        if architecture.n_cells < 6 and len(architecture.genotype.normal) == 2:
            programs.append(architecture.compile(8, CLASSES))
    assert len(programs) > 50
    assert len({program.network_hash for program in programs}) == len({merkle(program) for program in programs})


def chain(*kinds: str) -> list[Operation]:
    image = Operation("image", (), (3, 8, 8))
    return [image, *(Operation(kind, (place,), (3, 8, 8)) for place, kind in enumerate(kinds))]


def test_operations_one_after_the_other_are_one_map() -> None:
    one, two = polynomial(chain("relu")), polynomial(chain("gelu"))
    assert polynomial(chain("relu", "gelu"))(5) == two(one(5)) != one(two(5))


def test_the_order_counts_only_where_a_gate_is_one_of_the_inputs() -> None:
    def joined(kind: str, inputs: tuple[int, int]) -> int:
        image, relu = chain("relu")
        return polynomial([image, relu, Operation(kind, inputs, (3, 8, 8))])(7)

    assert joined("add", (0, 1)) == joined("add", (1, 0))
    assert joined("concat", (0, 1)) == joined("concat", (1, 0)) != joined("add", (0, 1))
    assert joined("scale", (0, 1)) != joined("scale", (1, 0))


@given(architectures(), st.randoms(use_true_random=False))
def test_states_that_are_numbered_in_another_order_make_the_same_network(
    architecture: Architecture, random: Random
) -> None:
    """Any order in which each state comes after those that it reads."""

    def renumbered(edges: tuple, concat: tuple) -> tuple[tuple, tuple]:
        waiting, numbers, reordered = list(range(2, 2 + len(edges) // 2)), {0: 0, 1: 1}, []
        while waiting:
            pair = {state: edges[2 * state - 4 : 2 * state - 2] for state in waiting}
            state = random.choice([s for s in waiting if all(source in numbers for _, source in pair[s])])
            waiting.remove(state)
            reordered += [(operation, numbers[source]) for operation, source in pair[state]]
            numbers[state] = len(numbers)
        return tuple(reordered), tuple(numbers[state] for state in concat)

    genotype = architecture.genotype
    other = Genotype(
        *renumbered(genotype.normal, genotype.normal_concat), *renumbered(genotype.reduce, genotype.reduce_concat)
    )
    assert replace(architecture, genotype=other).network_hash == architecture.network_hash


def test_exchanged_branches_are_another_network() -> None:
    """relu(a + b) + relu(c + d) is not relu(a + c) + relu(b + d), though both read the same along each path."""

    def network(pairs: tuple[tuple[int, int], tuple[int, int]]) -> int:
        operations = chain()
        operations += [Operation(kind, (0,), (3, 8, 8)) for kind in ("relu", "gelu", "hardswish", "dropout")]
        operations += [Operation("add", pair, (3, 8, 8)) for pair in pairs]
        operations += [Operation("relu", (place,), (3, 8, 8)) for place in (5, 6)]
        return polynomial([*operations, Operation("add", (7, 8), (3, 8, 8))])(11)

    assert network(((1, 2), (3, 4))) == network(((4, 3), (1, 2))) != network(((1, 3), (2, 4)))


def test_constants_depend_on_all_that_an_operation_does() -> None:
    operations = [
        ("conv", (8, 4, 4), (1,), ((8, 3, 3, 3),)),
        ("linear", (8, 4, 4), (1,), ((8, 3, 3, 3),)),
        ("conv", (8, 4, 5), (1,), ((8, 3, 3, 3),)),
        ("conv", (8, 4, 4), (2,), ((8, 3, 3, 3),)),
        ("conv", (8, 4, 4), (1,), ((8, 3, 3, 1),)),
    ]
    numbers = [number for operation in operations for number in constants(*operation)]
    assert len(set(numbers)) == 10
