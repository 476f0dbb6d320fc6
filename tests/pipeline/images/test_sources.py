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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import UserError
from pipeline.images import pixels as image_pixels
from pipeline.images import sources as image_sets
from pipeline.images.load import load_cached_images
from pipeline.images.sources import list_datasets

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}  # in the order of the labels


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 12), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def class_folders(folder: Path, count: int = 3) -> Path:
    for name, colour in COLOURS.items():
        for number in range(count):
            paint(folder / name / f"{number}.png", colour, (12 + number, 12))
    return folder


def are_colours(part) -> bool:
    """Return whether each image has the colour that its label stands for."""
    expected = np.array(list(COLOURS.values()))[part.labels]
    return bool((part.pixels == expected[:, :, None, None]).all())


def refused(dataset: str, cache: Path, **options) -> str:
    """Return the message of the refusal; check that it is short and that no data was left behind."""
    with pytest.raises(UserError) as caught:
        load_cached_images(dataset, 8, cache, **options)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    assert not cache.exists() or {path.suffix for path in cache.iterdir()} <= {".lock"}
    return message


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
    """CIFAR's binary files with 2 images a class in each; pixels are red = label, green = 100, blue = 200."""
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


# Folders


def test_a_folder_of_class_folders_is_split_by_class(tmp_path) -> None:
    folder = class_folders(tmp_path / "pictures", count=10)
    images = load_cached_images("folder", 8, tmp_path / "cache", folder=str(folder))
    assert images.name == "pictures"
    assert images.classes == ("blue", "green", "red")
    assert np.bincount(images.train.labels).tolist() == [8, 8, 8]
    assert np.bincount(images.test.labels).tolist() == [2, 2, 2]
    assert are_colours(images.train)
    assert are_colours(images.test)


def test_a_path_is_a_data_set_too(tmp_path, monkeypatch) -> None:
    class_folders(tmp_path / "pictures")
    assert load_cached_images(str(tmp_path / "pictures"), 8, tmp_path / "cache").name == "pictures"
    monkeypatch.chdir(tmp_path)
    assert load_cached_images("./pictures", 8, tmp_path / "cache").name == "pictures"
    assert load_cached_images("pictures", 8, tmp_path / "cache").name == "pictures"


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_a_test_folder_beside_train_is_the_test_part(test_name, tmp_path) -> None:
    class_folders(tmp_path / "pictures" / "train", count=2)
    class_folders(tmp_path / "pictures" / test_name, count=5)
    images = load_cached_images("folder", 8, tmp_path / "cache", folder=str(tmp_path / "pictures"))
    assert np.bincount(images.train.labels).tolist() == [2, 2, 2]
    assert np.bincount(images.test.labels).tolist() == [5, 5, 5]
    assert are_colours(images.test)


def test_train_without_a_test_folder_is_split(tmp_path) -> None:
    class_folders(tmp_path / "pictures" / "train", count=5)
    images = load_cached_images("folder", 8, tmp_path / "cache", folder=str(tmp_path / "pictures"))
    assert images.classes == ("blue", "green", "red")
    assert np.bincount(images.test.labels).tolist() == [1, 1, 1]


def test_a_class_may_be_called_train(tmp_path) -> None:
    for name in ("bus", "train"):
        for number in range(2):
            paint(tmp_path / "vehicles" / name / f"{number}.jpg", (9, 9, 9))
    images = load_cached_images("folder", 8, tmp_path / "cache", folder=str(tmp_path / "vehicles"))
    assert images.classes == ("bus", "train")


def test_imagenet_is_train_and_val(tmp_path) -> None:
    for part, count in (("train", 3), ("val", 1)):
        for wnid in ("n01440764", "n01443537"):
            for number in range(count):
                paint(tmp_path / part / wnid / f"{number}.JPEG", (9, 9, 9), (50, 37))
    (tmp_path / "test").mkdir()
    paint(tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG", (9, 9, 9))
    images = load_cached_images("imagenet", 32, tmp_path / "cache", folder=str(tmp_path))
    assert images.classes == ("n01440764", "n01443537")
    assert (len(images.train), len(images.test)) == (6, 2)


def test_imagenet_with_unsorted_validation_images_is_refused(tmp_path) -> None:
    class_folders(tmp_path / "train")
    paint(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG", (9, 9, 9))
    message = refused("imagenet", tmp_path / "cache", folder=str(tmp_path))
    assert f"{tmp_path / 'val'} holds no class folders" in message


def test_images_in_deeper_folders_count_and_other_files_do_not(tmp_path) -> None:
    folder = class_folders(tmp_path / "pictures", count=2)
    paint(folder / "red" / "more" / "deeper" / "x.PNG", COLOURS["red"])
    (folder / "red" / "Thumbs.db").write_bytes(b"hello")
    (folder / "red" / "._0.png").write_bytes(b"hello")
    (folder / ".git").mkdir()
    images = load_cached_images("folder", 8, tmp_path / "cache", folder=str(folder))
    assert np.bincount(np.concatenate([images.train.labels, images.test.labels])).tolist() == [2, 2, 3]
    assert are_colours(images.train)


def test_a_missing_image_folder_is_refused_with_its_name(tmp_path) -> None:
    message = refused("folder", tmp_path / "cache", folder=str(tmp_path / "nowhere"))
    assert f"{tmp_path / 'nowhere'} does not exist" in message
    assert "<folder>/<class>/<image>" in message


def test_an_empty_image_folder_is_refused_with_its_name(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} holds no class folders" in refused(str(tmp_path / "empty"), tmp_path / "cache")


def test_a_folder_with_images_but_no_class_folders_is_refused_with_its_name(tmp_path) -> None:
    paint(tmp_path / "flat" / "0.png", (9, 9, 9))
    message = refused(str(tmp_path / "flat"), tmp_path / "cache")
    assert f"{tmp_path / 'flat'} holds no class folders" in message
    assert f"{tmp_path / 'flat'}/<class>/<image>" in message


def test_a_single_class_is_refused(tmp_path) -> None:
    paint(tmp_path / "one" / "cats" / "0.png", (9, 9, 9))
    assert "one class folder, cats" in refused(str(tmp_path / "one"), tmp_path / "cache")


def test_a_class_folder_without_images_is_refused_with_its_name(tmp_path) -> None:
    folder = class_folders(tmp_path / "pictures")
    (folder / "yellow").mkdir()
    (folder / "yellow" / "notes.txt").write_text("to do")
    message = refused(str(folder), tmp_path / "cache")
    assert f"{folder / 'yellow'} holds no images" in message
    assert ".png" in message


def test_a_class_with_one_image_cannot_be_split(tmp_path) -> None:
    folder = class_folders(tmp_path / "pictures")
    paint(folder / "yellow" / "0.png", (255, 255, 0))
    assert "class yellow of pictures has one image" in refused(str(folder), tmp_path / "cache")


def test_parts_with_different_classes_are_refused(tmp_path) -> None:
    class_folders(tmp_path / "pictures" / "train")
    paint(class_folders(tmp_path / "pictures" / "test") / "yellow" / "0.png", (255, 255, 0))
    message = refused(str(tmp_path / "pictures"), tmp_path / "cache")
    assert "class folder yellow is in only one of" in message


def test_an_unreadable_image_is_refused_with_its_name(tmp_path) -> None:
    folder = class_folders(tmp_path / "pictures", count=40)
    (folder / "green" / "7.png").write_bytes(b"this is not a picture")
    message = refused(str(folder), tmp_path / "cache")
    assert f"{folder / 'green' / '7.png'} cannot be read as an image" in message


def test_a_link_to_nothing_is_refused_with_its_name(tmp_path) -> None:
    folder = class_folders(tmp_path / "pictures")
    (folder / "red" / "link.png").symlink_to(tmp_path / "gone.png")
    message = refused(str(folder), tmp_path / "cache")
    assert (
        "1 of 10 images would be passed over: 1 not readable" in message and str(folder / "red" / "link.png") in message
    )


# Single pictures


def test_of_a_photo_the_central_square_is_taken(tmp_path) -> None:
    photo = Image.new("RGB", (300, 100), COLOURS["red"])
    photo.paste(COLOURS["green"], (100, 0, 200, 100))
    photo.save(tmp_path / "wide.png")
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "high.png")
    for name in ("wide.png", "high.png"):
        pixels = image_sets.resized(str(tmp_path / name), 10)
        assert (pixels[:, 1:-1, 1:-1].transpose(1, 2, 0) == COLOURS["green"]).all()


def test_a_photo_made_smaller_is_averaged_not_sampled(tmp_path) -> None:
    stripes = np.zeros((512, 512), dtype=np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    for image in (str(tmp_path / "stripes.png"), stripes[None]):
        pixels = image_sets.resized(image, 16).astype(int)
        assert np.abs(pixels - 127.5).max() < 2


@pytest.mark.parametrize("side", [1, 5, 16, 40])
def test_arrays_of_one_and_of_three_channels_become_three(side) -> None:
    gray = np.full((1, 16, 16), 77, dtype=np.uint8)
    assert (image_sets.resized(gray, side) == np.full((3, side, side), 77)).all()
    colour = np.array([1, 2, 3], dtype=np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2)
    assert (image_sets.resized(colour, side) == np.array([1, 2, 3])[:, None, None]).all()
    assert image_sets.resized(colour, side).shape == (3, side, side)


def to_16_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


@pytest.mark.parametrize(
    ("suffix", "convert"),
    [
        ("png", lambda image: image),
        ("png", lambda image: image.convert("L")),
        ("png", lambda image: image.convert("RGBA")),
        ("png", lambda image: image.convert("P")),
        ("png", to_16_bits),
        ("tiff", to_16_bits),
        ("jpg", lambda image: image),
        ("jpg", lambda image: image.convert("L")),
        ("jpg", lambda image: image.convert("CMYK")),
        ("webp", lambda image: image),
        ("bmp", lambda image: image),
        ("ppm", lambda image: image),
    ],
)
def test_a_gray_photo_is_the_same_in_every_format(suffix, convert, tmp_path) -> None:
    path = tmp_path / f"photo.{suffix}"
    convert(Image.new("RGB", (40, 30), (120, 120, 120))).save(path)
    pixels = image_sets.resized(str(path), 8)
    assert pixels.shape == (3, 8, 8)
    assert np.abs(pixels.astype(int) - 120).max() <= 3


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_stands_upright_however_the_camera_was_held(orientation, suffix, tmp_path) -> None:
    upright = Image.new("L", (32, 32), 0)
    upright.paste(255, (0, 0, 16, 16))  # the top left quarter is bright
    upright.paste(128, (16, 0, 32, 16))
    stored = upright.transpose(INVERSE_TURNS[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.convert("RGB").save(tmp_path / f"photo.{suffix}", exif=exif)
    pixels = image_sets.resized(str(tmp_path / f"photo.{suffix}"), 32)[0]
    quarters = [pixels[4:12, 4:12], pixels[4:12, 20:28], pixels[20:28, 4:12], pixels[20:28, 20:28]]
    assert [round(float(quarter.mean()) / 64) for quarter in quarters] == [4, 2, 0, 0]


INVERSE_TURNS = {
    turn: {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }.get(method, method)
    for turn, method in image_pixels._TURNS.items()
}


@pytest.mark.filterwarnings("ignore")  # Pillow warns about what it overlooks
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from(["png", "jpg", "bmp", "tiff", "webp", "ppm"]))
def test_a_damaged_file_is_read_or_refused_with_its_name(data, suffix, tmp_path) -> None:
    path = tmp_path / f"photo.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert image_sets.resized(str(path), 4).shape == (3, 4, 4)
    except UserError as error:
        assert str(path) in str(error)
