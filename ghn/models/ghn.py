"""The hypernetwork that reads any `nn.Module`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor, nn

from ghn.models.hypernetwork import Hypernetwork
from ghn.models.predict_module import (
    PredictionReport,
    calibration_batches,
    device_of,
    fill_module,
    require_memory,
)
from ghn.networks.graph import Graph
from ghn.networks.graph_batch import GraphBatch
from ghn.networks.network import Network
from ghn.tracing.eager import uncompiled
from ghn.tracing.trace import TRACED_IMAGES, Inputs, TracingError, trace


class GHN(Hypernetwork):
    """A hypernetwork for architectures and for any `nn.Module`."""

    @overload
    def forward(self, batch: GraphBatch) -> list[dict[str, Tensor]]: ...

    @overload
    def forward(self, batch: nn.Module) -> nn.Module: ...

    def forward(self, batch: GraphBatch | nn.Module) -> list[dict[str, Tensor]] | nn.Module:
        """Return for each graph of a batch its predicted parameters by name, with gradients to the hypernetwork.

        A module in place of the batch is filled with predicted parameters (see `predict`) and returned.

        Raises:
            TracingError: the module cannot be traced.
        """
        if isinstance(batch, nn.Module):
            self.predict(batch)
            return batch
        return super().forward(batch)

    def predict_parameters(
        self,
        networks: Sequence[Network | nn.Module | Graph],
        image_size: int | None = None,
        num_classes: int | None = None,
    ) -> list[dict[str, Tensor]]:
        """Return for each network its predicted parameters by name: tensors that carry gradients to the hypernetwork.

        Args:
            networks: graphs, modules, or architectures and all else that compiles to a program.
            image_size: of the target networks, in pixels; by default that of the hypernetwork's training, or for a
                module that which it reads.
            num_classes: of the target networks; by default that of the hypernetwork's training. A module has its own.

        Raises:
            ValueError: a size is impossible.
            TracingError: a module cannot be traced.
        """
        graphs = [self.graph_of(network, image_size, num_classes) for network in networks]
        return super().predict_parameters(graphs)

    def graph_of(self, network: Network | nn.Module | Graph, image_size: int | None, num_classes: int | None) -> Graph:
        """Return the graph of a network; a module is traced, and its class layers of other classes are left out.

        Raises:
            ValueError: a size is impossible.
            TracingError: a module cannot be traced.
        """
        if isinstance(network, nn.Module):
            return self._without_other_classes(trace(network, image_size=image_size))
        return super().graph_of(network, image_size, num_classes)

    def graph(self, model: nn.Module, inputs: Inputs | None = None, image_size: int | None = None) -> Graph:
        """Return the graph of any module: see `ghn.tracing.trace.trace`."""
        return trace(model, inputs, image_size)

    def predict(
        self,
        model: nn.Module,
        inputs: Inputs | None = None,
        image_size: int | None = None,
        predict_class_layers: bool = True,
        calibration_images: Tensor | Iterable[Any] | None = None,
    ) -> PredictionReport:
        """Fill any network with predicted parameters, in place, and report what was done.

        Each parameter is predicted or is in the report with the reason. Afterwards, norm layers that keep running
        statistics use those of each batch, as published, unless new ones are estimated from `calibration_images`.

        Args:
            model: any network whose parameters have memory.
            inputs: what it is called with to be traced: a tensor, tensors in order, or a mapping of keyword arguments.
                By default images are guessed (see `ghn.tracing.trace.trace`).
            image_size: side of the images that it is traced with, in pixels, where there are no inputs.
            predict_class_layers: whether to predict the layers that give the logits (B, classes). Set it to False if
                the classes are not those of the hypernetwork's training. A layer with another number of classes is
                never predicted.
            calibration_images: images (B, C, S, S), or batches of them, or batches of them with labels, normalised as
                the network expects them. Running statistics are estimated from them.

        Raises:
            TracingError: the network cannot be traced.
            ValueError: the network is on the meta device or was made in inference mode, or there are no images.
        """
        model = uncompiled(model)
        require_memory(model)
        batches = None if calibration_images is None else calibration_batches(calibration_images, model)
        with torch.autocast(device_of(model).type, enabled=False):
            if batches is not None:
                first = next(batches)
                batches = chain([first], batches)
                own_graph = trace(model, first[:TRACED_IMAGES])
                graph = own_graph if inputs is None and image_size is None else trace(model, inputs, image_size)
            else:
                graph = trace(model, inputs, image_size)
            if predict_class_layers:
                graph = self._without_other_classes(graph)
            else:
                graph = graph.without_class_layers("classification layer (predict_class_layers=False)")
            with torch.no_grad():
                (predicted,) = self.predict_parameters([graph])
            report = fill_module(model, graph, predicted, batches, lambda: _runs(model, inputs, image_size))
        return replace(report, repeated=self.repeated_weights(graph), rank=self.most_rank)

    def _without_other_classes(self, graph: Graph) -> Graph:
        """Return a traced graph without the classification layers that have another number of classes."""
        classes = self.config.num_classes
        reason = f"classification layer of {{classes}} classes, this hypernetwork predicts {classes}"
        return graph.without_class_layers(reason, of_other_than=classes)


def _runs(model: nn.Module, inputs: Inputs | None, image_size: int | None) -> bool:
    """Return whether a network can be traced."""
    try:
        trace(model, inputs, image_size)
    except TracingError:
        return False
    return True
