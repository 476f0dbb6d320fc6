"""Addresses below the storage, which earlier runs have written to."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage.paths import (
    disagreements_file,
    downloads_folder,
    drafts_folder,
    image_cache,
    image_set_folder,
    imported_split_address,
    manifest_address,
    probe_file,
    records_folder,
    sampled_split_address,
    storage_root,
    storage_url,
    task_folder,
    training_folder,
)


def test_addresses_are_where_earlier_versions_wrote(tmp_path: Path) -> None:
    storage = str(tmp_path)
    assert storage_url(storage, sampled_split_address("train", "0a")) == f"{tmp_path}/architectures/train/0a"
    assert drafts_folder(f"{tmp_path}/architectures/train/0a") == f"{tmp_path}/architectures/train/0a-drafts"
    assert manifest_address(imported_split_address("val", "0a")) == "architectures/val/imported-0a/manifest.json"
    assert disagreements_file("folder") == "folder/disagreeing.csv"
    assert image_set_folder(str(image_cache(storage)), "digits", 8, "0a") == f"{tmp_path}/images/digits-8-0a"
    assert downloads_folder(tmp_path / "images") == tmp_path / "images" / "downloads"
    assert training_folder(storage, "0a") == f"{tmp_path}/training/0a"
    assert task_folder(storage, "evaluations", "0a") == f"{tmp_path}/evaluations/0a"
    assert task_folder(storage, "finetuning", "0a") == f"{tmp_path}/finetuning/0a"
    assert records_folder("folder") == "folder/records"


@pytest.mark.parametrize("storage", ["s3://bucket/prefix", "s3://bucket/prefix/"])
def test_a_bucket_may_end_in_a_slash(storage: str) -> None:
    assert storage_root(storage) == "s3://bucket/prefix"
    assert training_folder(storage, "0a") == "s3://bucket/prefix/training/0a"


def test_each_probe_is_another_file(tmp_path: Path) -> None:
    assert probe_file(str(tmp_path)) != probe_file(str(tmp_path))
