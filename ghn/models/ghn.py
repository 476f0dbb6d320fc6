"""A hypernetwork that reads any `nn.Module`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

from torch import Tensor, nn

from ghn.models.hypernetwork import Hypernetwork
from ghn.models.predict_module import PredictionReport, fill_module
from ghn.networks.graph import Graph
from ghn.networks.graph_batch import GraphBatch
from ghn.networks.network import Network
from ghn.tracing.trace import TRACED_IMAGES, trace


class GHN(Hypernetwork):
    """Predicts all parameters of networks, our own or any `nn.Module`, in one forward pass."""

    @overload
    def forward(self, networks: GraphBatch) -> list[dict[str, Tensor]]: ...

    @overload
    def forward(self, networks: nn.Module) -> nn.Module: ...

    def forward(self, networks: GraphBatch | nn.Module) -> list[dict[str, Tensor]] | nn.Module:
        """Return for each graph of a batch its predicted parameters by name, with gradients to the GHN.

        A network is filled with predicted parameters in place (see `predict`) and returned.
        """
        if isinstance(networks, nn.Module):
            self.predict(networks)
            return networks
        return super().forward(networks)

    def predict_parameters(
        self,
        networks: Sequence[Network | nn.Module | Graph],
        image_size: int | None = None,
        num_classes: int | None = None,
    ) -> list[dict[str, Tensor]]:
        """Return for each network its predicted parameters by name: tensors that carry gradients to the GHN.

        Args:
            networks: architectures and all else that compiles to a program, modules, or graphs.
            image_size: of the target networks, in pixels; by default what the hypernetwork was trained with (a
                module: what it takes).
            num_classes: of the target networks; by default what the hypernetwork was trained with (a module: what
                it has).

        Raises:
            TracingError: a module cannot be traced.
        """
        return super().predict_parameters(networks, image_size, num_classes)

    def graph_of(self, network: Network | nn.Module | Graph, image_size: int | None, num_classes: int | None) -> Graph:
        """Return the graph that is read of a network; a module is traced."""
        if isinstance(network, nn.Module):
            return self._fitting(trace(network, image_size=image_size))
        return super().graph_of(network, image_size, num_classes)

    def graph(
        self, model: nn.Module, inputs: Tensor | Sequence[Tensor] | None = None, image_size: int | None = None
    ) -> Graph:
        """What the hypernetwork sees of any network: see `ghn.tracing.trace.trace`."""
        return trace(model, inputs, image_size)

    def predict(
        self,
        model: nn.Module,
        inputs: Tensor | Sequence[Tensor] | None = None,
        image_size: int | None = None,
        predict_class_layers: bool = True,
        calibration_images: Tensor | Iterable | None = None,
    ) -> PredictionReport:
        """Fills any network with predicted parameters, in place.

        Each parameter is predicted or named in the report with the reason. Norm layers that keep running statistics
        use those of each batch from then on, as published, unless there are images to estimate new ones from.

        Args:
            inputs, image_size: what the network is traced with (see `ghn.tracing.trace.trace`), in case it does not say.
            predict_class_layers: whether to predict the layers that give the logits (B, classes) too; not, if the
                classes are others than those that the hypernetwork was trained on. A layer with another number of
                classes never is.
            calibration_images: (N, C, S, S), or batches of them, normalised as the network is to have them: the
                running statistics are estimated from them.

        Raises:
            TracingError: the network cannot be traced.
        """
        if inputs is None and image_size is None and isinstance(calibration_images, Tensor):
            inputs = calibration_images[:TRACED_IMAGES].to(next(model.parameters()).dtype)
        graph = trace(model, inputs, image_size)
        if predict_class_layers:
            graph = self._fitting(graph)
        else:
            graph = graph.without_class_layers("classification layer (predict_class_layers=False)")
        return fill_module(self, model, graph, calibration_images)

    def _fitting(self, graph: Graph) -> Graph:
        """A traced graph without the classification layers that have another number of classes."""
        classes = self.config.num_classes
        reason = f"classification layer of {{classes}} classes, this hypernetwork predicts {classes}"
        return graph.without_class_layers(reason, of_other_than=classes)
