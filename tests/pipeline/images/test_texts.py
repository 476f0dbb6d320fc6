"""Texts as data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_settings import small_settings

from pipeline.errors import UserError
from pipeline.images.batches import Augmentation, evaluation_batches, training_batch
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.load import find_images, load_images, open_images
from pipeline.images.subsets import hold_out, without_train_part
from pipeline.params import ImageSettings

LENGTH = 8


def image_settings(**changes: Any) -> ImageSettings:
    values = small_settings()["images"] | {"size": LENGTH, "shift": 0} | changes
    return ImageSettings.model_validate(values)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    (folder / "deeper").mkdir(parents=True)
    (folder / "one.txt").write_text("To be, or not to be, that is the question. " * 10)
    (folder / "deeper/two.md").write_text("Größe zählt: ½ × 2 = 1. " * 20)
    return folder


def load(folder: Path, storage: Path, **changes: Any) -> Images:
    return load_images("text", image_settings(folder=str(folder), **changes), str(storage))


def tokens(part: ImageSubset) -> bytes:
    """Return the bytes of a part: of its first window all, of each other window all but the first, which it repeats."""
    windows = part.pixels
    return windows[0, :1].tobytes() + windows[:, 1:].tobytes()


def test_the_library_of_python_is_a_data_set(tmp_path: Path) -> None:
    images = load_images("python", image_settings(), str(tmp_path))
    assert images.test.is_text and images.test.side == LENGTH and len(images.classes) == 256
    assert len(images.train) > 4 * len(images.test) * 0.9 > 10_000
    assert b"import " in tokens(images.train)[:100_000]
    names = find_images("python", image_settings(), str(tmp_path)).files
    assert {"os.py", "json.py"} & set(names) == {"os.py"}, "modules, not those of packages"


def test_windows_follow_one_another_and_no_byte_of_the_test_part_is_trained_on(texts: Path, tmp_path: Path) -> None:
    images = load(texts, tmp_path / "storage")
    source = find_images("text", image_settings(folder=str(texts)), "unused")
    content = b"".join(path.read_bytes() + b"\0" for path in source.files.values())
    assert content.count(b"\0") == 2
    end = len(content) - round(0.2 * len(content))
    assert content[:end].startswith(tokens(images.train))
    assert content[end:].startswith(tokens(images.test))
    assert len(images.train) == (end - 1) // LENGTH


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), step=st.integers(0, 10**6), batch=st.integers(1, 40))
def test_a_batch_is_a_function_of_seed_and_step_and_its_labels_come_next(
    texts: Path, tmp_path: Path, seed: int, step: int, batch: int
) -> None:
    images = load(texts, tmp_path / "storage")
    inputs, labels = training_batch(images, seed, step, batch, Augmentation(1, True))
    again, _ = training_batch(images, seed, step, batch, Augmentation())
    assert inputs.dtype == labels.dtype == torch.int64
    assert inputs.shape == labels.shape == (batch, LENGTH)
    assert torch.equal(inputs, again) and torch.equal(inputs[:, 1:], labels[:, :-1])


def test_evaluation_reads_each_window_once(texts: Path, tmp_path: Path) -> None:
    images = load(texts, tmp_path / "storage")
    batches = list(evaluation_batches(images.test, images, 4))
    found = np.concatenate([torch.cat([x[:, :1], y], 1).numpy() for x, y in batches])
    assert sorted(map(bytes, found.astype(np.uint8))) == sorted(map(bytes, images.test.pixels))


def test_windows_can_be_held_out_and_kept_in_memory(texts: Path, tmp_path: Path) -> None:
    images = load(texts, tmp_path / "storage")
    rest, held_out = hold_out(images, 0.25)
    assert len(rest.train) + len(held_out) == len(images.train)
    assert held_out.is_text and len(held_out) == round(0.25 * len(images.train))
    assert len(without_train_part(images, 5).test) == 5


def test_the_second_call_reads_what_the_first_one_stored(texts: Path, tmp_path: Path) -> None:
    first = load(texts, tmp_path / "storage")
    again = open_images(first.place)
    assert tokens(again.train) == tokens(first.train) and again.settings_hash == first.settings_hash
    (texts / "one.txt").write_text("other words, and more of them than before. " * 20)
    assert load(texts, tmp_path / "storage").settings_hash != first.settings_hash


@pytest.mark.parametrize("file", ["train_text.npy", "test_text.npy", "meta.json"])
@pytest.mark.parametrize("is_lost", [True, False])
def test_what_is_lost_or_damaged_is_stored_again(texts: Path, tmp_path: Path, file: str, is_lost: bool) -> None:
    before = load(texts, tmp_path / "storage")
    place = Path(before.place) / file
    content = place.read_bytes()
    if is_lost:
        place.unlink()
    else:
        place.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="incomplete"):
        open_images(before.place)
    assert tokens(load(texts, tmp_path / "storage").test) == tokens(before.test)
    assert place.read_bytes() == content


def test_what_is_no_text_is_passed_over_and_counted(texts: Path, tmp_path: Path) -> None:
    (texts / "picture.png").write_bytes(b"\x89PNG\r\n\0\0")
    (texts / "latin.txt").write_bytes("größe".encode("latin-1"))
    (texts / ".hidden").write_text("not shown")
    source = find_images("text", image_settings(folder=str(texts), passed_over=0.7), "unused")
    assert set(source.files) == {"one.txt", "deeper/two.md"}
    assert source.summary() == "2 text files, 3 passed over"
    with pytest.raises(UserError, match=r"3 of 5 files are hidden or no text in UTF-8, such as \.hidden"):
        find_images("text", image_settings(folder=str(texts)), "unused")


@pytest.mark.parametrize(
    ("files", "folder", "message"),
    [
        ({}, None, "dataset = text needs images.folder"),
        ({}, "nowhere", "there is no such folder"),
        ({}, "texts", "has no text file"),
        ({"short.txt": "123456789"}, "texts", r"has 8 tokens in its train part: must be at least images.size \+ 1 = 9"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, files: dict[str, str], folder: str | None, message: str) -> None:
    (tmp_path / "texts").mkdir()
    for name, content in files.items():
        (tmp_path / "texts" / name).write_text(content)
    place = None if folder is None else str(tmp_path / folder)
    with pytest.raises(UserError, match=message):
        load_images("text", image_settings(folder=place), str(tmp_path / "storage"))


# --- tokens of a tokenizer ---


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Return a file of a byte-pair encoding of 300 tokens, learned from a sentence."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["To be, or not to be, that is the question. Größe zählt: ½ × 2 = 1. "] * 3, trainer)
    path = tmp_path / "tokenizer.json"
    made.enable_truncation(4)  # as files often have it: neither must cut or fill the text
    made.enable_padding(length=8)
    made.save(str(path))
    return path


def test_tokens_of_a_tokenizer_stand_for_the_same_text(texts: Path, tmp_path: Path, tokenizer: Path) -> None:
    import tokenizers

    images = load(texts, tmp_path / "storage", tokenizer=str(tokenizer))
    windows = images.train.pixels
    numbers = [int(windows[0, 0]), *windows[:, 1:].ravel().tolist()]
    source = find_images("text", image_settings(folder=str(texts), tokenizer=str(tokenizer)), "unused")
    content = "".join(path.read_text() for path in source.files.values())
    parts = source.read(0.2)
    read = tokenizers.Tokenizer.from_file(str(tokenizer))
    assert content.startswith(read.decode(numbers).rstrip("\N{REPLACEMENT CHARACTER}"))
    assert len(images.classes) == read.get_vocab_size() > 256 >= max(map(len, [set(numbers)]))
    rest = read.decode(parts.test.tolist())
    assert content == read.decode(parts.train.tolist()) + rest, "nothing is lost between the parts"
    assert (
        images.bytes_per_token == pytest.approx(len(rest.encode()) / len(parts.test)) and images.bytes_per_token > 1.5
    )
    assert open_images(images.place).classes == images.classes
    assert load(texts, tmp_path / "storage").bytes_per_token == 1


@pytest.mark.parametrize(("content", "message"), [(None, "there is no such file"), ("{}", "cannot be read")])
def test_a_file_that_is_no_tokenizer_is_named(texts: Path, tmp_path: Path, content: str | None, message: str) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"tokenizer.json:? {message}"):
        load(texts, tmp_path / "storage", tokenizer=str(path))
