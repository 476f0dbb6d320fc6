from __future__ import annotations

import pytest
import torch
from examples import graphs, sample
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ghn.models.gated_gnn import GatedGNN
from ghn.networks.graph import Graph, Node
from ghn.networks.graph_batch import GraphBatch

LONGEST = 3


def reference(gnn: GatedGNN, h: Tensor, graph: Graph, longest: int) -> Tensor:
    """Return the states by the formula of `ghn.models.gated_gnn`, node by node."""
    states = list(h)
    passes = ((range(len(h)), graph.distances), (reversed(range(len(h))), graph.distances.T))
    for order, distances in passes:
        for v in order:
            message = torch.zeros_like(states[v])
            for u, d in enumerate(distances[:, v].tolist()):
                if d == 1:
                    message = message + gnn.mlp(states[u])
                if gnn.mlp_virtual is not None and 1 <= d <= longest:
                    message = message + gnn.mlp_virtual(states[u]) / d
            states[v] = gnn.gru(message[None], states[v][None])[0]
    return torch.stack(states)


def order_of(batch: GraphBatch) -> list[int]:
    """Return the number in its graph of each node of a batch."""
    return [node.shape[0] - 1 for node in batch.nodes]


def network(hidden: int, virtual_edges: bool) -> GatedGNN:
    torch.manual_seed(0)
    return GatedGNN(hidden, LONGEST if virtual_edges else None).double()


def states(count: int, hidden: int) -> Tensor:
    return torch.randn(count, hidden, dtype=torch.float64).requires_grad_()


def numbered(graph: Graph) -> Graph:
    return Graph(tuple(Node(node.primitive, (i + 1, 1, 1, 1)) for i, node in enumerate(graph.nodes)), graph.edges)


def assert_same_as_reference(graph: Graph, virtual_edges: bool, longest: int) -> None:
    gnn = network(8, virtual_edges)
    batch = GraphBatch.of([graph], longest if virtual_edges else 1)
    h, order = states(len(graph.nodes), 8), order_of(batch)
    result, expected = gnn(h[order], batch), reference(gnn, h, graph, longest)[order]
    torch.testing.assert_close(result, expected)
    inputs, cotangent = [h, *gnn.parameters()], torch.randn_like(result)
    gradients = torch.autograd.grad(result, inputs, cotangent)
    wanted = torch.autograd.grad(expected, inputs, cotangent, allow_unused=True)
    for (name, parameter), gradient, want in zip([("h", h), *gnn.named_parameters()], gradients, wanted, strict=True):
        want = torch.zeros_like(parameter) if want is None else want
        torch.testing.assert_close(gradient, want, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("virtual_edges", [True, False])
@given(graph=graphs())
def test_any_graph_gets_what_the_formula_says(virtual_edges: bool, graph: Graph) -> None:
    assert_same_as_reference(graph, virtual_edges, LONGEST)


@pytest.mark.parametrize("virtual_edges", [True, False])
def test_an_architecture_gets_what_the_formula_says(virtual_edges: bool) -> None:
    graph = min((sample("train", index).graph(32, 10) for index in range(8)), key=lambda graph: len(graph.nodes))
    assert_same_as_reference(numbered(graph), virtual_edges, 50)


@given(st.lists(graphs(), min_size=2, max_size=4), st.booleans())
def test_graphs_of_a_batch_exchange_no_messages(several: list[Graph], virtual_edges: bool) -> None:
    gnn, longest = network(8, virtual_edges), LONGEST if virtual_edges else 1
    batch = GraphBatch.of(several, longest)
    order = torch.tensor(order_of(batch))
    of_graph = [torch.from_numpy(batch.graph_of == k) for k in range(len(several))]
    h = [states(len(graph.nodes), 8) for graph in several]
    together = torch.empty(batch.num_nodes, 8, dtype=torch.float64)
    for k, own in enumerate(of_graph):
        together[own] = h[k][order[own]]
    together = gnn(together, batch)
    for k, graph in enumerate(several):
        alone = GraphBatch.of([graph], longest)
        expected = gnn(h[k][order_of(alone)], alone)[torch.tensor(order_of(alone)).argsort()]
        torch.testing.assert_close(together[of_graph[k]], expected[order[of_graph[k]]])


@pytest.mark.parametrize("virtual_edges", [True, False])
def test_the_gradient_written_out_is_that_of_finite_differences(virtual_edges: bool) -> None:
    edges = ((0, 1), (0, 2), (1, 3), (2, 3), (3, 5), (4, 5))
    graph = Graph(tuple(Node("conv", (v + 1, 1, 1, 1)) for v in range(6)), edges)
    gnn, batch = network(4, virtual_edges), GraphBatch.of([graph], LONGEST if virtual_edges else 1)
    names = [name for name, _ in gnn.named_parameters()]

    def function(h: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(gnn, dict(zip(names, parameters, strict=True)), (h, batch))

    assert torch.autograd.gradcheck(function, (states(6, 4), *gnn.parameters()))


def test_without_edges_only_the_bias_is_received() -> None:
    gnn, batch = network(8, True), GraphBatch.of([Graph((Node("conv"),) * 3, ())], LONGEST)
    h = states(3, 8)
    once = gnn.gru(torch.zeros_like(h), h)
    torch.testing.assert_close(gnn(h, batch), gnn.gru(torch.zeros_like(h), once))


def test_a_batch_keeps_what_is_prepared_for_each_precision_and_serves_it_again() -> None:
    graph = Graph((Node("conv"),) * 3, ((0, 1), (1, 2)))
    batch, gnn = GraphBatch.of([graph], LONGEST), network(8, True)
    gnn.prepare(batch)
    first = gnn.schedules(batch)
    assert len(batch.cache) == 1 and gnn.schedules(batch) is first
    single = gnn.float().schedules(batch)
    assert single is not first
    assert gnn(states(3, 8).float(), batch).dtype == torch.float32
