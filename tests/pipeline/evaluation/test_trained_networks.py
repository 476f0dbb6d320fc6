from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.evaluation.networks import Candidate, fresh_module, seed_of
from pipeline.evaluation.stored_sources import StoredSource, read_sources, read_tensors, write_sources
from pipeline.evaluation.trained_networks import (
    NOISE,
    RUNNING_STEPS,
    SgdSetup,
    TrainingRun,
    convergence_step,
    find_source,
    held_out_accuracy,
    train_and_measure,
    with_noise,
)
from pipeline.images.batches import Augmentation, evaluation_batches
from pipeline.images.dataset import Images
from pipeline.images.load import open_images
from pipeline.images.subsets import hold_out
from pipeline.storage.paths import source_file


@pytest.fixture
def setup(images: Images, tmp_path: Path) -> SgdSetup:
    return SgdSetup(
        images=images.place,
        images_hash=images.settings_hash,
        held_out=0.1,
        augmentation=Augmentation(shift=1),
        batch=64,
        converged_at=0.5,
        test_images=None,
        test_batch=64,
        storage=str(tmp_path),
        seed=0,
    )


def without_time(row: dict) -> dict:
    return {key: value for key, value in row.items() if key not in ("train_seconds", "seconds")}


def test_a_network_is_trained_and_measured_the_same_way_twice_and_its_tensors_are_kept(
    candidates: list[Candidate], setup: SgdSetup
) -> None:
    run = TrainingRun(candidates[0], epochs=2, learning_rate=0.1, is_kept=True)
    assert find_source(run, setup) is None
    row = train_and_measure(run, setup)
    json.dumps(row, allow_nan=False)
    assert min(row["top1"], row["running_top1"], row["noisy_top1"]) > 0.25  # chance is 0.1
    assert 0 < row["train_seconds"] < row["seconds"]
    assert row["steps"] == round(2 * len(hold_out(open_images(setup.images), 0.1)[0].train) / 64)
    size, checksum = find_source(run, setup)
    file = source_file(setup.settings_hash, run.name)
    source = StoredSource(0, "", file, checksum, size, row["top1"], row["train_seconds"], setup.images_hash)
    tensors = read_tensors(source, setup.storage)
    fresh = dict(fresh_module(run.candidate.network, 8, 10, seed_of(0, "test", 0)).named_parameters())
    assert {name: tensor.shape for name, tensor in tensors.items()} == {name: p.shape for name, p in fresh.items()}
    assert not any(torch.equal(tensors[name], fresh[name]) for name in fresh)

    content = (Path(setup.storage) / file).read_bytes()
    assert without_time(train_and_measure(run, setup)) == without_time(row)
    assert (Path(setup.storage) / file).read_bytes() == content


def test_only_sources_are_kept(candidates: list[Candidate], setup: SgdSetup) -> None:
    train_and_measure(TrainingRun(candidates[2], 1, 0.1), setup)
    assert not list(Path(setup.storage).iterdir())


def test_held_out_images_are_not_trained_on_and_others_are(candidates: list[Candidate], setup: SgdSetup) -> None:
    """A setting that only changes what is measured trains the same network; another share to hold out does not."""
    run = TrainingRun(candidates[0], 1, 0.1, is_kept=True)
    kept = []
    for changed in (setup, replace(setup, test_images=50, converged_at=0.9), replace(setup, held_out=0.3)):
        train_and_measure(run, changed)
        kept.append((Path(setup.storage) / source_file(changed.settings_hash, run.name)).read_bytes())
    assert kept[0] == kept[1] != kept[2]
    assert 0 < held_out_accuracy(run, setup) < 1


def test_a_learning_rate_that_diverges_is_measured_as_wrong(candidates: list[Candidate], setup: SgdSetup) -> None:
    run = TrainingRun(candidates[4], 1, 1e6)
    assert held_out_accuracy(run, setup) < 0.2
    row = train_and_measure(run, setup)
    assert row["loss"] is None and row["top1"] < 0.2
    assert row["convergence_steps"] is None
    json.dumps(row, allow_nan=False)


def test_another_run_or_setup_has_another_name_and_another_place_has_not(
    candidates: list[Candidate], setup: SgdSetup
) -> None:
    run = TrainingRun(candidates[0], 1, 0.1)
    others = [replace(run, epochs=2), replace(run, learning_rate=0.2), replace(run, is_kept=True)]
    others += [replace(run, candidate=candidate) for candidate in candidates[1:]]
    assert len({each.name for each in (run, *others)}) == 1 + len(others)
    assert replace(setup, images="elsewhere", storage="elsewhere").settings_hash == setup.settings_hash
    assert replace(setup, images_hash="other").settings_hash != setup.settings_hash
    assert replace(setup, augmentation=Augmentation()).settings_hash != setup.settings_hash


def test_the_noise_on_test_images_is_the_same_each_time_and_has_the_stated_size(images: Images) -> None:
    def pixels(noisy: bool) -> torch.Tensor:
        batches = evaluation_batches(images.test, images, 64)
        x_BCSS = torch.cat([x for x, _ in (with_noise(batches, images) if noisy else batches)])
        mean_C11, std_C11 = (torch.tensor(values)[:, None, None] for values in (images.mean, images.std))
        return x_BCSS * std_C11 + mean_C11

    clean, noisy = pixels(False), pixels(True)
    assert torch.equal(noisy, pixels(True))
    assert noisy.min() > -1e-5 and noisy.max() < 1 + 1e-5
    inner = (clean > 0.3) & (clean < 0.7)  # whose noise is not cut
    assert (noisy - clean)[inner].std() == pytest.approx(NOISE, rel=0.05)
    assert (noisy - clean)[inner].mean() == pytest.approx(0, abs=0.005)


def test_a_network_has_converged_when_the_mean_of_its_last_steps_reaches_the_level() -> None:
    rising = np.repeat([0.2, 0.9], [30, 30])
    step = convergence_step(rising, 0.8)
    assert np.mean(rising[step - RUNNING_STEPS : step]) >= 0.8 > np.mean(rising[step - RUNNING_STEPS - 1 : step - 1])
    assert convergence_step([0.9] * 60, 0.8) == RUNNING_STEPS
    assert convergence_step([0.7] * 60, 0.8) is None
    assert convergence_step([1.0] * (RUNNING_STEPS - 1), 0.8) is None
    assert convergence_step([0.2, 1.0] * 30, 0.8) is None  # single steps do not count


# --- the list of sources ---


@pytest.fixture
def source(candidates: list[Candidate], setup: SgdSetup) -> StoredSource:
    run = TrainingRun(candidates[2], 1, 0.1, is_kept=True)
    row = train_and_measure(run, setup)
    size, checksum = find_source(run, setup)
    file = source_file(setup.settings_hash, run.name)
    return StoredSource(
        index=2,
        network_hash=run.candidate.network_hash,
        file=file,
        checksum=checksum,
        size=size,
        top1=row["top1"],
        train_seconds=row["train_seconds"],
        images_hash=setup.images_hash,
    )


def test_sources_are_read_as_they_were_written(source: StoredSource, tmp_path: Path) -> None:
    write_sources([source], tmp_path / "sources.json")
    assert read_sources(tmp_path / "sources.json") == [source]
    assert set(json.loads((tmp_path / "sources.json").read_text())[0]) == {
        *("index", "network_hash", "file", "checksum", "size", "top1", "train_seconds", "images_hash")
    }


@pytest.mark.parametrize("content", ["{", "[{}]", "[1]", "1"])
def test_a_damaged_list_of_sources_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "sources.json"
    with pytest.raises(UserError, match=r"sources\.json not found: stage sgd writes it"):
        read_sources(path)
    path.write_text(content)
    with pytest.raises(UserError, match=r"sources\.json is damaged"):
        read_sources(path)


def test_a_source_that_is_missing_or_damaged_is_named(source: StoredSource, setup: SgdSetup) -> None:
    file = Path(setup.storage, source.file)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{source.file}, .* architecture 2 of split train, is damaged"):
        read_tensors(source, setup.storage)
    file.unlink()
    with pytest.raises(UserError, match=rf"{source.file}, .* is missing\n`dvc repro --force sgd`"):
        read_tensors(source, setup.storage)
