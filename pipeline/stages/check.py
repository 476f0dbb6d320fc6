"""Stage `check`: the settings are possible, and the places that they name can be used.

DVC removes a stage's outputs before it runs the stage, and ignores keys of `params.yaml` that no stage reads. So a
stage of its own has to notice an impossible value or a misspelt key. All other stages depend on the file that it
writes, whose content never changes: settings that change and stay valid make no other stage run by this alone.
"""

from __future__ import annotations

import logging

from pipeline.architectures.imported_splits import find_imported_splits
from pipeline.architectures.paper_results import read_paper_results
from pipeline.images.load import find_images
from pipeline.images.scene_sets import find_scenes
from pipeline.images.texts import TextSource
from pipeline.params import Params
from pipeline.results import results_folder
from pipeline.storage.files import require_writable, write_bytes
from pipeline.tracking.store import require_store
from pipeline.workspace import scm_hint

log = logging.getLogger(__name__)

PASSED = b"The settings are possible, and the places that they name can be used.\n"
"""Content of the output, the same for all settings."""


def check(params: Params) -> None:
    """Ask the MLflow store, write a file to the storage, and find imported architectures, results and all image sets.

    The values of the settings were validated when they were read.

    Raises:
        UserError: the MLflow store does not answer, the storage cannot be written, an import is missing, a data set is
            unknown, or its folder is incomplete.
    """
    require_store()
    require_writable(params.storage)
    find_imported_splits(params)
    if params.properties.published is not None:
        read_paper_results(params.storage, params.properties.published)
    find_scenes(params.detect)
    conditioned = (*params.condition.datasets, *params.condition.unseen)
    for dataset in dict.fromkeys([params.dataset, *params.finetune.datasets, *params.adapt.datasets, *conditioned]):
        source = find_images(dataset, params.images, params.storage)
        found = source if isinstance(source, TextSource) else source.found
        if found is not None:
            print(f"{dataset}: {found.summary()}")
    if hint := scm_hint():
        log.warning(hint)
    write_bytes(results_folder("check") / "passed", PASSED)
