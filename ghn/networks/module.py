"""The `nn.Module` view of a program: ordinary layers with parameters of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ghn.networks.functional import evaluate, run_operation
from ghn.networks.operations import Operation
from ghn.networks.program import Program


class PositionEncoding(nn.Module):
    """A learned tensor (1, C, P, P) that is added to the stem's output."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self) -> Tensor:
        return self.weight


class ProgramModule(nn.Module):
    """A network for SGD training and fine-tuning, in PyTorch's default initialisation.

    Its parameters have the names and shapes of the program's, so predicted parameters load with
    `load_state_dict`. Images (B, 3, S, S) to logits (B, classes).
    """

    def __init__(self, program: Program):
        super().__init__()
        self.program = program
        self.image_size = program.image_size
        for operation in program.operations:
            if operation.parameters:
                _place(self, _path(operation), LAYERS[operation.kind](operation))

    def forward(self, images: Tensor) -> Tensor:
        return evaluate(self.program, images, self._run, torch.default_generator if self.training else None)

    def _run(self, operation: Operation, inputs: Sequence[Tensor]) -> Tensor:
        if not operation.parameters:
            return run_operation(operation, inputs, ())
        return self.get_submodule(_path(operation))(*inputs)


def _path(operation: Operation) -> str:
    """Where the layer of an operation with parameters is in the module."""
    return operation.parameters[0].name.rpartition(".")[0]


def _conv(operation: Operation) -> nn.Module:
    out, inputs, *kernel = operation.parameters[0].shape
    sh, sw, ph, pw, dilation, groups = operation.settings
    return nn.Conv2d(inputs * groups, out, kernel, (sh, sw), (ph, pw), dilation, groups, bias=False)


def _linear(operation: Operation) -> nn.Module:
    out, inputs = operation.parameters[0].shape
    return nn.Linear(inputs, out, bias=len(operation.parameters) == 2)


LAYERS: dict[str, Callable[[Operation], nn.Module]] = {
    "conv": _conv,
    "linear": _linear,
    "batch_norm": lambda operation: nn.BatchNorm2d(operation.shape[0], track_running_stats=False),
    "layer_norm": lambda operation: nn.LayerNorm(operation.shape[-1]),
    "position_encoding": lambda operation: PositionEncoding(operation.parameters[0].shape),
}


def _place(root: nn.Module, path: str, layer: nn.Module) -> None:
    """Registers `layer` at a dotted path, with plain containers on the way."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, layer)
