"""One pass of the gated graph neural network over its graphs, with its gradient written out.

What needs no message is computed here for all nodes at once. The rest, in which a node waits for those that it hears
from, is the work of a `Schedule`: level by level in PyTorch (`ghn.models.level_schedule`), or node by node in one
kernel (`ghn.models.kernel_schedule`).

Dimensions: N nodes, H hidden, D hidden width of both message MLPs together, K kinds of messages (1: direct; 2: direct
and virtual), R = N·K rows of the message table. Products of letters are written as H·K: HK; 2H and 3H are two and three
gates of the GRU side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PassWeights:
    """Weights of the message MLPs, and of the GRU for what is received."""

    w1_DH: Tensor
    b1_D: Tensor
    w2: Tensor
    """(K·H, D)"""
    b2: Tensor
    """(K·H,)"""
    w_ih: Tensor
    """(3H, H)"""
    b_ih: Tensor
    """(3H,)"""

    @property
    def kinds(self) -> int:
        """K."""
        return len(self.w2) // self.w1_DH.shape[1]


@dataclass(frozen=True, eq=False)
class PassStates:
    """What a pass computes of each node."""

    h_NH: Tensor
    """States before the pass."""
    from_state_N3H: Tensor
    """What the state contributes to the three gates, with its bias."""
    received_NH: Tensor
    gates_N2H: Tensor
    """Reset and update."""
    candidate_NH: Tensor
    updated_NH: Tensor
    """States after the pass."""
    inner_ND: Tensor
    messages_NKH: Tensor

    @classmethod
    def of(cls, h_NH: Tensor, from_state_N3H: Tensor, D: int, kinds: int) -> PassStates:
        """Return the states before a pass; nothing is received yet."""
        N, H = h_NH.shape
        return cls(
            h_NH=h_NH,
            from_state_N3H=from_state_N3H,
            received_NH=h_NH.new_zeros(N, H),
            gates_N2H=h_NH.new_empty(N, 2 * H),
            candidate_NH=torch.empty_like(h_NH),
            updated_NH=torch.empty_like(h_NH),
            inner_ND=h_NH.new_empty(N, D),
            messages_NKH=h_NH.new_empty(N, kinds * H),
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all of them, in the order of the fields."""
        return tuple(vars(self).values())


@dataclass(frozen=True, eq=False)
class PassGradients:
    """The gradients at what a pass computes; `factors_N3H` times the state's is that of the gates' inputs."""

    factors_N3H: Tensor
    """(N, 3, H)"""
    d_state_NH: Tensor
    """At first that of what other operations do with the updated states."""
    d_gates_N3H: Tensor
    """(N, 3, H)"""
    d_received_NH: Tensor
    d_inner_ND: Tensor
    d_messages_NKH: Tensor

    @classmethod
    def of(cls, states: PassStates, d_updated_NH: Tensor) -> PassGradients:
        """Return the gradients before a pass is differentiated; `d_x` is the gradient at `x`."""
        H = states.h_NH.shape[1]
        reset_NH, update_NH = states.gates_N2H[:, :H], states.gates_N2H[:, H:]
        to_candidate_NH = (1 - update_NH) * (1 - states.candidate_NH**2)
        to_reset_NH = to_candidate_NH * states.from_state_N3H[:, 2 * H :] * reset_NH * (1 - reset_NH)
        to_update_NH = (states.h_NH - states.candidate_NH) * update_NH * (1 - update_NH)
        return cls(
            factors_N3H=torch.stack([to_reset_NH, to_update_NH, to_candidate_NH], 1),
            d_state_NH=d_updated_NH.clone(memory_format=torch.contiguous_format),
            d_gates_N3H=d_updated_NH.new_empty(len(d_updated_NH), 3, H),
            d_received_NH=torch.zeros_like(states.h_NH),
            d_inner_ND=torch.zeros_like(states.inner_ND),
            d_messages_NKH=torch.zeros_like(states.messages_NKH),
        )


class Schedule(ABC):
    """In which order a pass updates the nodes of a batch, and what each of them receives."""

    @abstractmethod
    def update(self, states: PassStates, weights: PassWeights) -> None:
        """Write what each node receives, its gates, its updated state and the messages that it sends."""

    @abstractmethod
    def differentiate(self, states: PassStates, weights: PassWeights, gradients: PassGradients) -> None:
        """Write the gradients of all nodes, in the reverse order; `states` are those that `update` has left."""


class Pass(torch.autograd.Function):
    """One pass in the order of a schedule.

    Its gradient is written out because automatic differentiation of hundreds of small in-place steps costs several
    times the steps.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h_NH: Tensor,
        schedule: Schedule,
        w1_DH: Tensor,
        b1_D: Tensor,
        w2: Tensor,  # (K·H, D)
        b2: Tensor,  # (K·H,)
        w_ih: Tensor,  # (3H, H)
        w_hh: Tensor,  # (3H, H)
        b_ih: Tensor,  # (3H,)
        b_hh: Tensor,  # (3H,)
    ) -> Tensor:
        """Return the updated states (N, H); weights and biases are those of the message MLPs and of the GRU."""
        h_NH = h_NH.contiguous()
        weights = PassWeights(w1_DH, b1_D, w2, b2, w_ih, b_ih)
        from_state_N3H = torch.addmm(b_hh, h_NH, w_hh.t())
        states = PassStates.of(h_NH, from_state_N3H, len(w1_DH), weights.kinds)
        schedule.update(states, weights)
        ctx.schedule = schedule
        ctx.save_for_backward(*states.tensors(), w1_DH, b1_D, w2, b2, w_ih, w_hh, b_ih)
        return states.updated_NH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_updated_NH: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients at the arguments of `forward`; `d_x` is the gradient at `x`."""
        *of_nodes, w1_DH, b1_D, w2, b2, w_ih, w_hh, b_ih = ctx.saved_tensors
        states, H = PassStates(*of_nodes), d_updated_NH.shape[1]
        gradients = PassGradients.of(states, d_updated_NH)
        ctx.schedule.differentiate(states, PassWeights(w1_DH, b1_D, w2, b2, w_ih, b_ih), gradients)

        reset_NH, update_NH = states.gates_N2H[:, :H], states.gates_N2H[:, H:]
        d_from_messages_N3H = gradients.d_gates_N3H.view(-1, 3 * H)
        d_from_state_N3H = torch.cat([d_from_messages_N3H[:, : 2 * H], d_from_messages_N3H[:, 2 * H :] * reset_NH], 1)
        d_h_NH = torch.addmm(gradients.d_state_NH * update_NH, d_from_state_N3H, w_hh)
        return (
            d_h_NH,
            None,
            gradients.d_inner_ND.t() @ states.updated_NH,
            gradients.d_inner_ND.sum(0),
            gradients.d_messages_NKH.t() @ states.inner_ND,
            gradients.d_messages_NKH.sum(0),
            d_from_messages_N3H.t() @ states.received_NH,
            d_from_state_N3H.t() @ states.h_NH,
            d_from_messages_N3H.sum(0),
            d_from_state_N3H.sum(0),
        )
