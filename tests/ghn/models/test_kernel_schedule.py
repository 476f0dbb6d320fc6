"""The kernels of a pass, run by Triton's interpreter on a CPU, beside the passes level by level."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples import graphs, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ghn.models import gated_gnn
from ghn.models.gated_gnn import MOST_HIDDEN, GatedGNN, has_kernels
from ghn.networks.graph import Graph
from ghn.networks.graph_batch import GraphBatch

pytest.importorskip("triton", reason="Triton comes with PyTorch's CUDA builds")


def results(gnn: GatedGNN, batch: GraphBatch, with_kernels: bool) -> dict[str, Tensor]:
    """Return the states and the gradients of a network, at the states before and at its weights."""
    batch.cache.clear()
    torch.manual_seed(1)
    h = torch.randn(batch.num_nodes, gnn.gru.hidden_size, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gated_gnn, "has_kernels", lambda device: with_kernels)
        states = gnn(h, batch)
        assert {type(schedule).__name__ for schedule in gnn.schedules(batch)} == {
            "KernelSchedule" if with_kernels else "LevelSchedule"
        }
    gradients = torch.autograd.grad(states, [h, *gnn.parameters()], torch.randn_like(states))
    return dict(zip(["states", "h", *dict(gnn.named_parameters())], [states, *gradients], strict=True))


def assert_same_as_level_by_level(several: list[Graph], hidden: int, longest: int | None, rounds: int = 1) -> None:
    torch.manual_seed(0)
    gnn, batch = GatedGNN(hidden, longest, rounds), GraphBatch.of(several, longest or 1)
    expected = results(gnn, batch, with_kernels=False)
    for name, found in results(gnn, batch, with_kernels=True).items():
        torch.testing.assert_close(
            found, expected[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("hidden", [8, 24, 32])
@pytest.mark.parametrize("longest", [3, None])
@settings(max_examples=3)
@given(several=st.lists(graphs(), min_size=1, max_size=3))
def test_states_and_gradients_of_any_graphs(several: list[Graph], longest: int | None, hidden: int) -> None:
    assert_same_as_level_by_level(several, hidden, longest)


@pytest.mark.slow
def test_an_architecture_whose_nodes_hear_from_more_than_a_block_of_entries() -> None:
    from ghn.models.kernel_schedule import ENTRIES  # needs Triton

    graph = min((sample("train", index).graph(32, 10) for index in range(8)), key=lambda graph: len(graph.nodes))
    assert np.bincount(graph.virtual_edges(50)[1]).max() > ENTRIES
    assert_same_as_level_by_level([graph], 16, 50, rounds=2)


def test_the_trial_of_the_kernels_runs_them() -> None:
    from ghn.models.kernel_schedule import try_kernels

    try_kernels(torch.device("cpu"))


def ways(gnn: GatedGNN) -> set[str]:
    batch = GraphBatch.of([sample("train", 0).graph(32, 10)], 50)
    return {type(schedule).__name__ for schedule in gnn.schedules(batch)}


def test_cpus_and_states_that_kernels_do_not_hold_go_level_by_level(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_kernels("cpu")
    assert ways(GatedGNN(8, 50)) == {"LevelSchedule"}
    monkeypatch.setattr(gated_gnn, "has_kernels", lambda device: True)
    assert ways(GatedGNN(MOST_HIDDEN, 50)) == {"KernelSchedule"}
    assert ways(GatedGNN(MOST_HIDDEN + 8, 50)) == {"LevelSchedule"}
    assert ways(GatedGNN(8, 50).double()) == {"LevelSchedule"}
