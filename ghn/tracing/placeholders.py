"""A network that is run only to be recorded: stand-ins for its parameters, buffers and recurrent layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@contextmanager
def placeholders(model: nn.Module, is_meta: bool) -> Iterator[dict[str, nn.Parameter]]:
    """Puts `model` in evaluation mode, with stand-ins in the place of its parameters, which it gives by name.

    Afterwards every layer is as it was, whatever the forward pass kept in it.

    Args:
        is_meta: stand-ins without numbers, on the meta device; else with the network's own, on the CPU.
    """
    before = [(layer, dict(layer.__dict__), dict(layer._parameters), dict(layer._buffers)) for layer in model.modules()]
    place: dict[Tensor, Tensor] = {}

    def in_place_of(tensor: Tensor) -> Tensor:
        if tensor not in place:
            place[tensor] = _stand_in(tensor, is_meta)
        return place[tensor]

    names = {name: in_place_of(parameter) for name, parameter in model.named_parameters()}
    try:
        for layer, _, parameters, buffers in before:
            layer._parameters.update({name: in_place_of(t) for name, t in parameters.items() if t is not None})
            layer._buffers.update({name: in_place_of(t) for name, t in buffers.items() if t is not None})
            if isinstance(layer, nn.RNNBase):
                layer.__dict__["forward"] = partial(one_step, layer)
        model.eval()  # only now: a layer may merge weights when its mode changes
        yield names
    finally:
        for layer, attributes, parameters, buffers in before:
            layer.__dict__.clear()
            layer.__dict__.update(attributes)
            layer._parameters.clear()
            layer._parameters.update(parameters)
            layer._buffers.clear()
            layer._buffers.update(buffers)


def _stand_in(tensor: Tensor, is_meta: bool) -> Tensor:
    if not isinstance(tensor, nn.Parameter):
        return tensor.to("meta") if is_meta else tensor.detach().cpu().clone()
    numbers = torch.empty_like(tensor, device="meta") if is_meta else tensor.detach().cpu().clone()
    return nn.Parameter(numbers, requires_grad=tensor.is_floating_point())


def one_step(layer: nn.RNNBase, x: Tensor, state: object = None) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
    """What a recurrent layer looks like to a hypernetwork: one step of its recurrence, for all steps at once.

    The graph of its real forward pass would be as long as its input. `x` and the results have the shapes that the
    layer takes and gives: the outputs, and the last state of each layer and direction.
    """
    time = 1 if layer.batch_first and x.dim() == 3 else 0
    hidden, cells = [], []
    for names in layer._all_weights:  # of each layer and direction
        weight = {name.partition("_l")[0]: getattr(layer, name) for name in names}
        gates = F.linear(x, weight["weight_ih"], weight.get("bias_ih"))
        recurrent = gates[..., : weight["weight_hh"].shape[1]]
        gates = gates + F.linear(recurrent, weight["weight_hh"], weight.get("bias_hh"))
        cell = gates[..., : layer.hidden_size]
        hidden.append(F.linear(cell, weight["weight_hr"]) if "weight_hr" in weight else cell)
        cells.append(cell)
        if len(hidden) % (2 if layer.bidirectional else 1) == 0:
            x = torch.cat(hidden[-2:], -1) if layer.bidirectional else hidden[-1]
    last_hidden, last_cells = (torch.stack([h.select(time, -1) for h in states]) for states in (hidden, cells))
    return x, (last_hidden, last_cells) if isinstance(layer, nn.LSTM) else last_hidden
