"""Checks of a row of DeepNets-1M: its record is compiled, and the rest of the row is compared with the result.

Dimensions: N nodes of a graph.
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
"""The longest distance that ppuda's generator writes; longer ones are 0 in its files."""

IMAGE_SIZES = {"cifar10": 32, "imagenet": 224}
"""Sides in pixels of the images that the two numbers of `num_params` are for."""

RECORD_KEYS = frozenset(field.name for field in fields(Architecture)) | {"num_nodes", "num_params"}
"""Keys that a record may have."""

GENOTYPE_KEYS = frozenset(field.name for field in fields(Genotype))
"""Keys that the genotype of a record may have."""


class Disagreement(ValueError):
    """A row contradicts itself; the message says how."""


def architecture_of_record(record: Any) -> Architecture:
    """Return the architecture of a record.

    Raises:
        ValueError: the record does not describe an architecture.
    """
    if not isinstance(record, dict):
        raise ValueError("no object with fields")
    try:
        return Architecture.from_dict(record)
    except TypeError as error:  # a number where there must be a list
        raise ValueError(f"a field is of a wrong type: {error}") from error


def check_record(record: dict[str, Any], architecture: Architecture, programs: Sequence[Program]) -> None:
    """Compare the numbers of a record with its network, and refuse unknown fields, which may change its meaning.

    Args:
        programs: of the architecture, for images of all of `IMAGE_SIZES`, the smallest first.

    Raises:
        Disagreement: a number differs, or a field is unknown.
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
    """Return ppuda's `num_params` for the image size of a program: the elements of all parameters, 10 classes.

    ppuda counts before pruning, with the operations that do not reach the output, so that the number may be larger than
    `Architecture.num_parameters`. It counts 10 classes for all images, because its generator built all networks so.
    """
    complete = with_all_operations(architecture)
    if complete != architecture:
        program = complete.compile(program.image_size, program.num_classes)
    last = sum(parameter.size for parameter in program.operations[-1].parameters)
    return program.num_parameters - last + last // program.num_classes * 10


def with_all_operations(architecture: Architecture) -> Architecture:
    """Return an architecture with the same parameters whose operations all reach the output, so that none is pruned."""
    genotype = architecture.genotype
    normal, normal_concat = _reaching_output(genotype.normal, genotype.normal_concat)
    reduce, reduce_concat = _reaching_output(genotype.reduce, genotype.reduce_concat)
    return replace(architecture, genotype=Genotype(normal, normal_concat, reduce, reduce_concat))


def _reaching_output(edges: tuple[Edge, ...], concat: tuple[int, ...]) -> tuple[tuple[Edge, ...], tuple[int, ...]]:
    """Return a cell with pools, which have no parameters, in place of `none` and as readers of unread states."""
    edges = tuple(("max_pool_3x3" if operation == "none" else operation, source) for operation, source in edges)
    read = {source for _, source in edges} | set(concat)
    *others, last = concat
    for state in range(2 + len(edges) // 2):
        if state not in read:
            edges += (("max_pool_3x3", last), ("max_pool_3x3", state))
            last = 1 + len(edges) // 2
    return edges, (*others, last)


LABELS = (*PRIMITIVES, "conv_1x1")
"""Labels that nodes are compared by: the primitive, and for a `conv` whether its kernel is 1×1, as in the files."""

LABEL_NUMBERS = {label: number for number, label in enumerate(LABELS)}
"""Position of each label in `LABELS`."""


def check_graph(ppuda_graph: PpudaGraph, graph: Graph, primitives: dict[int, str]) -> None:
    """Compare a graph of the files with the graph of its record, up to the order of the nodes.

    Args:
        primitives: names of the numbers in the first column of `ppuda_graph.nodes`.

    Raises:
        Disagreement: the graphs differ.
    """
    labels = np.array([LABEL_NUMBERS[_label(node)] for node in graph.nodes])
    ppuda_labels = _ppuda_labels(ppuda_graph, primitives)
    _check_counts(labels, ppuda_labels)
    distances, ppuda_distances = _cut(graph.distances), _checked_distances(ppuda_graph)
    if find_matching(labels, distances, ppuda_labels, ppuda_distances) is None:
        raise Disagreement(_difference(labels, distances, ppuda_labels, ppuda_distances))


def _label(node: Node) -> str:
    is_1x1 = node.primitive == "conv" and node.shape is not None and node.shape[2:] == (1, 1)
    return "conv_1x1" if is_1x1 else node.primitive


@lru_cache
def _ppuda_label(name: str) -> int:
    """Return the position of ppuda's name of a primitive in `LABELS`; -1 if it is unknown.

    The names differ between versions: some call a bias `fc-b`, and some add the size of the kernel to any name.
    """
    if name == "fc-b":
        name = "bias"
    if name not in LABELS:
        name = re.sub(r"_\d+x\d+$", "", name)
    return LABEL_NUMBERS.get(name, -1)


def _ppuda_labels(ppuda_graph: PpudaGraph, primitives: dict[int, str]) -> np.ndarray:
    numbers = ppuda_graph.nodes[:, 0].tolist()
    labels = [_ppuda_label(primitives.get(number, "")) for number in numbers]
    if -1 in labels:
        node = labels.index(-1)
        name = primitives.get(numbers[node], "not in primitives_ext")
        raise Disagreement(f"node {node} has the unknown primitive {numbers[node]} ({name})")
    return np.array(labels)


def _check_counts(labels: np.ndarray, ppuda_labels: np.ndarray) -> None:
    expected, found = Counter(labels.tolist()), Counter(ppuda_labels.tolist())
    if expected == found:
        return
    lacks, has = (
        ", ".join(f"{count} {LABELS[label]}" for label, count in sorted(difference.items()))
        for difference in (expected - found, found - expected)
    )
    parts = [f"lacks {lacks} nodes"] * bool(lacks) + [f"has {has} nodes too many"] * bool(has)
    raise Disagreement(f"its graph {' and '.join(parts)}")


def _checked_distances(ppuda_graph: PpudaGraph) -> np.ndarray:
    """Return ppuda's distances, int16 (N, N), after making sure that the nodes are in topological order."""
    distances = ppuda_graph.distances
    if distances.min() < 0 or distances.max() > CUTOFF:
        raise Disagreement(f"adj holds {distances.min()} to {distances.max()}: must be 0 to {CUTOFF}")
    backwards = np.tril(distances)
    if backwards.any():
        source, target = np.argwhere(backwards)[0]
        raise Disagreement(f"its nodes are in no topological order: there is a path from {source} to {target}")
    return distances.astype(np.int16)


def _cut(distances: np.ndarray) -> np.ndarray:
    """Return distances as ppuda's generator writes them."""
    return np.where(distances > CUTOFF, 0, distances)


def _difference(labels: np.ndarray, distances: np.ndarray, ppuda_labels: np.ndarray, ppuda: np.ndarray) -> str:
    """Return how a graph of the files differs from its record; its nodes are known to be right and in order."""
    edges = [(int(source), int(target)) for source, target in np.argwhere(ppuda == 1)]
    own = _cut(Graph((Node("input"),) * len(ppuda), tuple(edges)).distances)  # the primitives do not matter
    if find_matching(labels, distances, ppuda_labels, own) is not None:
        return f"{np.sum(ppuda != own)} of {np.sum((ppuda | own) > 0)} distances differ"
    same = np.zeros_like(labels)
    if find_matching(same, distances, same, own) is not None:
        return "its nodes are in another order than the rows of adj"
    expected = int(np.sum(distances == 1))
    if len(edges) != expected:
        return f"its graph has {len(edges)} edges, but its record gives {expected}"
    return f"its graph has edges between other nodes than its record gives ({expected} in both)"
