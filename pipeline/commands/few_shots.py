"""Command `ghn predict --shots`: a network for the classes of a few images, without training."""

from __future__ import annotations

from pathlib import Path

import torch

from ghn import find_network, fit_class_layer
from pipeline.commands.one_network import (
    BATCH,
    as_user_error,
    calibration,
    declared_size,
    load_network,
    read_hypernetwork,
    require_file_name,
    require_reads_images,
    write_state,
)
from pipeline.errors import UserError
from pipeline.evaluation.scores import score
from pipeline.images.batches import evaluation_batches
from pipeline.images.load import load_cached_images


def predict_from_shots(
    name: str,
    checkpoint: str,
    out: Path,
    dataset: str,
    image_size: int | None = None,
    folder: str | None = None,
    cache: Path = Path("storage/images"),
) -> None:
    """Predict a network's parameters, fit its class layer to images, and write its state to `out` in safetensors.

    Running statistics are estimated from the training images of the data set, and the class layer is fitted to them in
    closed form (see `ghn.fit_class_layer`). Test images say how well that works.

    Args:
        name: of the network (see `ghn.list_architectures`); it gets as many classes as the images have.
        checkpoint: of the hypernetwork (see `read_hypernetwork`), which may be for other classes.
        out: file to write.
        dataset, folder: images (see `load_cached_images`).
        image_size: in pixels; by default the one that the network declares, or that of the hypernetwork's training.
        cache: a folder for the decoded images.

    Raises:
        UserError: a name or file is unknown, the network cannot be traced or has no linear class layer, there are too
            few images, or `out` cannot be written.
    """
    require_file_name(out)
    ghn = read_hypernetwork(checkpoint)
    network = find_network(name)
    require_reads_images(name, network)
    size = image_size or ghn.config.image_size
    if network is None and image_size is None:
        size = declared_size(load_network(name, 2, None)) or size
    images = load_cached_images(dataset, size, cache, folder=folder)
    model = load_network(name, len(images.classes), size)
    with as_user_error():
        report = ghn.predict(
            model,
            image_size=size,
            predict_class_layers=False,
            calibration_images=calibration(images) if network is None else None,
        )
        traced = ghn.graph(model, image_size=size)
    try:
        fit = fit_class_layer(model, traced, evaluation_batches(images.train, images, BATCH))
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    with torch.inference_mode():
        top1 = score(model, evaluation_batches(images.test, images, BATCH), torch.device("cpu")).top1
    write_state(model, out)
    print(f"{name}: {report}")
    print(f"{fit.name} fitted to {len(images.train)} images of {len(images.classes)} classes of {images.name}")
    print(f"top-1 {fit.left_out_top1:.1%} on each of them when it is left out, {top1:.1%} on {len(images.test)} others")
    if report.batch_statistics:
        print("the file has no running statistics: call ghn.use_batch_statistics(network) before it is loaded into one")
    print(f"written to {out}")
