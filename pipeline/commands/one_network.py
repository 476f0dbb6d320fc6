"""Commands about one network, and about files of hypernetworks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from ghn import (
    GHN,
    CheckpointError,
    Graph,
    Network,
    PredictionReport,
    TracingError,
    declared_shape,
    find_network,
    list_architectures,
    load,
    trace,
    write_predicted,
)
from pipeline.console import progress_bar
from pipeline.errors import UserError
from pipeline.evaluation.scores import score
from pipeline.images.batches import evaluation_batches
from pipeline.images.dataset import Images
from pipeline.images.load import load_cached_images
from pipeline.reporting.graph_pictures.export import PICTURE_SUFFIXES, save
from pipeline.reporting.graph_pictures.render import render_graph

CALIBRATION_BATCHES = 16
"""Number of batches of images that running statistics are estimated from."""

BATCH = 64
"""Number of images in a batch."""


@contextmanager
def as_user_error() -> Iterator[None]:
    """Raise errors of checkpoints and of tracing, which the user can correct, as UserError with the same message."""
    try:
        yield
    except (CheckpointError, TracingError) as error:
        raise UserError(str(error)) from error


def print_names(pattern: str) -> None:
    """Print the names of architectures that match a shell pattern.

    Raises:
        UserError: no name matches.
    """
    names = list_architectures(pattern)
    if not names:
        raise UserError(f"no architecture is called {pattern!r}")
    print("\n".join(names))


def require_file_name(out: Path) -> None:
    """Make the folder of a file that will be written.

    Raises:
        UserError: there can be no such file.
    """
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: must be the name of a file")
    require_folder_of(out)


def require_folder_of(out: Path) -> None:
    """Make the folder of a file or folder that will be written.

    Raises:
        UserError: the folder cannot be made.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from error


def read_hypernetwork(checkpoint: str) -> GHN:
    """Return the hypernetwork of a checkpoint folder, or of a file in the published format, on this machine or the hub.

    Raises:
        UserError: there is no such file or folder, or it cannot be read.
    """
    with as_user_error():
        if checkpoint.startswith("hf://"):
            return GHN.from_pretrained(checkpoint)
        path = Path(checkpoint)
        if not path.exists():
            raise UserError(
                f"{checkpoint} not found: must be a checkpoint folder, a file in the published format, or hf://owner/name"
            )
        return GHN.from_public_checkpoint(path) if path.is_file() else GHN.from_pretrained(path)


def import_hypernetwork(file: str, out: Path) -> None:
    """Write a hypernetwork in the published format to a checkpoint folder."""
    require_folder_of(out)
    with as_user_error():
        ghn = read_hypernetwork(file)
        ghn.save(out)
    print(f"{_settings(ghn)}\nwritten to {out}")


def export_hypernetwork(checkpoint: str, out: Path) -> None:
    """Write the hypernetwork of a checkpoint folder to a file in the published format."""
    require_file_name(out)
    with as_user_error():
        ghn = read_hypernetwork(checkpoint)
        ghn.to_public_checkpoint(out)
    print(f"{_settings(ghn)}\nwritten to {out}")


def _settings(ghn: GHN) -> str:
    return ", ".join(f"{key} {value}" for key, value in ghn.config.to_dict().items())


def named_graph(name: str, num_classes: int, image_size: int | None) -> Graph:
    """Return the graph of a network by its name (see `ghn.list_architectures`).

    Raises:
        UserError: no network has this name, or it cannot be traced.
    """
    network = find_network(name)
    if network is not None:
        return network.graph(image_size or 224, num_classes)
    with as_user_error():
        return trace(load_network(name, num_classes, image_size), image_size=image_size)


def render_network(name: str, out: Path, num_classes: int, image_size: int | None, virtual_edges: bool) -> None:
    """Render the graph of a network to a file whose suffix is .svg, .pdf or .png.

    Raises:
        UserError: no network has this name, or there can be no such file.
    """
    if out.suffix.lower() not in PICTURE_SUFFIXES:
        raise UserError(f"{out} is not the name of a picture: must end in {', '.join(PICTURE_SUFFIXES)}")
    require_file_name(out)
    graph = named_graph(name, num_classes, image_size)
    save(render_graph(graph, name, virtual_edges), out)
    print(f"{len(graph.nodes)} nodes, written to {out}")


def require_reads_images(name: str, network: Network | None) -> None:
    """Raise UserError if a network that the project knows by its name reads text; `network` is None for others."""
    if network is not None and network.reads_text:
        raise UserError(f"{name} is a language model: must be a network of images, which --images or --shots gives")


def predict_network(
    name: str,
    checkpoint: str,
    out: Path,
    num_classes: int | None = None,
    image_size: int | None = None,
    class_layers: bool = True,
    dataset: str | None = None,
    folder: str | None = None,
    cache: Path = Path("storage/images"),
) -> None:
    """Predict the parameters of a network and write its state to `out` in safetensors.

    Args:
        name: of the network (see `ghn.list_architectures`).
        checkpoint: of the hypernetwork (see `read_hypernetwork`).
        out: file to write.
        num_classes: of the network; by default those of the hypernetwork.
        image_size: in pixels; by default the one that the network declares. A network that declares none is traced at
            any size that it accepts, and its images have the size that the hypernetwork was trained with.
        class_layers: whether classification layers are predicted too.
        dataset, folder: images (see `load_cached_images`) to classify, if the network has as many classes, and to
            estimate running statistics from. DeepNets-1M networks have no running statistics: they always normalise
            with those of the batch.
        cache: a folder for the decoded images.

    Raises:
        UserError: a name or file is unknown, the network cannot be traced, or `out` cannot be written.
    """
    require_file_name(out)
    ghn = read_hypernetwork(checkpoint)
    classes = ghn.config.num_classes if num_classes is None else num_classes
    network = find_network(name)
    if dataset is not None:
        require_reads_images(name, network)
    model = load_network(name, classes, image_size if network is None else image_size or ghn.config.image_size)
    images = None
    with as_user_error():
        if dataset is not None:
            image_size = image_size or declared_size(model) or ghn.config.image_size
            ghn.graph(model, image_size=image_size)  # an error comes before images are decoded for nothing
            images = load_cached_images(dataset, image_size, cache, folder=folder)
        report = ghn.predict(
            model,
            image_size=image_size,
            predict_class_layers=class_layers,
            calibration_images=calibration(images) if images is not None and network is None else None,
        )
    write_state(model, out)
    print(f"{name}: {report}")
    if report.batch_statistics:
        print("the file has no running statistics: call ghn.use_batch_statistics(network) before it is loaded")
        print("into one, or give --images to estimate them")
    if images is not None:
        print(_score(model, report, images, classes))
    print(f"written to {out}")


def predict_large_network(
    name: str,
    checkpoint: str,
    out: Path,
    num_classes: int | None = None,
    image_size: int | None = None,
    class_layers: bool = True,
) -> None:
    """Predict the parameters of a network that memory need not hold, into a folder of shards in safetensors.

    The network itself has no memory, and each shard is written as soon as its parameters are predicted. Beside those of
    a network of transformers lies its configuration, so that `from_pretrained` reads the folder.

    Args:
        name, checkpoint, num_classes, image_size, class_layers: as those of `predict_network`.
        out: folder to write; it must not exist, or be empty.

    Raises:
        UserError: a name or file is unknown, the network cannot be traced, or `out` cannot be written.
    """
    require_folder_of(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"--out {out} is there already: must be a new folder")
    ghn = read_hypernetwork(checkpoint)
    classes = ghn.config.num_classes if num_classes is None else num_classes
    with as_user_error(), torch.device("meta"):
        model = load_network(name, classes, image_size or ghn.config.image_size)
        graph = ghn.graph_of(model, image_size, None)
    if not class_layers:
        graph = graph.without_class_layers("classification layer (--no-class-layers)")
    elements = sum(parameter.size for parameter in graph.parameters)
    started = perf_counter()
    with progress_bar("predict", "parameter", elements, unit_scale=True) as bar:
        report = write_predicted(ghn, graph, out, progress=bar.update)
    if name.startswith("hf/"):
        config: Any = model.config
        config.to_json_file(out / "config.json")
    print(f"{name}: {report}\nwritten to {out}, in {len(report.files)} files and {perf_counter() - started:.1f} s")


def declared_size(model: nn.Module) -> int | None:
    """Return the image size in pixels that a network declares, or None."""
    declared = declared_shape(model)
    return None if declared is None else declared[-1]


def _score(model: nn.Module, report: PredictionReport, images: Images, classes: int) -> str:
    """Return a line with the share of test images that a network classifies correctly, or why there is none."""
    if len(images.classes) != classes:
        return f"no score: {images.name} has {len(images.classes)} classes, the network {classes}"
    if not any(node.is_class_layer and node.parameters for node in report.graph.nodes):
        return "no score: the classification layer is not predicted"
    with torch.inference_mode():
        top1 = score(model.eval(), evaluation_batches(images.test, images, BATCH), torch.device("cpu")).top1
    return f"top-1 on the {len(images.test)} test images of {images.name}: {top1:.1%}"


def load_network(name: str, num_classes: int, image_size: int | None) -> nn.Module:
    try:
        return load(name, num_classes, image_size or 224)
    except ValueError as error:
        raise UserError(str(error)) from error


def calibration(images: Images) -> Iterator[Tensor]:
    for batch, _ in islice(evaluation_batches(images.train, images, BATCH), CALIBRATION_BATCHES):
        yield batch


def write_state(model: nn.Module, out: Path) -> None:
    """Write the state of a network as one safetensors file, atomically; tied parameters are written once."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        whole, ordinary = Path(scratch) / "whole", Path(scratch) / "ordinary"
        save_model(model, str(whole))
        ordinary.touch()
        shutil.copymode(ordinary, whole)  # safetensors makes files that only their owner can read
        whole.replace(out)
