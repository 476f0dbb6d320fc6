"""Stage `check`: the settings are possible, and the places that they name can be used.

DVC removes a stage's outputs before it runs the stage, and looks at no key of `params.yaml` that no stage reads. So a
wrong or misspelt setting has to be noticed by a stage of its own. All others depend on the file that it writes. It is
there or it is not, but never differs: settings that change and stay valid make no stage run by this alone.
"""

from __future__ import annotations

from pipeline.architectures.imported_splits import find_imported_splits
from pipeline.errors import UserError
from pipeline.images.load import find_images
from pipeline.params import Params
from pipeline.results import results_folder
from pipeline.storage.files import remove, write_bytes
from pipeline.storage.paths import probe_file

PASSED = b"The settings are possible, and the places that they name can be used.\n"


def check(params: Params) -> None:
    """Writes to the storage and looks for imported architectures and all image sets.

    The settings themselves were validated when they were read. Raises UserError if the storage cannot be written, an
    import is not there, a set is unknown or its folder does not hold what it needs.
    """
    require_writable(params.storage)
    find_imported_splits(params)
    for dataset in dict.fromkeys([params.dataset, *params.finetune.datasets]):
        find_images(dataset, params.images, params.storage)
    write_bytes(results_folder("check") / "passed", PASSED)


def require_writable(storage: str) -> None:
    """Raises UserError if no file can be written below a storage."""
    place = probe_file(storage)
    try:
        write_bytes(place, b"")
        remove(place)
    except UserError as error:
        raise UserError(f"storage = {storage}: {error}") from error
    except Exception as error:  # an object store's client has exceptions of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"storage = {storage} cannot be written: {reason}\n"
            "must be a folder, or s3://bucket/prefix with credentials in the environment"
        ) from error
