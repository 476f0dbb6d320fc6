"""The Hugging Face hub, against a server of its protocol on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from examples import tiny_ghn
from hub_server import COMMIT, HubServer
from small_settings import ROOT

from ghn import GHN, CheckpointError

GOLDEN = ROOT / "tests/golden"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer.in_place_of_the_hub(tmp_path / "cache", monkeypatch) as server:
        yield server


def published(hub: HubServer, repository: str = "them/ghn2", file: str = "ghn2.pt") -> str:
    """Put a published file into a repository, and return its address."""
    hub.repositories[repository] = {file: (GOLDEN / Path(file).name).read_bytes()}
    return f"hf://{repository}/{file}"


def refused(address: str) -> str:
    with pytest.raises(CheckpointError) as error:
        GHN.from_pretrained(address)
    return str(error.value)


def test_what_is_pushed_is_loaded_again(hub: HubServer, tmp_path: Path) -> None:
    ghn = tiny_ghn()
    ghn.save(tmp_path / "checkpoint")
    assert ghn.push_to_hub("me/mine", private=True) == f"{hub.endpoint}/me/mine"
    assert set(hub.repositories["me/mine"]) == {"README.md", "config.json", "model.safetensors"}
    card = hub.repositories["me/mine"]["README.md"].decode()
    assert 'GHN.from_pretrained("hf://me/mine")' in card and "| hidden | 8 |" in card and card.startswith("---\n")
    for address in ("hf://me/mine", "hf://me/mine@main", f"hf://me/mine@{COMMIT}"):
        GHN.from_pretrained(address).save(tmp_path / "again")
        for name in ("config.json", "model.safetensors"):
            assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "checkpoint" / name).read_bytes()


def test_a_published_file_is_imported_from_its_address(hub: HubServer) -> None:
    hub.repositories["them/ghn3"] = {"small/ghn3.pt": (GOLDEN / "ghn3.pt").read_bytes()}
    assert GHN.from_pretrained("hf://them/ghn3/small/ghn3.pt").config.variant == "ghn3"


@pytest.mark.slow
def test_without_a_network_an_earlier_download_is_enough(hub: HubServer) -> None:
    address = published(hub)
    assert GHN.from_pretrained(address).config.variant == "ghn2"
    hub.stop()
    assert GHN.from_pretrained(address).config.variant == "ghn2"
    assert refused("hf://them/other") == "hf://them/other: the hub does not answer, and there is no earlier download"


@pytest.mark.parametrize("size", ["large", "small"])
def test_a_damaged_download_is_refused(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    """Large files are named by their SHA-256, small ones by git's SHA-1."""
    monkeypatch.setattr(hub, "LARGE", 0 if size == "large" else 1 << 30)
    address = published(hub)
    GHN.from_pretrained(address)
    (kept,) = (tmp_path / "cache").rglob("snapshots/*/ghn2.pt")
    kept.resolve().write_bytes(kept.read_bytes()[:-1] + b" ")
    assert "its checksum is not that of the hub: delete" in refused(address)


def test_a_download_that_the_cache_keeps_elsewhere_is_compared_too(hub: HubServer, tmp_path: Path) -> None:
    """Large files lie in a store that all repositories share, where they have names of another kind."""
    address = published(hub)
    GHN.from_pretrained(address)
    (kept,) = (tmp_path / "cache").rglob("snapshots/*/ghn2.pt")
    blob = kept.parent / kept.readlink()
    (tmp_path / "store").mkdir()
    elsewhere = blob.rename(tmp_path / "store" / ("0" * 64))
    blob.symlink_to(elsewhere)
    assert GHN.from_pretrained(address).config.variant == "ghn2"
    elsewhere.write_bytes(elsewhere.read_bytes()[:-1] + b" ")
    assert f"delete {elsewhere}" in refused(address)


def test_a_name_that_is_no_repository_is_refused_before_anything_is_sent(hub: HubServer) -> None:
    with pytest.raises(CheckpointError, match="mine is no repository: must be owner/name"):
        tiny_ghn().push_to_hub("mine")
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://nobody", "must be hf://owner/name"),
        ("hf://them/nothing", "no such repository"),
        ("hf://them/ghn2/other.pt", "other.pt"),
        ("hf://them/ghn2@old", "old"),
    ],
)
def test_what_is_not_there_is_named(hub: HubServer, address: str, message: str) -> None:
    published(hub)
    said = refused(address)
    assert address in said and message in said and len(said.splitlines()) == 1


def test_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "needs huggingface_hub: pip install 'graph-hypernetworks[hub]'" in refused("hf://a/b")


def test_a_path_that_looks_like_an_address_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_ghn().save(Path("hf:/me/mine"))
    assert GHN.from_pretrained(Path("hf:/me/mine")).config == tiny_ghn().config
