"""The `nn.Module` view of a program: ordinary layers with their own parameters.

Dimensions: B images or texts, C channels, S×S pixels of the input, P×P pixels of the stem's output, T tokens, K classes
or tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ghn.networks.functional import evaluate, run_operation
from ghn.networks.operations import Operation
from ghn.networks.program import Program

TABLE_DEVIATION = 0.02
"""Standard deviation of random tables of tokens and of their positions, as in GPT-2. That of PyTorch, 1, would give
tied networks logits of the size of their width."""


class PositionEncoding(nn.Module):
    """A learned tensor (1, C, P, P) or (T, C), which the next operation adds to the stem's output or to tokens."""

    def __init__(self, shape: tuple[int, ...], deviation: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(deviation * torch.randn(shape))

    def forward(self) -> Tensor:
        """Return the tensor."""
        return self.weight


class ProgramModule(nn.Module):
    """A network for SGD training and fine-tuning, in PyTorch's default initialisation, but for tables of tokens.

    Its parameters have the names and shapes of the program's, so that predicted parameters load with
    `load_state_dict`.
    """

    def __init__(self, program: Program):
        super().__init__()
        self.program = program
        self.image_size = program.image_size
        self._layer_of: dict[str, str] = {}  # the kind of operation that placed the layer at each path
        for operation in program.operations:
            if operation.parameters and _path(operation) not in self._layer_of:
                self._layer_of[_path(operation)] = operation.kind
                _place(self, _path(operation), LAYERS[operation.kind](operation))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, K) of images (B, 3, S, S), or (B, T, K) of texts (B, T), int64.

        There is dropout in training mode only.
        """
        return evaluate(self.program, inputs, self._run, torch.default_generator if self.training else None)

    def feature_maps(self, images_BCSS: Tensor) -> dict[int, Tensor]:
        """Return the last feature map (B, C, Y, X) of each width X, by X, largest first; none of a single pixel."""
        maps: dict[int, Tensor] = {}

        def run_and_keep(operation: Operation, inputs: Sequence[Tensor]) -> Tensor:
            result = self._run(operation, inputs)
            if result.ndim == 4 and operation.kind != "position_encoding" and min(result.shape[2:]) > 1:
                maps[result.shape[-1]] = result
            return result

        evaluate(self.program, images_BCSS, run_and_keep, torch.default_generator if self.training else None)
        return dict(sorted(maps.items(), reverse=True))

    def _run(self, operation: Operation, inputs: Sequence[Tensor]) -> Tensor:
        if not operation.parameters:
            return run_operation(operation, inputs, ())
        if operation.kind != self._layer_of[_path(operation)]:  # it shares the parameters of another kind of layer
            return run_operation(operation, inputs, [self.get_parameter(p.name) for p in operation.parameters])
        result: Tensor = self.get_submodule(_path(operation))(*inputs)
        return result


def _path(operation: Operation) -> str:
    """Return the dotted path in the module of the layer of an operation with parameters."""
    return operation.parameters[0].name.rpartition(".")[0]


def _conv(operation: Operation) -> nn.Module:
    out, inputs, height, width = operation.parameters[0].shape
    sh, sw, ph, pw, dilation, groups = operation.settings
    return nn.Conv2d(inputs * groups, out, (height, width), (sh, sw), (ph, pw), dilation, groups, bias=False)


def _linear(operation: Operation) -> nn.Module:
    out, inputs = operation.parameters[0].shape
    return nn.Linear(inputs, out, bias=len(operation.parameters) == 2)


def _embedding(operation: Operation) -> nn.Module:
    vocabulary, width = operation.parameters[0].shape
    table = nn.Embedding(vocabulary, width)
    nn.init.normal_(table.weight, std=TABLE_DEVIATION)
    return table


def _position_encoding(operation: Operation) -> nn.Module:
    (table,) = operation.parameters
    return PositionEncoding(table.shape, TABLE_DEVIATION if table.axis_order == "tokens" else 1.0)


LAYERS: dict[str, Callable[[Operation], nn.Module]] = {
    "conv": _conv,
    "linear": _linear,
    "batch_norm": lambda operation: nn.BatchNorm2d(operation.shape[0], track_running_stats=False),
    "layer_norm": lambda operation: nn.LayerNorm(operation.shape[-1]),
    "embedding": _embedding,
    "position_encoding": _position_encoding,
}
"""The layer of each kind of operation with parameters, in PyTorch's default initialisation."""


def _place(root: nn.Module, path: str, layer: nn.Module) -> None:
    """Register a layer at a dotted path, in plain containers for all but its last name."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, layer)
