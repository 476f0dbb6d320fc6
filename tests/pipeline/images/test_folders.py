"""Folders of class folders: what is found, and what is refused and why."""

from __future__ import annotations

import os
import unicodedata

import numpy as np
import pytest
from picture_folders import COLOURS, are_colours, class_folders, paint, refused
from unprivileged import folder_of_all, without_privileges

from pipeline.images.folders import scan
from pipeline.images.load import load_cached_images
from pipeline.images.sources import find_dataset


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
    assert "1 of 10 images would be passed over" in message
    assert f"1 not readable, such as {folder}/red/link.png" in message


# Parts and classes


@pytest.mark.parametrize("train_name", ["train", "Train", "TRAINING", "seg_train"])
@pytest.mark.parametrize("test_name", ["test", "Testing", "VAL", "Valid", "validation", "seg_test"])
def test_parts_are_known_by_their_names_in_any_case(train_name, test_name, tmp_path) -> None:
    class_folders(tmp_path / "pictures" / train_name, count=2)
    class_folders(tmp_path / "pictures" / test_name, count=3)
    found = scan(tmp_path / "pictures")
    assert found.classes == ["blue", "green", "red"]
    assert [len(files) for files in found.train.values()] == [2, 2, 2]
    assert [len(files) for files in found.test.values()] == [3, 3, 3]


def test_of_several_parts_for_testing_one_is_used_and_the_others_are_counted(tmp_path) -> None:
    for part, count in (("train", 2), ("val", 3), ("test", 1)):
        class_folders(tmp_path / "pictures" / part, count=count)
    found = scan(tmp_path / "pictures")
    assert found.summary().splitlines() == [
        "9 images (6 to train on, 3 to test on), 3 classes",
        f"passed over: 9 in a part that is not used, such as {tmp_path}/pictures/val",
    ]


def test_folders_that_may_be_parts_or_classes_are_refused_with_both_meanings(tmp_path) -> None:
    for name in ("first", "second"):
        class_folders(tmp_path / "pictures" / name)
    message = refused(str(tmp_path / "pictures"), tmp_path / "cache")
    assert "first and second hold the same folders, blue, green, red" in message
    assert f"call the parts train and test, or give one part: {tmp_path}/pictures/first" in message
    assert "if it is first and second, take their images out of the inner folders" in message
    assert load_cached_images(str(tmp_path / "pictures" / "first"), 8, tmp_path / "cache").classes[0] == "blue"


def test_class_folders_may_hold_equal_folders_beside_their_own_images(tmp_path) -> None:
    for name in ("cats", "dogs"):
        class_folders(tmp_path / "pictures" / name)
        paint(tmp_path / "pictures" / name / "0.png", COLOURS["red"])
    assert [len(files) for files in scan(tmp_path / "pictures").train.values()] == [10, 10]


def test_a_folder_around_the_classes_is_refused_with_the_folder_that_is_meant(tmp_path) -> None:
    class_folders(tmp_path / "unpacked" / "animals")
    paint(tmp_path / "unpacked" / "__MACOSX" / "animals" / "._0.png", (9, 9, 9))
    message = refused(str(tmp_path / "unpacked"), tmp_path / "cache")
    assert f"did you mean {tmp_path}/unpacked/animals?" in message


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def test_a_class_is_the_same_however_unicode_composes_its_name(tmp_path) -> None:
    for part, name in (("train", COMPOSED), ("test", DECOMPOSED)):
        for folder in (name, "bar"):
            paint(tmp_path / "pictures" / part / folder / "0.png", (9, 9, 9))
    found = scan(tmp_path / "pictures")
    assert found.classes == ["bar", COMPOSED]
    assert found.test[COMPOSED] == [f"{tmp_path}/pictures/test/{DECOMPOSED}/0.png"]
    paint(tmp_path / "pictures" / "train" / DECOMPOSED / "0.png", (9, 9, 9))
    assert "have the same name, composed from letters in two ways" in refused(
        str(tmp_path / "pictures"), tmp_path / "cache"
    )


# Links


def test_links_to_parents_and_other_classes_bring_no_image_twice(tmp_path) -> None:
    folder = class_folders(tmp_path / "pictures" / "train", count=2)
    class_folders(tmp_path / "pictures" / "test", count=1)
    for name, target in (("up", ".."), ("top", "../.."), ("self", "."), ("red", "../red"), ("test", "../../test/red")):
        (folder / "blue" / name).symlink_to(target)
    found = scan(tmp_path / "pictures")
    assert [len(files) for part in (found.train, found.test) for files in part.values()] == [2, 2, 2, 1, 1, 1]
    assert found.passed_over.counts == {"a link to what was already found": 5}


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path) -> None:
    folder = class_folders(tmp_path / "pictures", count=1)
    class_folders(tmp_path / "more", count=4)
    (folder / "red" / "more").symlink_to(tmp_path / "more" / "red")
    assert [len(files) for files in scan(folder).train.values()] == [1, 1, 5]


@pytest.mark.parametrize(("link", "target"), [("x", "red"), ("train/x", "red"), ("train/a", "red"), ("test", "train")])
def test_a_part_or_class_that_is_a_link_to_another_is_refused_with_its_name(link, target, tmp_path) -> None:
    folder = tmp_path / "pictures"
    class_folders(folder / "train" if link.startswith("t") else folder)
    (folder / link).symlink_to(target)
    message = refused(str(folder), tmp_path / "cache")
    assert "is the same as another part or class, by a link" in message
    assert f"folder {(folder / link).parent}" in message


# What cannot be read


def test_a_folder_that_cannot_be_read_is_refused_with_its_name(tmp_path) -> None:
    with folder_of_all() as place:
        folder = class_folders(place / "pictures")
        (folder / "red" / "more").mkdir(mode=0)
        with without_privileges():
            message = refused(str(folder), place / "cache")
    assert f"folder {folder}/red/more cannot be read: Permission denied" in message


def test_a_file_that_cannot_be_read_is_passed_over_where_the_setting_allows_it(tmp_path) -> None:
    with folder_of_all() as place:
        folder = class_folders(place / "pictures")
        (folder / "red" / "0.png").chmod(0)
        with without_privileges():
            message = refused(str(folder), place / "cache")
            found = find_dataset(str(folder), None, place, most_passed_over=0.12).found
    assert "1 of 9 images would be passed over, more than images.passed_over = 0.01 allows: 1 not readable" in message
    assert found.summary().splitlines() == [
        "8 images, 3 classes",
        f"passed over: 1 not readable, such as {folder}/red/0.png",
    ]


def test_a_share_of_one_hundredth_is_what_may_be_passed_over(tmp_path) -> None:
    folder = class_folders(tmp_path / "pictures", count=33)
    (folder / "red" / "0.heic").write_bytes(b"a photo")
    assert scan(folder).num_images == 99
    find_dataset(str(folder), None, tmp_path)
    (folder / "red" / "1.heic").write_bytes(b"another photo")
    message = refused(str(folder), tmp_path / "cache")
    assert "2 of 101 images would be passed over, more than images.passed_over = 0.01 allows" in message
    assert f"2 of a format that is not read, such as {folder}/red/0.heic" in message
    find_dataset(str(folder), None, tmp_path, most_passed_over=0.02)


def test_a_name_that_is_no_text_can_be_printed(tmp_path) -> None:
    folder = class_folders(tmp_path / "pictures")
    (folder / "red" / os.fsdecode(b"caf\xe9.txt")).write_text("to do")
    assert scan(folder).summary().splitlines()[1].endswith(r"red/caf\xe9.txt")
    scan(folder).summary().encode()


@pytest.mark.parametrize("address", ["file:///pictures/of%20cats", "s3://bucket/pictures", "https://example.org/a"])
def test_an_address_in_place_of_a_path_is_refused_with_what_it_is(address, tmp_path) -> None:
    for message in (
        refused(address, tmp_path / "cache"),
        refused("folder", tmp_path / "cache", folder=address),
    ):
        assert f"= {address} is an address: must be the path of a folder" in message
        assert ("such as /pictures/of cats" in message) == address.startswith("file:")
