"""Command `ghn adapt`: a hypernetwork for a new data set, from a few of its images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.commands.one_network import as_user_error, read_hypernetwork, require_folder_of
from pipeline.console import progress_bar
from pipeline.images.load import load_cached_images
from pipeline.training.adaptation import accuracies_of_unseen, adapt_to_few_images


def adapt_to_images(
    checkpoint: str,
    out: Path,
    dataset: str,
    per_class: int,
    folder: str | None = None,
    cache: Path = Path("storage/images"),
    steps: int = 200,
    learning_rate: float = 0.003,
    seed: int = 0,
) -> None:
    """Train a hypernetwork on a few images of each class of a data set, and write it to a checkpoint folder.

    Args:
        checkpoint: of the hypernetwork (see `read_hypernetwork`).
        out: checkpoint folder to write.
        dataset, folder: images (see `load_cached_images`), of the size that the hypernetwork was trained on.
        per_class: training images of each class; others are held out and choose the weights.
        cache: a folder for the decoded images.
        steps: optimisation steps.
        learning_rate: of Adam.
        seed: of the images and of all else that is sampled.

    Raises:
        UserError: a name or file is unknown, a class has too few images, or `out` cannot be written.
    """
    require_folder_of(out)
    ghn = read_hypernetwork(checkpoint)
    with as_user_error():
        ghn.require_free(out)
    images = load_cached_images(dataset, ghn.config.image_size, cache, folder=folder)
    with progress_bar("adapt", "step", steps) as bar:
        adapted = adapt_to_few_images(ghn, images, per_class, steps, learning_rate, seed, bar.update)
    top1 = accuracies_of_unseen(adapted.model, images, seed)
    adapted.model.save(out)
    print(f"adapted to {images.name}: {per_class} images of each of {len(images.classes)} classes")
    kept = dict(adapted.curve)[adapted.step]
    print(f"weights after {adapted.step} of {steps} steps, which were best on held-out images: top-1 {kept:.1%}")
    error = np.std(top1, ddof=1) / np.sqrt(len(top1))
    print(f"top-1 {np.mean(top1):.1%} ± {error:.1%} of {len(top1)} unseen networks on {len(images.test)} test images")
    print(f"written to {out}")
