"""Muon, and which weights it takes."""

from __future__ import annotations

import pytest
import torch
from examples import CONFIG
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ghn import GHN
from ghn.training.optimizers import ITERATIONS, NEWTON_SCHULZ, UPDATE_SIZE, Muon, optimizers_of, orthogonalised


def iterated(matrix: Tensor) -> Tensor:
    """Return what the iteration gives as it is published, on the matrix itself."""
    first, second, third = NEWTON_SCHULZ
    x = matrix / matrix.norm()
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = first * x + (second * gram + third * gram @ gram) @ x
    return x


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 100))
def test_orthogonalising_through_the_smaller_side_is_the_published_iteration(
    rows: int, columns: int, seed: int
) -> None:
    matrix = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(orthogonalised(matrix), iterated(matrix), rtol=1e-6, atol=1e-8)


def test_singular_values_that_differ_a_hundredfold_become_alike() -> None:
    left, _ = torch.linalg.qr(torch.randn(300, 40))
    right, _ = torch.linalg.qr(torch.randn(40, 40))
    values = torch.linalg.svdvals(orthogonalised(left @ torch.diag(torch.logspace(0, -2, 40)) @ right))
    assert values.min() > 0.3 and values.max() < 1.3


def test_a_gradient_of_zeros_gives_zeros() -> None:
    assert torch.equal(orthogonalised(torch.zeros(4, 3)), torch.zeros(4, 3))


def test_an_update_has_the_size_of_the_rate_whatever_the_gradient() -> None:
    for shape, scale in (((64, 32), 1e-6), ((32, 64), 1e3)):
        weight = torch.nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape) * scale
        Muon([weight], lr=0.01).step()
        size = float(weight.detach().square().mean().sqrt())
        assert size == pytest.approx(0.01 * UPDATE_SIZE, rel=0.3)


def test_muon_learns_a_linear_map() -> None:
    torch.manual_seed(0)
    target, weight = torch.randn(16, 8), torch.nn.Parameter(torch.zeros(16, 8))
    muon = Muon([weight], lr=0.1)
    for step in range(300):
        muon.param_groups[0]["lr"] = 0.2 * (1 - step / 300)
        weight.grad = weight.detach() - target
        muon.step()
    assert (weight - target).norm() < 0.05 * target.norm()


def test_each_weight_has_one_optimizer_and_muon_those_that_multiply_states() -> None:
    ghn = GHN(CONFIG)
    names = {id(weight): name for name, weight in ghn.named_parameters()}
    adam, muon = optimizers_of(ghn, "muon", weight_decay=1e-5)
    by_muon = {names[id(weight)] for weight in muon.param_groups[0]["params"]}
    by_adam = {names[id(weight)] for weight in adam.param_groups[0]["params"]}
    assert by_muon | by_adam == set(names.values()) and not by_muon & by_adam
    assert {"gnn.gru.weight_ih", "decoder.weights.channels.weight", "decoder.vectors.mlp.0.weight"} <= by_muon
    assert {"encoder.primitives.weight", "decoder.weights.classes.weight", "gnn.gru.bias_ih"} <= by_adam
    assert adam.param_groups[0]["weight_decay"] == 1e-5
    (published,) = optimizers_of(ghn, "adam", weight_decay=1e-5)
    assert isinstance(published, torch.optim.Adam) and len(published.param_groups[0]["params"]) == len(names)
