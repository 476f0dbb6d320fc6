"""The data sets: what is read from which files, and what is said when a file is not as it should be."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import os
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from picture_folders import refused

from pipeline.errors import UserError
from pipeline.images import sources as image_sets
from pipeline.images.load import load_cached_images
from pipeline.images.sources import list_datasets

# Names


def test_every_listed_name_is_known_and_the_default_comes_first() -> None:
    assert list_datasets() == (
        *("mnist_5k", "digits", "faces", "fashion_mnist", "cifar10", "cifar100", "imagenet", "folder"),
    )


def test_an_unknown_name_is_refused_with_the_closest_and_all_possible_names(tmp_path) -> None:
    message = refused("minst_5k", tmp_path / "cache")
    assert "'minst_5k'" in message
    assert "did you mean mnist_5k?" in message
    assert all(name in message for name in list_datasets())


@pytest.mark.parametrize("dataset", ["", "qqqqqq"])
def test_a_name_close_to_none_gets_no_suggestion(dataset, tmp_path) -> None:
    assert "did you mean" not in refused(dataset, tmp_path / "cache")


@pytest.mark.parametrize("dataset", ["imagenet", "folder"])
def test_a_set_of_the_users_files_needs_to_know_the_folder(dataset, tmp_path) -> None:
    message = refused(dataset, tmp_path / "cache")
    assert f"dataset = {dataset} needs `folder`" in message


# Sets inside packages


def test_digits_are_the_1797_of_scikit_learn_on_the_full_scale_of_bytes(tmp_path) -> None:
    images = load_cached_images("digits", 8, tmp_path)
    assert len(images.train) + len(images.test) == 1797
    assert images.classes == tuple("0123456789")
    assert (images.train.pixels.min(), images.train.pixels.max()) == (0, 255)


def test_faces_are_100_faces_and_100_others(tmp_path) -> None:
    images = load_cached_images("faces", 25, tmp_path)
    assert images.classes == ("face", "no face")
    labels = np.concatenate([images.train.labels, images.test.labels])
    assert np.bincount(labels).tolist() == [100, 100]
    # The middle of a face is nose and cheeks: brighter than the rim, and alike in all faces.
    middle = images.train.pixels[:, 0, 8:17, 8:17].mean(axis=(1, 2))
    assert middle[images.train.labels == 0].std() < middle[images.train.labels == 1].std()


# Fashion-MNIST


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


@pytest.fixture
def fashion(tmp_path) -> Path:
    """Fashion-MNIST with 20 and 10 images; the value of each image's pixels is its position."""
    folder = tmp_path / "fashion"
    folder.mkdir()
    for part, count in (("train", 20), ("t10k", 10)):
        pixels = np.broadcast_to(np.arange(count)[:, None, None], (count, 28, 28))
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", pixels)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return folder


def is_the_small_fashion_mnist(images) -> bool:
    train, test = images.train, images.test
    return (
        train.pixels.shape == (20, 3, 28, 28)
        and test.pixels.shape == (10, 3, 28, 28)
        and (train.pixels == np.arange(20)[:, None, None, None]).all()
        and train.labels.tolist() == [*range(10), *range(10)]
        and test.labels.tolist() == [*range(10)]
    )


def test_fashion_mnist_is_read_from_a_folder_with_its_own_test_part(fashion, tmp_path) -> None:
    images = load_cached_images("fashion_mnist", 28, tmp_path / "cache", folder=str(fashion))
    assert is_the_small_fashion_mnist(images)
    assert images.classes[0] == "T-shirt/top"
    assert len(images.classes) == 10


def test_fashion_mnist_is_found_where_debian_installs_it(fashion, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(image_sets, "DEBIAN_FASHION_MNIST", fashion)
    assert is_the_small_fashion_mnist(load_cached_images("fashion_mnist", 28, tmp_path / "cache"))


def test_a_missing_file_of_fashion_mnist_is_named(fashion, tmp_path) -> None:
    (fashion / "t10k-labels-idx1-ubyte.gz").unlink()
    message = refused("fashion_mnist", tmp_path / "cache", folder=str(fashion))
    assert str(fashion / "t10k-labels-idx1-ubyte.gz") in message


def damaged_idx(good: bytes) -> dict[str, bytes]:
    content = gzip.decompress(good)
    return {
        "cut off": good[: len(good) // 2],
        "no gzip": b"hello",
        "too short": gzip.compress(content[:-1]),
        "only a header": gzip.compress(content[:5]),
        "empty": gzip.compress(b""),
        "another type": gzip.compress(b"\0\0\x0d\3" + content[4:]),
    }


@pytest.mark.parametrize("damage", damaged_idx(gzip.compress(bytes(20))))
def test_a_damaged_file_of_fashion_mnist_is_named(damage, fashion, tmp_path) -> None:
    path = fashion / "train-images-idx3-ubyte.gz"
    path.write_bytes(damaged_idx(path.read_bytes())[damage])
    assert str(path) in refused("fashion_mnist", tmp_path / "cache", folder=str(fashion))


def test_images_and_labels_of_different_number_are_refused(fashion, tmp_path) -> None:
    write_idx(fashion / "train-labels-idx1-ubyte.gz", np.arange(19) % 10)
    message = refused("fashion_mnist", tmp_path / "cache", folder=str(fashion))
    assert "20 images" in message
    assert "19 labels" in message


def test_a_label_without_a_class_is_refused(fashion, tmp_path) -> None:
    write_idx(fashion / "train-labels-idx1-ubyte.gz", np.arange(20))
    assert "label 19" in refused("fashion_mnist", tmp_path / "cache", folder=str(fashion))


# CIFAR


def cifar_files(name: str) -> dict[str, bytes]:
    """CIFAR's binary files with 2 images per class in each; pixels are red = label, green = 100, blue = 200."""
    cifar = image_sets.CIFAR[name]
    labels = np.repeat(np.arange(cifar.num_classes), 2)
    planes = np.stack([labels, np.full_like(labels, 100), np.full_like(labels, 200)], axis=1)
    coarse = np.full((len(labels), cifar.label_bytes - 1), 255)  # must not be taken for the label
    records = np.hstack([coarse, labels[:, None], np.repeat(planes, 32 * 32, axis=1)]).astype(np.uint8)
    files = dict.fromkeys((*cifar.train_files, cifar.test_file), records.tobytes())
    class_names = "".join(f"class{label}\n" for label in range(cifar.num_classes))
    return files | {cifar.classes_file: f"{class_names}\n".encode()}


def write_cifar(folder: Path, name: str) -> Path:
    inner = folder / image_sets.CIFAR[name].inner_folder
    inner.mkdir(parents=True)
    for file, content in cifar_files(name).items():
        (inner / file).write_bytes(content)
    return folder


def cifar_archive(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for file, content in {"readme.html": b"hello", **cifar_files(name)}.items():
            member = tarfile.TarInfo(f"{image_sets.CIFAR[name].inner_folder}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def is_the_small_cifar(images, name: str) -> bool:
    cifar = image_sets.CIFAR[name]
    red, green, blue = images.train.pixels.transpose(1, 0, 2, 3)
    return (
        images.classes == tuple(f"class{label}" for label in range(cifar.num_classes))
        and len(images.train) == 2 * cifar.num_classes * len(cifar.train_files)
        and len(images.test) == 2 * cifar.num_classes
        and (red == images.train.labels[:, None, None]).all()
        and (green == 100).all()
        and (blue == 200).all()
    )


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_its_unpacked_files(name, tmp_path) -> None:
    folder = write_cifar(tmp_path / "data", name)
    assert is_the_small_cifar(load_cached_images(name, 32, tmp_path / "cache", folder=str(folder)), name)
    inner = folder / image_sets.CIFAR[name].inner_folder
    assert is_the_small_cifar(load_cached_images(name, 32, tmp_path / "cache", folder=str(inner)), name)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_its_archive(name, tmp_path) -> None:
    (tmp_path / image_sets.CIFAR[name].archive).write_bytes(cifar_archive(name))
    assert is_the_small_cifar(load_cached_images(name, 32, tmp_path / "cache", folder=str(tmp_path)), name)


def test_a_folder_without_cifar_is_refused_with_what_is_expected(tmp_path) -> None:
    message = refused("cifar10", tmp_path / "cache", folder=str(tmp_path / "nothing"))
    assert str(tmp_path / "nothing") in message
    assert "cifar-10-binary.tar.gz" in message


def test_a_missing_batch_of_cifar_is_named(tmp_path) -> None:
    folder = write_cifar(tmp_path / "data", "cifar10")
    (folder / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    assert "data_batch_3.bin is missing" in refused("cifar10", tmp_path / "cache", folder=str(folder))


def test_half_a_record_of_cifar_is_refused(tmp_path) -> None:
    folder = write_cifar(tmp_path / "data", "cifar10")
    with open(folder / "cifar-10-batches-bin" / "test_batch.bin", "ab") as file:
        file.write(b"\0")
    message = refused("cifar10", tmp_path / "cache", folder=str(folder))
    assert "test_batch.bin" in message
    assert "3073 bytes" in message


def test_the_python_version_of_cifar_is_refused(tmp_path) -> None:
    archive = cifar_archive("cifar100")  # stands for any archive with other files
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(archive)
    assert "is it the binary version" in refused("cifar10", tmp_path / "cache", folder=str(tmp_path))


def test_a_damaged_archive_of_cifar_is_named(tmp_path) -> None:
    archive = cifar_archive("cifar10")
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(archive[: len(archive) // 2])
    message = refused("cifar10", tmp_path / "cache", folder=str(tmp_path))
    assert str(tmp_path / "cifar-10-binary.tar.gz") in message


@pytest.fixture
def server(tmp_path):
    """Start a web server on this machine; yield its address and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()


def served_cifar(address: str, archive: bytes):
    return replace(
        image_sets.CIFAR["cifar10"],
        url=f"{address}/cifar-10-binary.tar.gz",
        md5=hashlib.md5(archive, usedforsecurity=False).hexdigest(),
    )


def test_cifar_is_downloaded_once_for_all_sizes(server, tmp_path, monkeypatch) -> None:
    address, folder = server
    archive = cifar_archive("cifar10")
    (folder / "cifar-10-binary.tar.gz").write_bytes(archive)
    monkeypatch.setitem(image_sets.CIFAR, "cifar10", served_cifar(address, archive))
    assert is_the_small_cifar(load_cached_images("cifar10", 32, tmp_path / "cache"), "cifar10")
    (folder / "cifar-10-binary.tar.gz").unlink()
    assert is_the_small_cifar(load_cached_images("cifar10", 16, tmp_path / "cache"), "cifar10")
    assert os.listdir(tmp_path / "cache" / "downloads" / "cifar10") == ["cifar-10-binary.tar.gz"]


def test_a_download_with_another_checksum_is_not_kept(server, tmp_path, monkeypatch) -> None:
    address, folder = server
    (folder / "cifar-10-binary.tar.gz").write_bytes(b"something else")
    monkeypatch.setitem(image_sets.CIFAR, "cifar10", served_cifar(address, b"the archive"))
    with pytest.raises(UserError, match=r"cannot download .*cifar-10-binary\.tar\.gz"):
        load_cached_images("cifar10", 32, tmp_path / "cache")
    assert os.listdir(tmp_path / "cache" / "downloads" / "cifar10") == []


def test_without_internet_the_message_says_what_else_can_be_done(tmp_path, monkeypatch) -> None:
    nowhere = "http://127.0.0.1:9"  # the port is reserved for throwing data away; nothing listens
    monkeypatch.setitem(image_sets.CIFAR, "cifar10", served_cifar(nowhere, b""))
    with pytest.raises(UserError) as caught:
        load_cached_images("cifar10", 32, tmp_path / "cache")
    assert f"{nowhere}/cifar-10-binary.tar.gz" in str(caught.value)
    assert "`folder`" in str(caught.value)
    assert "mnist_5k" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
