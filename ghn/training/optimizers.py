"""The optimizers of hypernetworks by name: Adam, as published, and Muon.

Dimensions: A×B rows and columns of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from ghn.models.hypernetwork import Hypernetwork

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the polynomial whose iteration moves all singular values close to 1."""

ITERATIONS = 5
"""Times that the polynomial is applied."""

UPDATE_SIZE = 1 / 3
"""Root mean square of an update at a learning rate of 1. With this size the best learning rate is also that of Adam."""


class Muon(torch.optim.Optimizer):
    """Muon: momentum whose singular values are all made about 1, for weights with two axes.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the size of its updates: Liu
    et al., "Muon is Scalable for LLM Training", 2025, section 2.2. PyTorch's own computes in bfloat16, which takes
    seconds a step on processors without it.
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: float = 1e-3, momentum: float = 0.95):
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update each weight that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return loss

    def _update(self, weight_AB: Tensor, gradient_AB: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight_AB]
        if not state:
            state["momentum"] = torch.zeros_like(weight_AB)
        momentum_AB = state["momentum"].lerp_(gradient_AB, 1 - group["momentum"])
        update_AB = orthogonalised(gradient_AB.lerp(momentum_AB, group["momentum"]))
        weight_AB.add_(update_AB, alpha=-group["lr"] * UPDATE_SIZE * max(weight_AB.shape) ** 0.5)


def orthogonalised(matrix_AB: Tensor) -> Tensor:
    """Return the matrix (A, B) with its singular values moved to 0.7 to 1.2; the smallest ones stay below.

    The iteration X ← X · p(XᵀX) stays X₀ · Q, where Q commutes with X₀ᵀX₀. So only Q and XᵀX are iterated, which are
    small, where B is less than A.
    """
    rows, columns = matrix_AB.shape
    if rows < columns:
        transposed_BA: Tensor = orthogonalised(matrix_AB.T)
        return transposed_BA.T
    x_AB = matrix_AB / matrix_AB.norm().clamp(min=torch.finfo(matrix_AB.dtype).tiny)
    first, second, third = NEWTON_SCHULZ
    gram_BB = x_AB.T @ x_AB
    identity_BB = torch.eye(columns, dtype=x_AB.dtype, device=x_AB.device)
    product_BB = identity_BB
    for _ in range(ITERATIONS):
        factor_BB = first * identity_BB + second * gram_BB + third * gram_BB @ gram_BB
        product_BB = product_BB @ factor_BB
        gram_BB = factor_BB @ gram_BB @ factor_BB
    result_AB: Tensor = x_AB @ product_BB
    return result_AB


def optimizers_of(ghn: Hypernetwork, name: str, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a hypernetwork's weights, whose learning rates are the same.

    With Muon, embeddings, biases, norms and class layers have Adam.

    Args:
        name: `adam` or `muon`.
        weight_decay: of Adam, an L2 penalty.
    """
    if name == "adam":
        return [torch.optim.Adam(ghn.parameters(), weight_decay=weight_decay)]
    hidden = [weight for key, weight in ghn.named_parameters() if _is_hidden(key, weight)]
    others = [weight for key, weight in ghn.named_parameters() if not _is_hidden(key, weight)]
    return [torch.optim.Adam(others, weight_decay=weight_decay), Muon(hidden)]


def _is_hidden(name: str, weight: Tensor) -> bool:
    """Return whether a weight multiplies states: not an embedding, a vector or the last layer before class scores."""
    return weight.dim() == 2 and not name.startswith("encoder.") and ".classes." not in name
