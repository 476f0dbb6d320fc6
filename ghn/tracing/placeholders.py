"""Placeholders for the parameters, buffers and recurrent layers of a network that is run only to be recorded.

Private attributes of layers (`_parameters`, `_buffers`, `_all_weights`) were checked with PyTorch 2.14.

Dimensions, of last axes alone, because recurrent layers take the others in several orders: I inputs, H hidden,
G values of all gates, O outputs (H, or fewer with a projection).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AnyTensor = TypeVar("AnyTensor", bound=Tensor)
"""A tensor or a parameter."""


@contextmanager
def placeholders(model: nn.Module, is_meta: bool) -> Iterator[dict[str, nn.Parameter]]:
    """Yield placeholders for the parameters of `model`, by name, while they are in the place of the parameters.

    Inside the context the network is in evaluation mode. After it, every layer is as it was before, even if the forward
    pass has stored something in it.

    Args:
        is_meta: whether placeholders are on the meta device, without numbers; otherwise they are copies on the CPU.
    """
    before = [(layer, dict(layer.__dict__), dict(layer._parameters), dict(layer._buffers)) for layer in model.modules()]
    made: dict[Tensor, Tensor] = {}  # tied tensors have one placeholder

    def in_place_of(tensor: AnyTensor) -> AnyTensor:
        if tensor not in made:
            made[tensor] = _placeholder(tensor, is_meta)
        return cast(AnyTensor, made[tensor])

    names = {name: in_place_of(parameter) for name, parameter in model.named_parameters()}
    try:
        for layer, _, parameters, buffers in before:
            layer._parameters.update({name: in_place_of(t) for name, t in parameters.items() if t is not None})
            layer._buffers.update({name: in_place_of(t) for name, t in buffers.items() if t is not None})
            if isinstance(layer, nn.RNNBase):
                layer.__dict__["forward"] = partial(one_step, layer)
        model.eval()  # only now, because a layer may merge its weights when its mode changes
        yield names
    finally:
        for layer, attributes, parameters, buffers in before:
            layer.__dict__.clear()
            layer.__dict__.update(attributes)
            layer._parameters.clear()
            layer._parameters.update(parameters)
            layer._buffers.clear()
            layer._buffers.update(buffers)


def _placeholder(tensor: Tensor, is_meta: bool) -> Tensor:
    """Return a tensor or parameter of the same shape and type; a parameter of real numbers has a gradient."""
    if not isinstance(tensor, nn.Parameter):
        return tensor.to("meta") if is_meta else tensor.detach().cpu().clone()
    numbers = torch.empty_like(tensor, device="meta") if is_meta else tensor.detach().cpu().clone()
    return nn.Parameter(numbers, requires_grad=tensor.is_floating_point())


def one_step(layer: nn.RNNBase, x_I: Tensor, state: object = None) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
    """Return the results of a recurrent layer as a hypernetwork sees it: one step of its recurrence, at all times.

    The graph of the real forward pass would be as long as its input. Input and results have the shapes of the layer:
    the outputs, and the last state of each layer and direction.
    """
    time = 1 if layer.batch_first and x_I.dim() == 3 else 0
    outputs: list[Tensor] = []
    cells: list[Tensor] = []
    for names in layer._all_weights:  # one list of names for each layer and direction
        weight = {name.partition("_l")[0]: getattr(layer, name) for name in names}
        gates_G = F.linear(x_I, weight["weight_ih"], weight.get("bias_ih"))
        recurrent_O = gates_G[..., : weight["weight_hh"].shape[1]]
        gates_G = gates_G + F.linear(recurrent_O, weight["weight_hh"], weight.get("bias_hh"))
        cell_H = gates_G[..., : layer.hidden_size]
        outputs.append(F.linear(cell_H, weight["weight_hr"]) if "weight_hr" in weight else cell_H)
        cells.append(cell_H)
        if len(outputs) % (2 if layer.bidirectional else 1) == 0:  # the next layer reads both directions
            x_I = torch.cat(outputs[-2:], -1) if layer.bidirectional else outputs[-1]
    last_outputs, last_cells = (torch.stack([h.select(time, -1) for h in states]) for states in (outputs, cells))
    return x_I, (last_outputs, last_cells) if isinstance(layer, nn.LSTM) else last_outputs
