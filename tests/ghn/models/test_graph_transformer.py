"""The graph transformer against its definition, pair by pair, and what a batch may not change."""

from __future__ import annotations

import pytest
import torch
from examples import graphs, sample
from hypothesis import given
from torch import Tensor, nn
from torch.nn import functional as F

from ghn import GHN, GHNConfig
from ghn.models import graph_transformer
from ghn.models.config import GHN3_SIZES, LONGEST_DISTANCE
from ghn.models.graph_transformer import GraphTransformer
from ghn.networks.graph import Graph, Node
from ghn.networks.graph_batch import GraphBatch

HIDDEN, HEADS, LONGEST = 8, 2, 3


def transformer(layers: int = 2) -> GraphTransformer:
    torch.manual_seed(0)
    return GraphTransformer(HIDDEN, layers, HEADS, LONGEST).double()


def numbered(graph: Graph) -> Graph:
    """Return a graph whose nodes have their numbers as shapes, because a batch sorts them."""
    return Graph(tuple(Node(node.primitive, (i + 1, 1, 1, 1)) for i, node in enumerate(graph.nodes)), graph.edges)


def numbers(batch: GraphBatch) -> list[int]:
    return [node.shape[0] - 1 for node in batch.nodes]


def reference(gnn: GraphTransformer, h: Tensor, graph: Graph) -> Tensor:
    """Return the states by the definition: one query and one key at a time."""
    distances = torch.tensor(graph.distances).long()
    distances[distances > LONGEST] = 0
    source = [node.primitive for node in graph.nodes].index("input")
    is_edge = distances == 1
    states = []
    for v in range(len(h)):
        degrees = gnn.in_degrees.weight[is_edge[:, v].sum()] + gnn.out_degrees.weight[is_edge[v].sum()]
        states.append(h[v] + degrees + gnn.depths.weight[distances[source, v]])
    h = torch.stack(states)
    table = gnn.distances.weight
    size = HIDDEN // HEADS
    for layer in gnn.layers:
        queries, keys, values = layer.queries_keys_values(layer.attention_norm(h)).chunk(3, 1)
        rows = []
        for u in range(len(h)):
            scores = []
            for v in range(len(h)):
                bias = gnn.bias(torch.cat([table[distances[u, v] + 2], table[distances[v, u] + 2]]))
                products = [queries[u, at] @ keys[v, at] / size**0.5 for at in parts(size)]
                scores.append(torch.stack(products) + bias)
            weights = torch.stack(scores).softmax(0)  # (n, heads)
            rows.append(torch.cat([weights[:, head] @ values[:, at] for head, at in enumerate(parts(size))]))
        h = h + layer.out(torch.stack(rows))
        h = h + layer.mlp[2](F.gelu(layer.mlp[0](layer.mlp_norm(h))))
    return h


def parts(size: int) -> list[slice]:
    return [slice(head * size, (head + 1) * size) for head in range(HEADS)]


GRAPH = Graph(
    tuple(Node(primitive) for primitive in ("input", "conv", "bn", "conv", "sum", "conv", "max_pool", "conv", "bias")),
    ((0, 1), (1, 2), (1, 3), (2, 4), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8)),
)


def test_states_and_gradients_are_those_of_the_definition() -> None:
    gnn, graph = transformer(), numbered(GRAPH)
    batch = GraphBatch.of([graph], LONGEST)
    h = torch.randn(len(graph.nodes), HIDDEN, dtype=torch.float64, requires_grad=True)
    order = numbers(batch)
    result, expected = gnn(h[order], batch), reference(gnn, h, graph)[order]
    torch.testing.assert_close(result, expected)
    inputs, cotangent = [h, *gnn.parameters()], torch.randn_like(result)
    gradients = torch.autograd.grad(result, inputs, cotangent)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, inputs, cotangent), strict=True):
        torch.testing.assert_close(gradient, wanted)


@given(graphs())
def test_no_graph_of_a_batch_changes_another(graph: Graph) -> None:
    gnn = transformer()
    first, second = numbered(graph), numbered(GRAPH)
    h = {graph: torch.randn(len(graph.nodes), HIDDEN, dtype=torch.float64) for graph in (first, second)}
    both = GraphBatch.of([first, second], LONGEST)
    owners = [(first, second)[number] for number in both.graph_of]
    with torch.no_grad():
        together = gnn(torch.stack([h[owner][i] for owner, i in zip(owners, numbers(both), strict=True)]), both)
        for number, graph_alone in enumerate((first, second)):
            alone = GraphBatch.of([graph_alone], LONGEST)
            torch.testing.assert_close(together[both.graph_of == number], gnn(h[graph_alone][numbers(alone)], alone))


def test_layers_that_are_computed_again_have_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    gnn, batch = transformer(layers=3), GraphBatch.of([GRAPH, GRAPH], LONGEST)
    h = torch.randn(batch.num_nodes, HIDDEN, dtype=torch.float64, requires_grad=True)

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(gnn(h, batch).square().sum(), [h, *gnn.parameters()])

    calls: list[nn.Module] = []
    for layer in gnn.layers:
        layer.register_forward_pre_hook(lambda layer, _: calls.append(layer))
    kept = gradients()
    assert len(calls) == 3
    monkeypatch.setattr(graph_transformer, "LAYERS_KEPT", 2)
    assert all(torch.equal(first, again) for first, again in zip(kept, gradients(), strict=True))
    assert len(calls) == 3 + 2 * 3  # each once more in the backward pass


@pytest.mark.parametrize(("name", "millions"), [("t", 6.9), ("s", 35.8), ("l", 214.7), ("xl", 654.4)])
def test_the_published_sizes_have_the_published_numbers_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        ghn = GHN(GHNConfig(1000, 224, "ghn3", kernel=16, small_start=False, **GHN3_SIZES[f"ghn3_{name}"]))
    assert sum(parameter.numel() for parameter in ghn.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_longest_distance_has_the_last_row_of_its_table() -> None:
    assert graph_transformer.FIRST_DISTANCE + LONGEST_DISTANCE == graph_transformer.DISTANCE_ROWS - 1


def test_embeddings_and_the_last_layers_begin_small() -> None:
    torch.manual_seed(0)
    ghn = GHN(GHNConfig(10, 32, "ghn3", hidden=64))
    for part in ghn.modules():
        if isinstance(part, nn.Embedding):
            assert part.weight.std().item() == pytest.approx(64**-0.5, rel=0.2)
    for layer in (ghn.decoder.weights.channels, ghn.decoder.weights.classes, ghn.decoder.vectors.mlp[2]):
        usual = layer.in_features**-0.5
        assert layer.weight.abs().max().item() == pytest.approx(usual / 5, rel=0.02)
        assert not layer.bias.any()


def test_the_first_node_stands_for_the_input_where_there_is_none() -> None:
    primitives = ("conv", "conv", "sum", "conv")
    graph = Graph(tuple(map(Node, primitives)), ((0, 1), (1, 2), (0, 2), (2, 3)))
    both = GraphBatch.of([numbered(GRAPH), numbered(graph)], 2)
    depths = graph_transformer._depths(both)
    of_graph = dict(zip(numbers(both), depths.tolist(), strict=False))
    assert [depths[both.graph_of == 1].tolist(), of_graph[0]] == [[0, 1, 1, 2], 0]
    assert sorted(depths[both.graph_of == 0].tolist()) == [0, 0, 0, 0, 0, 0, 1, 2, 2]


def test_the_nearest_of_several_inputs_counts() -> None:
    graph = Graph(tuple(map(Node, ("input", "conv", "input", "sum"))), ((0, 1), (1, 3), (2, 3)))
    batch = GraphBatch.of([numbered(graph)], 5)
    depths = dict(zip(numbers(batch), graph_transformer._depths(batch).tolist(), strict=True))
    assert depths == {0: 0, 1: 1, 2: 0, 3: 1}


def test_every_weight_of_a_ghn3_has_a_finite_gradient() -> None:
    ghn = GHN(GHNConfig(3, 16, "ghn3", hidden=8, kernel=3))
    predicted = ghn.predict_parameters([sample("train", 0), sample("train", 1)])
    sum(tensor.square().sum() for parameters in predicted for tensor in parameters.values()).backward()
    without = [name for name, parameter in ghn.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(parameter.grad.isfinite().all() for parameter in ghn.parameters())
