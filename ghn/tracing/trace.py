"""Tracing: the graph of any `nn.Module`, from one forward pass that computes nothing.

The network runs on PyTorch's meta device, where tensors have shapes but no numbers. So a trace takes milliseconds and
no memory, however large the network is. Autograd records the functions, and `ghn.tracing.recorder` turns them into
primitives. A network that needs numbers to run (a branch on a value, tensors that are not registered) runs on the CPU
instead, with the same result.

Inputs have any number of axes here, so their names have no dimension suffixes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence, ValuesView
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ghn.networks.graph import Graph
from ghn.tracing.autograd_functions import Function, call_order, inputs_of, leaf_of
from ghn.tracing.placeholders import placeholders
from ghn.tracing.recorder import CONSTANT, GraphRecorder, Value
from ghn.tracing.shape_only import ShapeOnly

CANDIDATE_IMAGE_SIZES = (224, 32, 28, 64, 96, 128, 160, 192, 256, 288, 299, 320, 384, 448, 512)
"""Sides of images, in pixels, that are tried in this order on a network that does not say which images it takes."""

TRACED_IMAGES = 2
"""Images in the traced batch: norms with batch statistics need more than one."""

CPU_ATTEMPTS = 3
"""Most inputs that are tried on the CPU, where a forward pass takes as long as the network does."""


class TracingError(ValueError):
    """A network that cannot be run or has an output without parameters; the message says what was tried."""


def trace(model: nn.Module, inputs: Tensor | Sequence[Tensor] | None = None, image_size: int | None = None) -> Graph:
    """Return the graph of a network in evaluation mode.

    Each parameter of `model.named_parameters()` is on exactly one node, or in the graph's `not_predicted`.

    Args:
        inputs: the inputs that the network is called with; by default images with as many channels as its first layer
            takes.
        image_size: side of those images, in pixels; by default what the network says (`image_size`, or timm's
            `default_cfg`), otherwise the first of `CANDIDATE_IMAGE_SIZES` with which the network runs.

    Raises:
        TracingError: the network does not run on these inputs, or no output depends on a parameter.
    """
    if any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()):
        raise TracingError("the network has lazy layers: run it once on an image before it is traced")
    if any(isinstance(layer, torch.jit.ScriptModule) for layer in model.modules()):
        raise TracingError("the network is scripted, or a part of it: give the module that it was made from")
    tensors = [inputs] if isinstance(inputs, Tensor) else inputs
    if tensors is not None and not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise TracingError("inputs must be a tensor, or a sequence of tensors")
    error: Exception | None = None
    for attempt, is_meta in _attempts(model, tensors, image_size):
        try:
            run = _record(model, attempt, is_meta)
        except Exception as failure:  # a network may fail in any way on images of a size that is not its own
            error = error or failure
        else:
            return _graph_of(run)
    tried = [str(tuple(tensor.shape)) for tensor in (_images(model, image_size) if tensors is None else tensors)]
    shapes = ", ".join(tried[:3]) + (f" or {len(tried) - 3} others" if len(tried) > 3 else "")
    reason = next(iter(str(error).splitlines()), "")
    raise TracingError(
        f"{type(model).__name__} does not run on inputs of {shapes} ({type(error).__name__}: {reason}): "
        "give `inputs` or `image_size`"
    ) from error


def _attempts(
    model: nn.Module, inputs: Sequence[Tensor] | None, image_size: int | None
) -> Iterator[tuple[list[Tensor], bool]]:
    """Yield inputs to try, and whether on the meta device: all of them there first, then some on the CPU.

    A network that is on the meta device itself has no numbers and is not tried on the CPU.
    """
    candidates = [[images] for images in _images(model, image_size)] if inputs is None else [list(inputs)]
    for tensors in candidates:
        yield [tensor.to("meta") for tensor in tensors], True
    if not any(p.is_meta for p in model.parameters()):
        for tensors in candidates[:CPU_ATTEMPTS]:
            yield [torch.zeros(t.shape, dtype=t.dtype) if t.is_meta else t.cpu() for t in tensors], False


def _images(model: nn.Module, image_size: int | None) -> list[Tensor]:
    """Return batches of images on the meta device that the network may take, the most likely first."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    declared = declared_shape(model)
    shapes: list[tuple[int, ...]] = []
    sides: Sequence[int] = CANDIDATE_IMAGE_SIZES
    if image_size is not None:
        sides = (image_size,)
    elif declared is not None:
        shapes, sides = [declared], (declared[-1], *sides)
    shapes += [_shape_for(model, side) for side in sides] + [(3, side, side) for side in sides]
    return [torch.empty(TRACED_IMAGES, *shape, dtype=dtype, device="meta") for shape in dict.fromkeys(shapes)]


def declared_shape(model: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of the images that a network says that it takes: (channels, height, width)."""
    for name in ("pretrained_cfg", "default_cfg"):
        settings = getattr(model, name, None)
        if isinstance(settings, Mapping) and settings.get("input_size"):
            return tuple(settings["input_size"])
    size = getattr(model, "image_size", None)
    return (3, size, size) if isinstance(size, int) else None


def _shape_for(model: nn.Module, size: int) -> tuple[int, ...]:
    """Return the shape of an image with sides of `size` pixels and the channels of the first layer with weights."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    first = next((layer for layer in model.modules() if isinstance(layer, kinds)), None)
    if first is None:
        return 3, size, size
    if isinstance(first, nn.Linear):
        return (first.in_features,)
    sides = {nn.Conv1d: (size,), nn.Conv2d: (size, size), nn.Conv3d: (16, size, size)}
    return first.in_channels, *next(side for kind, side in sides.items() if isinstance(first, kind))


class Recording(NamedTuple):
    """A recorded forward pass."""

    parameters: Mapping[str, Tensor]
    """Placeholders of the parameters by name."""
    originals: Mapping[str, Tensor]
    """The network's own parameters by name."""
    inputs: Sequence[Tensor]
    """Leaf tensors that the inputs were made from."""
    outputs: Sequence[Tensor]
    """All tensors that the network returned."""


def _record(model: nn.Module, inputs: Sequence[Tensor], is_meta: bool) -> Recording:
    """Run the network once with placeholders; return what autograd has recorded."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
        originals = dict(model.named_parameters())
        arguments = [t.clone() for t in leaves]  # a network may write into its inputs
        device = torch.device("meta" if is_meta else "cpu")
        with placeholders(model, is_meta) as parameters, device, ShapeOnly() if is_meta else nullcontext():
            return Recording(parameters, originals, leaves, list(_tensors(model(*arguments))))


def _graph_of(run: Recording) -> Graph:
    """Return the graph of a recorded forward pass.

    Raises:
        TracingError: no output depends on the input or a parameter.
    """
    outputs = [tensor for tensor in run.outputs if tensor.grad_fn is not None]
    if not outputs:
        raise TracingError("no output of the network depends on its input or its parameters")
    recorder = GraphRecorder({name: tuple(p.shape) for name, p in run.parameters.items()})
    for name, parameter in run.parameters.items():
        if not parameter.is_floating_point():
            recorder.not_predicted[name] = f"its elements are {parameter.dtype}, not real numbers"
    values: dict[int, Value] = {id(t): recorder.image() for t in run.inputs if t.requires_grad}
    for parameters in (run.originals, run.parameters):  # a network may also keep the originals elsewhere
        values |= {id(p): recorder.parameter(name) for name, p in parameters.items()}
    ends = _replay(recorder, [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None], values)
    return recorder.finish(ends, classifies=all(tensor.dim() == 2 for tensor in outputs))


def _replay(recorder: GraphRecorder, ends: Sequence[Function], leaves: Mapping[int, Value]) -> list[Value]:
    """Apply the recorder to all functions that lead to `ends`, in the order of their calls; return the ends' values.

    Args:
        leaves: values of inputs and parameters, by the id of the tensor.
    """
    functions: dict[Function, list[Function | None]] = {}
    waiting = list(ends)
    while waiting:
        function = waiting.pop()
        if function not in functions:
            functions[function] = inputs_of(function)
            waiting += [source for source in functions[function] if source is not None]
    values: dict[Function | None, Value] = {None: CONSTANT}

    def value_of(function: Function | None) -> Value:
        if function is not None and function not in values:
            inputs = [value_of(source) for source in functions[function]]
            leaf = leaf_of(function)
            values[function] = recorder.apply(function, inputs) if leaf is None else leaves.get(id(leaf), CONSTANT)
        return values[function]

    for function in sorted(functions, key=call_order):
        value_of(function)
    return [value_of(function) for function in ends]


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """Yield all tensors in the outputs of a network, which may be nested in lists, mappings and dataclasses."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        outputs = outputs.values()
    elif dataclasses.is_dataclass(outputs):
        outputs = [getattr(outputs, field.name) for field in dataclasses.fields(outputs)]
    if isinstance(outputs, (list, tuple, ValuesView)):
        for output in outputs:
            yield from _tensors(output)
