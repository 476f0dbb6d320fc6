"""Whether a row of DeepNets-1M is what its record says: the record is compiled, and all else compared with that.

N is the number of a graph's nodes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ghn.deepnets1m.architecture import Architecture
from ghn.deepnets1m.genotype import Edge, Genotype
from ghn.networks.graph import PRIMITIVES, Graph, Node
from ghn.networks.program import Program
from pipeline.architectures.deepnets1m_files.files import PpudaGraph
from pipeline.architectures.deepnets1m_files.graph_matching import find_matching

CUTOFF = 250
"""The longest distance that the published generator writes; longer ones are 0 in its files."""

IMAGE_SIZES = {"cifar10": 32, "imagenet": 224}
"""The images that the two numbers of `num_params` are for."""

RECORD_KEYS = frozenset(field.name for field in fields(Architecture)) | {"num_nodes", "num_params"}

GENOTYPE_KEYS = frozenset(field.name for field in fields(Genotype))


class Disagreement(ValueError):
    """What a row says in two places is not the same; the message says what."""


def architecture_of(record: Any) -> Architecture:
    """The architecture of a published record. Raises ValueError if it is none."""
    if not isinstance(record, dict):
        raise ValueError("no object with fields")
    try:
        return Architecture.from_dict(record)
    except TypeError as error:  # a number where there must be a list
        raise ValueError(f"a field is of a wrong type: {error}") from error


def check_record(record: dict[str, Any], architecture: Architecture, programs: Sequence[Program]) -> None:
    """Raises Disagreement if a record has a field that may change its meaning, or numbers that are not its network's.

    Args:
        programs: of the architecture, for images of all of `IMAGE_SIZES`, the smallest first.
    """
    unknown = [*sorted(record.keys() - RECORD_KEYS)]
    unknown += [f"genotype.{key}" for key in sorted(record["genotype"].keys() - GENOTYPE_KEYS)]
    if unknown:
        raise Disagreement(f"its record has the unknown field {unknown[0]}")
    N = len(programs[0].graph.nodes)
    if record.get("num_nodes", N) != N:
        raise Disagreement(f"num_nodes = {record['num_nodes']}, but its record gives {N} nodes")
    counts = record.get("num_params", {})
    if not isinstance(counts, dict):
        raise Disagreement(f"num_params = {counts}: must be numbers by data set")
    for name, count in counts.items():
        program = next((p for p in programs if p.image_size == IMAGE_SIZES.get(name)), None)
        if program is None:
            raise Disagreement(f"its record has the unknown field num_params.{name}")
        expected = count_parameters(architecture, program)
        if count != expected:
            raise Disagreement(f"num_params.{name} = {count}, but its record gives {expected}")


def count_parameters(architecture: Architecture, program: Program) -> int:
    """What the published `num_params` is for the image size of a program: the elements of all parameters, 10 classes.

    It counts what the network had before pruning: also operations that do not reach the output, so that it may be more
    than `Architecture.num_parameters`. It counts 10 classes whatever the images: the generator built all networks
    with 10.
    """
    complete = _with_all_operations(architecture)
    if complete != architecture:
        program = complete.compile(program.image_size, program.num_classes)
    last = sum(parameter.size for parameter in program.operations[-1].parameters)
    return program.num_parameters - last + last // program.num_classes * 10


def _with_all_operations(architecture: Architecture) -> Architecture:
    """An architecture with the same parameters, in which every operation reaches the output, and so none is pruned."""
    genotype = architecture.genotype
    normal, normal_concat = _reaching_output(genotype.normal, genotype.normal_concat)
    reduce, reduce_concat = _reaching_output(genotype.reduce, genotype.reduce_concat)
    return replace(architecture, genotype=Genotype(normal, normal_concat, reduce, reduce_concat))


def _reaching_output(edges: tuple[Edge, ...], concat: tuple[int, ...]) -> tuple[tuple[Edge, ...], tuple[int, ...]]:
    """A cell in which pools, which have no parameters, stand for `none` and read the states that nothing reads."""
    edges = tuple(("max_pool_3x3" if operation == "none" else operation, source) for operation, source in edges)
    read = {source for _, source in edges} | set(concat)
    *others, last = concat
    for state in range(2 + len(edges) // 2):
        if state not in read:
            edges += (("max_pool_3x3", last), ("max_pool_3x3", state))
            last = 1 + len(edges) // 2
    return edges, (*others, last)


LABELS = (*PRIMITIVES, "conv_1x1")
"""What nodes are compared by: their primitive, and whether the kernel of a `conv` is 1×1, which the files tell."""

LABEL_NUMBERS = {label: number for number, label in enumerate(LABELS)}


def check_graph(published: PpudaGraph, graph: Graph, primitives: dict[int, str]) -> None:
    """Raises Disagreement unless a published graph is the given one, up to the order of the nodes.

    Args:
        primitives: the names that the first column of `published.nodes` stands for.
    """
    labels = np.array([LABEL_NUMBERS[_label(node)] for node in graph.nodes])
    published_labels = _published_labels(published, primitives)
    _check_counts(labels, published_labels)
    distances, published_distances = _cut(graph.distances), _checked_distances(published)
    if find_matching(labels, distances, published_labels, published_distances) is None:
        raise Disagreement(_difference(labels, distances, published_labels, published_distances))


def _label(node: Node) -> str:
    return "conv_1x1" if node.primitive == "conv" and node.shape[2:] == (1, 1) else node.primitive


@lru_cache
def _published_label(name: str) -> int:
    """The number of a published primitive among `LABELS`, -1 if it is none.

    The names have varied: a bias was called `fc-b`, and the size of a kernel was part of any name.
    """
    if name == "fc-b":
        name = "bias"
    if name not in LABELS:
        name = re.sub(r"_\d+x\d+$", "", name)
    return LABEL_NUMBERS.get(name, -1)


def _published_labels(published: PpudaGraph, primitives: dict[int, str]) -> np.ndarray:
    numbers = published.nodes[:, 0].tolist()
    labels = [_published_label(primitives.get(number, "")) for number in numbers]
    if -1 in labels:
        node = labels.index(-1)
        name = primitives.get(numbers[node], "not in primitives_ext")
        raise Disagreement(f"node {node} has the unknown primitive {numbers[node]} ({name})")
    return np.array(labels)


def _check_counts(labels: np.ndarray, published_labels: np.ndarray) -> None:
    expected, found = Counter(labels.tolist()), Counter(published_labels.tolist())
    if expected == found:
        return
    lacks, has = (
        ", ".join(f"{count} {LABELS[label]}" for label, count in sorted(difference.items()))
        for difference in (expected - found, found - expected)
    )
    parts = [f"lacks {lacks} nodes"] * bool(lacks) + [f"has {has} nodes too many"] * bool(has)
    raise Disagreement(f"its graph {' and '.join(parts)}")


def _checked_distances(published: PpudaGraph) -> np.ndarray:
    """The published distances, int16 (N, N), of nodes in topological order."""
    distances = published.distances
    if distances.min() < 0 or distances.max() > CUTOFF:
        raise Disagreement(f"adj holds {distances.min()} to {distances.max()}: must be 0 to {CUTOFF}")
    backwards = np.tril(distances)
    if backwards.any():
        source, target = np.argwhere(backwards)[0]
        raise Disagreement(f"its nodes are in no topological order: there is a path from {source} to {target}")
    return distances.astype(np.int16)


def _cut(distances: np.ndarray) -> np.ndarray:
    """Distances as the published generator writes them."""
    return np.where(distances > CUTOFF, 0, distances)


def _difference(labels: np.ndarray, distances: np.ndarray, published_labels: np.ndarray, published: np.ndarray) -> str:
    """What is wrong with a published graph of the right nodes in topological order, in words."""
    edges = [(int(source), int(target)) for source, target in np.argwhere(published == 1)]
    own = _cut(Graph((Node("input"),) * len(published), tuple(edges)).distances)  # the primitives do not matter
    if find_matching(labels, distances, published_labels, own) is not None:
        return f"{np.sum(published != own)} of {np.sum((published | own) > 0)} distances differ"
    same = np.zeros_like(labels)
    if find_matching(same, distances, same, own) is not None:
        return "its nodes are in another order than the rows of adj"
    expected = int(np.sum(distances == 1))
    if len(edges) != expected:
        return f"its graph has {len(edges)} edges, but its record gives {expected}"
    return f"its graph has edges between other nodes than its record gives ({expected} in both)"
