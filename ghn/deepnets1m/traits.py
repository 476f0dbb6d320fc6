"""Named traits of networks, read off their graphs: what an account of their accuracies can point at."""

from __future__ import annotations

from collections.abc import Callable

from ghn.networks.graph import Graph

CONVOLUTIONS = ("conv", "sep_conv", "dil_conv")
"""Primitives of convolutions. A linear layer is a `conv` node too, with a kernel of one pixel."""

LONG_PATH = 150
"""Edges: 15 of 100 training architectures have a longer path."""


def has_spatial_convolution(graph: Graph) -> bool:
    """Return whether a convolution after the stem has a kernel of more than one pixel.

    The stem is what its parameters' names say, or else what reads the image.
    """
    for node, sources in zip(graph.nodes, graph.sources, strict=True):
        if node.primitive not in CONVOLUTIONS or node.shape is None or max(node.shape[2:]) == 1:
            continue
        is_named_stem = any(parameter.name.startswith("stem") for parameter in node.parameters)
        reads_image = any(graph.nodes[source].primitive == "input" for source in sources)
        if not is_named_stem and not reads_image:
            return True
    return False


TRAITS: dict[str, Callable[[Graph], bool]] = {
    "norm_free": lambda graph: "bn" not in graph.primitives,
    "attention": lambda graph: "msa" in graph.primitives,
    "no_convolution": lambda graph: not has_spatial_convolution(graph),
    "squeeze_excitation": lambda graph: "cse" in graph.primitives,
    "no_global_pool": lambda graph: "glob_avg" not in graph.primitives,
    "deep": lambda graph: int(graph.levels.max()) > LONG_PATH,
}
"""Whether a graph has a trait, by the name of the trait, in the order of tables.

`norm_free`: no batch norm, as in split bn_free; attention has layer norms of its own. `no_convolution`: no kernel of
more than one pixel after the stem. `deep`: a path of more than `LONG_PATH` edges.
"""


def traits_of(graph: Graph) -> dict[str, bool]:
    """Return whether a graph has each of `TRAITS`."""
    return {name: has_trait(graph) for name, has_trait in TRAITS.items()}
