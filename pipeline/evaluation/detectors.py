"""Faster R-CNN (Ren et al., NeurIPS 2015) on a classification network as backbone.

The backbone is a network that a hypernetwork predicts parameters for: a ResNet of torchvision, or an architecture of
the store. All other parts begin at random.

Dimensions: B images, C channels, Y×X pixels of a feature map, S pixels of the side that pictures are scaled to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from ghn.models.ghn import GHN
from ghn.networks.module import ProgramModule
from ghn.networks.network import Network
from pipeline.evaluation.checkpoint import trained_as
from pipeline.evaluation.post_processing import orthogonalised

RESNETS = ("resnet18", "resnet34", "resnet50")
"""The backbones of torchvision."""

STAGES = {f"layer{number}": str(number) for number in range(1, 5)}
"""The parts of a ResNet whose results are feature maps."""

FINEST_STRIDE = 4
"""Feature maps with a smaller stride have too many places for boxes."""

PYRAMID_CHANNELS = 64
HEAD_CHANNELS = 256
ROI_SIZE = 5
MOST_DETECTIONS = 30
PROPOSALS = 200
ANCHORS_PER_STRIDE = 4
"""The side of a box that a place of a feature map proposes, in strides."""


class Backbone(nn.Module):
    """Feature maps of a network, by name, from fine to coarse: all of them in a pyramid, or the coarsest alone.

    Args:
        network: gives feature maps (B, C, Y, X) by name, from fine to coarse; those of smaller strides than
            `FINEST_STRIDE` are left out, unless all are.
        size: S, the side of the images.
        pyramid: whether the maps go through a feature pyramid network (Lin et al., CVPR 2017).
    """

    def __init__(self, network: Callable[[Tensor], Mapping[str, Tensor]], size: int, pyramid: bool):
        super().__init__()
        self.network = network
        maps = self._probe(size)
        self.names = tuple(maps) if pyramid else tuple(maps)[-1:]
        self.strides = tuple(size // maps[name].shape[-1] for name in self.names)
        channels = [maps[name].shape[1] for name in self.names]
        self.pyramid = FeaturePyramidNetwork(channels, PYRAMID_CHANNELS) if pyramid else None
        self.out_channels = PYRAMID_CHANNELS if pyramid else channels[0]

    @torch.no_grad()
    def _probe(self, size: int) -> dict[str, Tensor]:
        maps = self.network(torch.zeros(2, 3, size, size))
        coarse = {name: found for name, found in maps.items() if size // found.shape[-1] >= FINEST_STRIDE}
        return coarse or dict(list(maps.items())[-1:])

    def forward(self, images_BCSS: Tensor) -> dict[str, Tensor]:
        """Return the feature maps (B, C, Y, X) of images (B, 3, S, S)."""
        maps = self.network(images_BCSS)
        chosen = {name: maps[name] for name in self.names}
        result: dict[str, Tensor] = chosen if self.pyramid is None else self.pyramid(chosen)
        return result


class ArchitectureMaps(nn.Module):
    """The feature maps of an architecture's module, by the names that `Backbone` wants."""

    def __init__(self, module: ProgramModule):
        super().__init__()
        self.module = module

    def forward(self, images_BCSS: Tensor) -> dict[str, Tensor]:
        """Return the last feature map of each width, from fine to coarse."""
        return {str(width): found for width, found in self.module.feature_maps(images_BCSS).items()}


def backbone_module(backbone: str | Network, size: int, seed: int) -> nn.Module:
    """Return a classification network in PyTorch's default initialisation, which is a function of `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(backbone, str):
            module: nn.Module = torchvision.models.get_model(backbone, weights=None)
            return module
        return backbone.module(size, 10)  # the class layer is not used


def initialise(module: nn.Module, name: str, backbone: str | Network, ghn: GHN, size: int) -> None:
    """Give a classification network the parameters of an initialisation; for `random` it stays as it is.

    Args:
        name: `random`, `predicted`, `predicted_orthogonal`, or `pretrained`.
        backbone: what the module was made of.
        ghn: the hypernetwork that predicts.
        size: S, the side of its images.

    Raises:
        ValueError: the name is unknown, or this machine has no checkpoint for `pretrained`.
    """
    if name == "random":
        return
    if name == "pretrained" and (file := pretrained_file(str(backbone))) is not None:
        module.load_state_dict(torch.load(file, weights_only=True))
        return
    if name not in ("predicted", "predicted_orthogonal"):
        raise ValueError(f"initialisation {name}: there is no such one, or this machine has no file of it")
    with torch.no_grad():
        network = module if isinstance(backbone, str) else backbone
        (tensors,) = ghn.predict_parameters([network], size)
        if name == "predicted_orthogonal":
            tensors = orthogonalised(tensors)
        *body, _, _ = module.named_parameters()  # the class layer comes last, and detectors do not use it
        for parameter, values in body:
            values.copy_(tensors[parameter])


def trained_ghn_of_modules() -> tuple[GHN, str]:
    """Return the trained hypernetwork as one that predicts for any `nn.Module`, and a digest of its checkpoint.

    Raises:
        UserError: a file is missing or damaged; the message names it.
    """
    return trained_as(GHN)


def pretrained_file(backbone: str) -> Path | None:
    """Return the file of torchvision's checkpoint for a ResNet, if this machine has it; nothing is downloaded."""
    weights = torchvision.models.get_model_weights(backbone).DEFAULT
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    return path if path.is_file() else None


def detector(
    module: nn.Module,
    size: int,
    classes: int,
    pyramid: bool,
    mean: Sequence[float],
    std: Sequence[float],
) -> FasterRCNN:
    """Return Faster R-CNN on a classification network, for square pictures.

    Args:
        module: the network, a ResNet or the module of a program; it becomes a part of the detector.
        size: S, the side that pictures are scaled to, in pixels.
        classes: of objects.
        pyramid: whether a feature pyramid joins the feature maps.
        mean, std: of the channels, on a scale of 0..1.
    """
    maps = ArchitectureMaps(module) if isinstance(module, ProgramModule) else create_feature_extractor(module, STAGES)
    backbone = Backbone(maps, size, pyramid)
    names = list(backbone.names)
    anchors = AnchorGenerator(
        tuple((ANCHORS_PER_STRIDE * stride,) for stride in backbone.strides)
        if pyramid
        else ((size // 6, size // 4, size // 2),),
        ((0.5, 1.0, 2.0),) * len(names),
    )
    return FasterRCNN(
        backbone,
        min_size=size,
        max_size=size,
        image_mean=list(mean),
        image_std=list(std),
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=2 * PROPOSALS,
        rpn_pre_nms_top_n_test=2 * PROPOSALS,
        rpn_post_nms_top_n_train=PROPOSALS,
        rpn_post_nms_top_n_test=PROPOSALS,
        box_roi_pool=MultiScaleRoIAlign(names, ROI_SIZE, sampling_ratio=2),
        box_head=TwoMLPHead(backbone.out_channels * ROI_SIZE**2, HEAD_CHANNELS),
        box_predictor=FastRCNNPredictor(HEAD_CHANNELS, classes + 1),
        box_batch_size_per_image=64,
        rpn_batch_size_per_image=64,
        box_detections_per_img=MOST_DETECTIONS,
    )
