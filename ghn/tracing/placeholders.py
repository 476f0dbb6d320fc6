"""Placeholders for the parameters, buffers and recurrent layers of a network that is run only to be recorded.

Private attributes of layers (`_parameters`, `_buffers`, `_all_weights`) were checked with PyTorch 2.14.

Dimensions, of last axes alone, because recurrent layers take the others in several orders: I inputs, H hidden,
G values of all gates, O outputs (H, or fewer with a projection).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from ghn.tracing.snapshot import unchanged

AnyTensor = TypeVar("AnyTensor", bound=Tensor)
"""A tensor or a parameter."""


@contextmanager
def placeholders(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], is_meta: bool
) -> Iterator[dict[str, nn.Parameter]]:
    """Yield placeholders for the parameters of `model`, by name, while they are in the place of the parameters.

    Inside the context the network is in evaluation mode. After it, everything mutable that the network can reach is as
    it was before, even if the forward pass has stored something in it, and so are the random numbers.

    Args:
        parameters: those of the network, by name.
        is_meta: whether placeholders are on the meta device, without numbers; otherwise they are copies on the CPU.
    """
    made: dict[int, Tensor] = {}  # by the tensor's id: tied tensors have one placeholder

    def in_place_of(tensor: AnyTensor) -> AnyTensor:
        if id(tensor) not in made:
            made[id(tensor)] = _placeholder(tensor, is_meta)
        return cast(AnyTensor, made[id(tensor)])

    with unchanged([model, torch.default_generator]):
        names = {name: in_place_of(parameter) for name, parameter in parameters.items()}
        for layer in model.modules():
            if layer._parameters:
                layer._parameters.update(
                    {name: in_place_of(t) for name, t in layer._parameters.items() if t is not None}
                )
            if layer._buffers:
                layer._buffers.update({name: in_place_of(t) for name, t in layer._buffers.items() if t is not None})
            forget_cached_properties(layer)
            if isinstance(layer, nn.RNNBase):
                layer.__dict__["forward"] = partial(one_step, layer)
        with suppress(NotImplementedError):  # a module of torch.export has no modes
            model.train()  # layers drop what they have computed from their parameters for evaluation
            model.eval()  # only now, because a layer may merge its weights when its mode changes
        yield names


def forget_cached_properties(layer: nn.Module) -> None:
    """Let a layer compute its cached properties again, because they may be made of parameters."""
    for base in type(layer).__mro__:
        if base is nn.Module:
            break
        for name, value in vars(base).items():
            if isinstance(value, cached_property):
                layer.__dict__.pop(name, None)


def _placeholder(tensor: Tensor, is_meta: bool) -> Tensor:
    """Return a tensor or parameter of the same shape, number type, class and attributes.

    A parameter of real numbers has a gradient.
    """
    with torch._C.DisableTorchFunctionSubclass():
        numbers = torch.empty_like(tensor, device="meta") if is_meta else tensor.detach().cpu().clone()
    if not isinstance(tensor, nn.Parameter):
        return numbers
    made = Tensor._make_subclass(type(tensor), numbers.as_subclass(Tensor), tensor.is_floating_point())
    made.__dict__.update(tensor.__dict__)
    return made


def one_step(
    layer: nn.RNNBase, x_I: Tensor | PackedSequence, state: Tensor | tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor | PackedSequence, Tensor | tuple[Tensor, Tensor]]:
    """Return the results of a recurrent layer as a hypernetwork sees it: one step of its recurrence, at all times.

    The graph of the real forward pass would be as long as its input. Input and results have the shapes of the layer:
    the outputs, and the last state of each layer and direction. A state that it starts from is added to the first
    outputs that it recurs on.
    """
    if isinstance(x_I, PackedSequence):
        return _one_step_of_packed(layer, x_I, state)
    time = 1 if layer.batch_first and x_I.dim() == 3 else 0
    hidden = state[0] if isinstance(state, tuple) else state
    outputs: list[Tensor] = []
    cells: list[Tensor] = []
    for number, names in enumerate(layer._all_weights):  # one list of names for each layer and direction
        weight = {name.partition("_l")[0]: getattr(layer, name) for name in names}
        gates_G = F.linear(x_I, weight["weight_ih"], weight.get("bias_ih"))
        recurrent_O = gates_G[..., : weight["weight_hh"].shape[1]]
        if hidden is not None:
            recurrent_O = recurrent_O + hidden[number].unsqueeze(time)
        gates_G = gates_G + F.linear(recurrent_O, weight["weight_hh"], weight.get("bias_hh"))
        cell_H = gates_G[..., : layer.hidden_size]
        if isinstance(state, tuple):
            cell_H = cell_H + state[1][number].unsqueeze(time)
        outputs.append(F.linear(cell_H, weight["weight_hr"]) if "weight_hr" in weight else cell_H)
        cells.append(cell_H)
        if len(outputs) % (2 if layer.bidirectional else 1) == 0:  # the next layer reads both directions
            x_I = torch.cat(outputs[-2:], -1) if layer.bidirectional else outputs[-1]
    last_outputs, last_cells = (torch.stack([h.select(time, -1) for h in states]) for states in (outputs, cells))
    return x_I, (last_outputs, last_cells) if isinstance(layer, nn.LSTM) else last_outputs


def _one_step_of_packed(
    layer: nn.RNNBase, packed: PackedSequence, state: Tensor | tuple[Tensor, Tensor] | None
) -> tuple[PackedSequence, Tensor | tuple[Tensor, Tensor]]:
    """Return the results of `one_step` for sequences of different lengths, whose elements lie behind one another."""
    sequences = int(packed.batch_sizes[0])
    elements_I = packed.data[None] if layer.batch_first else packed.data[:, None]
    common = None if state is None else _each(state, lambda h_H: h_H.mean(1, keepdim=True))
    results_O, last = one_step(layer, elements_I, common)
    assert isinstance(results_O, Tensor)
    data = results_O[0] if layer.batch_first else results_O[:, 0]
    return packed._replace(data=data), _each(last, lambda h_H: h_H.expand(-1, sequences, -1))


def _each(state: Tensor | tuple[Tensor, Tensor], change: Callable[[Tensor], Tensor]) -> Tensor | tuple[Tensor, Tensor]:
    """Return the state of a recurrent layer with its one or two tensors changed."""
    return change(state) if isinstance(state, Tensor) else (change(state[0]), change(state[1]))
