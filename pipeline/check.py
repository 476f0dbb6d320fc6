"""Stage `check`: the settings are possible, and the images that they name are there.

DVC removes a stage's outputs before it runs the stage, and looks at no key of `params.yaml` that no stage reads. So a
wrong or misspelt setting has to be noticed by a stage of its own, before all others.
"""

from __future__ import annotations

from pipeline.image_sets import find_image_set
from pipeline.params import Params
from pipeline.results import image_cache


def check(params: Params) -> None:
    """Looks for all image sets; the settings themselves were validated when they were read.

    Raises UserError if a set is unknown or its folder does not hold what it needs.
    """
    for dataset in dict.fromkeys([params.dataset, *params.finetune.datasets]):
        find_image_set(dataset, params.images.folder, downloads=image_cache(params.storage) / "downloads")
