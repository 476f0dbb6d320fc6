"""What the commands `ghn predict` and `ghn graph` do with one network."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from ghn import GHN, Graph, TracingError, load, trace
from ghn.checkpoints import CheckpointError
from ghn.zoo import find_network
from pipeline.drawing.plot import FORMATS, draw_graph, save
from pipeline.errors import UserError
from pipeline.images import Images, evaluation_batches, load_images

CALIBRATION_BATCHES = 16
"""Batches of images that running statistics are estimated from."""

BATCH = 64
"""Images a batch."""


def read_hypernetwork(checkpoint: Path) -> GHN:
    """The hypernetwork of a checkpoint folder, or of a file in the published format."""
    try:
        return GHN.from_public_checkpoint(checkpoint) if checkpoint.is_file() else GHN.from_pretrained(checkpoint)
    except CheckpointError as error:
        raise UserError(str(error)) from error


def convert_hypernetwork(checkpoint: Path, out: Path, to_public: bool) -> None:
    """Writes a hypernetwork to a checkpoint folder, or to a file in the published format."""
    ghn = read_hypernetwork(checkpoint)
    try:
        if to_public:
            ghn.to_public_checkpoint(out)
        else:
            ghn.save(out)
    except CheckpointError as error:
        raise UserError(str(error)) from error
    settings = ", ".join(f"{key} {value}" for key, value in ghn.config.to_dict().items())
    print(f"{settings}\nwritten to {out}")


def named_graph(name: str, num_classes: int, image_size: int | None) -> Graph:
    """The graph of a network by its name (see `ghn.list_architectures`)."""
    network = find_network(name)
    if network is not None:
        return network.graph(image_size or 224, num_classes)
    try:
        return trace(_load(name, num_classes, image_size), image_size=image_size)
    except TracingError as error:
        raise UserError(str(error)) from error


def draw_network(name: str, out: Path, num_classes: int, image_size: int | None, virtual_edges: bool) -> None:
    """Draws the graph of a network; the suffix of `out` says how, .svg, .pdf or .png."""
    if out.suffix.lower() not in FORMATS:
        raise UserError(f"{out} is not the name of a picture: must end in {', '.join(FORMATS)}")
    graph = named_graph(name, num_classes, image_size)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(draw_graph(graph, name, virtual_edges), out)
    print(f"{len(graph.nodes)} nodes, written to {out}")


def predict_network(
    name: str,
    checkpoint: Path,
    out: Path,
    num_classes: int | None,
    image_size: int | None,
    class_layers: bool,
    dataset: str | None,
    cache: Path,
) -> None:
    """Predicts the parameters of a network and writes its state to `out` in safetensors.

    Args:
        name: of the network (see `ghn.list_architectures`).
        checkpoint: of the hypernetwork (see `read_hypernetwork`).
        num_classes: by default as many as the hypernetwork knows.
        image_size: in pixels; by default what the network says that it takes, else what the hypernetwork was trained
            with.
        dataset: images (see `load_images`) to estimate running statistics from, and to classify if the network has
            as many classes.
        cache: a folder for the decoded images.
    """
    ghn = read_hypernetwork(checkpoint)
    classes = ghn.config.num_classes if num_classes is None else num_classes
    size = image_size or (ghn.config.image_size if find_network(name) is not None else None)
    model = _load(name, classes, size)
    images = None if dataset is None else load_images(dataset, size or _image_side(model, ghn), cache)
    try:
        report = ghn.predict(
            model,
            image_size=size,
            predict_class_layers=class_layers,
            calibration_images=None if images is None else _calibration(images),
        )
    except TracingError as error:
        raise UserError(str(error)) from error
    _write(model, out)
    print(f"{name}: {report}")
    if report.batch_statistics:
        print("so the file has no running statistics: give --images to estimate them, or load it with strict=False")
    if images is not None and len(images.classes) == classes:
        print(f"top-1 on the {len(images.test)} test images of {images.name}: {_top1(model, images):.1%}")
    print(f"written to {out}")


def _load(name: str, num_classes: int, image_size: int | None) -> nn.Module:
    try:
        return load(name, num_classes, image_size or 224)
    except ValueError as error:
        raise UserError(str(error)) from error


def _image_side(model: nn.Module, ghn: GHN) -> int:
    """The side in pixels of the images that a network says that it takes, else of those of the hypernetwork."""
    settings = getattr(model, "default_cfg", None) or {}
    return (
        settings["input_size"][-1] if "input_size" in settings else getattr(model, "image_size", ghn.config.image_size)
    )


def _calibration(images: Images) -> Iterator[Tensor]:
    for batch, _ in islice(evaluation_batches(images.train, images, BATCH), CALIBRATION_BATCHES):
        yield batch


def _top1(model: nn.Module, images: Images) -> float:
    model.eval()
    with torch.inference_mode():
        right = sum(
            (model(batch).argmax(1) == labels).sum().item()
            for batch, labels in evaluation_batches(images.test, images, BATCH)
        )
    return right / len(images.test)


def _write(model: nn.Module, out: Path) -> None:
    """The state of a network as one safetensors file, whole or not at all; tied parameters are written once."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        save_model(model, f"{scratch}/whole")
        (Path(scratch) / "whole").replace(out)
