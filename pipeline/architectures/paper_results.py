"""The published results of single architectures: accuracy after SGD, on noisy images, inference and convergence time.

They are the files data/results_cifar10.json, results_cifar10_extended.json and results_imagenet.json of
github.com/facebookresearch/ppuda. By split (`val`, `test`, …) and index ("0", "1", …) a record has

- after SGD, in percent: `val_acc` on held-out training images, and `val_acc_noise` on the same with noise. In the
  extended file both are lists over `PAPER_EPOCHS`;
- `ghn2_test_acc`, in percent, with the parameters that GHN-2 predicts;
- `params`; `time`, of inference, in a unit that the files do not name; and `converge_time`, in trainings: 2 stands for
  training that did not converge.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaError
from pandera.typing import DataFrame

from ghn.deepnets1m.architecture import Architecture
from ghn.networks.network import ScalableNetwork
from pipeline.architectures.deepnets1m_files.checks import with_all_operations
from pipeline.architectures.store import ArchitectureStore
from pipeline.console import percent, print_table
from pipeline.contracts import Contract, count, natural, positive, share
from pipeline.errors import UserError
from pipeline.storage.files import read_bytes, require_writable, write_bytes
from pipeline.storage.paths import paper_results_address, storage_url
from pipeline.storage.records import checksum_of

log = logging.getLogger(__name__)

PAPER_EPOCHS = (1, 5, 10, 20, 30, 40, 50)
"""The epochs after which the extended file has accuracies, from examples/read_cifar10_results.ipynb."""

PAPER_SPLITS = ("val", "test")
"""The splits whose records have all properties: regressions are fitted on the first and scored on the second."""

MOST_DIFFERENT = 0.05
"""The largest share of the architectures whose number of parameters may differ from the published one."""

TOP1 = r"^top1(_after_\d+)?$"

IMPORT_HINT = "`ghn import-results` writes it, to the storage that it is given, and prints the address for params.yaml"


class PaperResults(Contract):
    """Published results: a row for each architecture. Accuracies, `top1` or `top1_after_<epochs>`, are shares."""

    split: str
    index: int = natural()
    parameters: int = count()
    top1: float = share(alias=TOP1, regex=True)
    noisy_top1: float = share()
    predicted_top1: float = share(nullable=True)
    seconds: float = positive()
    convergence_time: float

    class Config:
        unique = ["split", "index"]

    @pa.check("convergence_time", error="above 0, at most 2")
    def is_convergence_time(cls, values: pd.Series) -> pd.Series:
        return (values > 0) & (values <= 2)


def import_results(file: Path, storage: str) -> str:
    """Check a file of published results, copy it into the storage, and print a summary.

    Returns:
        The address below the storage, a value for the setting `properties.published`. It changes with the content.

    Raises:
        UserError: the file is missing, or is not in the published format; then nothing is written.
    """
    if not file.is_file():
        raise UserError(f"{file} not found: must be published results, such as data/results_cifar10.json of ppuda")
    content = file.read_bytes()
    results = results_of(content, str(file))
    require_writable(storage)
    address = paper_results_address(checksum_of(content)[:16])
    write_bytes(storage_url(storage, address), content)
    _print_summary(results, address)
    return address


def read_paper_results(storage: str, address: str) -> DataFrame[PaperResults]:
    """Return the imported results at an address below the storage.

    Raises:
        UserError: the file is missing or damaged.
    """
    setting, place = f"properties.published = {address}", storage_url(storage, address)
    try:
        content = read_bytes(place)
    except FileNotFoundError as error:
        raise UserError(f"{setting}: there is no {place}\n{IMPORT_HINT}") from error
    if address != paper_results_address(checksum_of(content)[:16]):
        raise UserError(f"{setting} is damaged: its checksum is not that of its name\n{IMPORT_HINT}")
    return results_of(content, place)


def results_of(content: bytes, source: str) -> DataFrame[PaperResults]:
    """Return the results of `PAPER_SPLITS` in the content of a published file; `source` names it in errors.

    Raises:
        UserError: it is not in the published format.
    """
    try:
        splits = json.loads(content)
        rows = [
            {"split": split, "index": int(index), **_row(record)}
            for split in PAPER_SPLITS
            for index, record in splits[split].items()
        ]
    except KeyError as error:
        raise UserError(f"{source} has no {error.args[0]}: must be as data/results_cifar10.json of ppuda") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{source} is not in the format of ppuda's results: {error}") from error
    try:
        results = PaperResults.validate(pd.DataFrame(rows))
    except SchemaError as error:
        right = getattr(error.check, "error", None) or error.check
        raise UserError(f"{source}: {error.schema.name} must be {right}") from error
    for split, own in results.groupby("split"):
        if sorted(own["index"]) != list(range(len(own))):
            raise UserError(f"{source}: the indices of split {split} must be 0 to {len(own) - 1}, without a gap")
    return results


def _row(record: dict[str, Any]) -> dict[str, float]:
    """Return the properties of one architecture: its accuracies as shares, whatever their number of budgets is."""
    accuracies, noisy = record["val_acc"], record["val_acc_noise"]
    if isinstance(accuracies, list):
        after = {f"top1_after_{epochs}": top1 for epochs, top1 in zip(PAPER_EPOCHS, accuracies, strict=True)}
        noisy = noisy[-1]
    else:
        after = {"top1": accuracies}
    shares = {**after, "noisy_top1": noisy, "predicted_top1": record.get("ghn2_test_acc", np.nan)}
    return {
        "parameters": record["params"],
        **{name: percentage / 100 for name, percentage in shares.items()},
        "seconds": record["time"],
        "convergence_time": record["converge_time"],
    }


def require_imported_networks(
    results: DataFrame[PaperResults], store: ArchitectureStore, image_size: int, num_classes: int
) -> None:
    """Check that published results are those of the stored architectures, at their own width.

    They are if the splits have as many rows and, but for a few, the same numbers of parameters, with or without the
    operations that do not reach the output: nothing else in the files tells one architecture from another.

    Args:
        image_size: side in pixels of the images that the results are for.
        num_classes: the number of their classes.

    Raises:
        UserError: they are not.
    """
    for split, own in results.groupby("split"):
        name = str(split)
        if len(store[name]) != len(own):
            raise UserError(
                f"properties.published has {len(own)} architectures of split {name}, {len(store[name])} are stored\n"
                "import the published split, with all its rows (`ghn import-deepnets`)"
            )
        different = [
            (int(row["index"]), int(row["parameters"]), counts)
            for row in own.to_dict("records")
            if row["parameters"] not in (counts := _counts(store[name].read(row["index"]), image_size, num_classes))
        ]
        if len(different) > MOST_DIFFERENT * len(own):
            index, published, counts = different[0]
            raise UserError(
                f"properties.published: {len(different)} of {len(own)} architectures of split {name} are others\n"
                f"{name}/{index} has {published} parameters there, the stored one {' or '.join(map(str, counts))} "
                f"({image_size}×{image_size} pixels, {num_classes} classes)"
            )
        if different:
            log.warning("%d of %d published architectures of split %s differ in size", len(different), len(own), name)


def _counts(architecture: ScalableNetwork, image_size: int, num_classes: int) -> tuple[int, ...]:
    """Return the numbers of parameters without and with the operations that do not reach the output."""
    assert isinstance(architecture, Architecture), "imported splits are of DeepNets-1M"
    both = (architecture, with_all_operations(architecture))
    return tuple(dict.fromkeys(each.num_parameters(image_size, num_classes) for each in both))


def _print_summary(results: DataFrame[PaperResults], address: str) -> None:
    rows = [
        {
            "accuracy": name,
            "split": str(split),
            "architectures": str(len(own)),
            "mean in %": percent(own[name].mean(), own[name].sem()),
        }
        for name in results.filter(like="top1")
        for split, own in results.groupby("split", sort=False)
    ]
    print_table("Imported results", rows)
    print(
        "to use them, set in params.yaml, with the same storage and with the published splits val and test in "
        f"generate.imported:\n\nproperties:\n  published: {address}"
    )
