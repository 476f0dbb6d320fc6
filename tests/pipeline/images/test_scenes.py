"""Composed scenes, and scenes in files of Penn-Fudan's and COCO's format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_settings import small_settings

from pipeline.errors import UserError
from pipeline.images.dataset import ImageSubset
from pipeline.images.scene_folders import find_coco, find_penn_fudan
from pipeline.images.scene_sets import find_scenes, load_scenes, scaled
from pipeline.images.scenes import MOST_COVERED, Scene, compose_scenes, covered
from pipeline.params import DetectSettings

CLASSES = ("square", "bar")


@pytest.fixture(scope="module")
def objects() -> ImageSubset:
    """Return images of a bright square and of a bright bar on black."""
    pixels = np.zeros((2, 3, 20, 20), np.uint8)
    pixels[0, :, 5:15, 5:15] = 255
    pixels[1, :, 8:12, 1:19] = 255
    return ImageSubset(pixels, np.array([0, 1]))


# Composed scenes


def test_a_box_is_around_the_visible_pixels_of_its_object(objects: ImageSubset) -> None:
    for scene in compose_scenes(objects, CLASSES, 30, 80, seed=0).scenes:
        assert scene.pixels.shape == (3, 80, 80) and scene.pixels.dtype == np.uint8
        assert 1 <= len(scene.boxes) == len(scene.labels) <= 5
        for (left, top, right, bottom), label in zip(scene.boxes.astype(int), scene.labels, strict=True):
            assert 0 <= left < right <= 80 and 0 <= top < bottom <= 80
            width, height = right - left, bottom - top
            assert (abs(width - height) <= 2) if label == 0 else width > 2 * height
            inside = scene.pixels[:, top:bottom, left:right].mean()
            assert inside > scene.pixels.mean() + 20


def test_objects_hardly_cover_each_other(objects: ImageSubset) -> None:
    for scene in compose_scenes(objects, CLASSES, 30, 80, seed=1).scenes:
        for index, box in enumerate(scene.boxes):
            assert all(covered(box, other) <= MOST_COVERED + 1e-6 for other in scene.boxes[:index])


def test_a_scene_is_a_function_of_seed_and_index(objects: ImageSubset) -> None:
    few, more, other = (compose_scenes(objects, CLASSES, count, 64, seed) for count, seed in ((3, 0), (5, 0), (3, 1)))
    for index in range(3):
        assert np.array_equal(few[index].pixels, more[index].pixels)
        assert np.array_equal(few[index].boxes, more[index].boxes)
        assert not np.array_equal(few[index].pixels, other[index].pixels)


def test_the_share_that_is_covered_is_that_of_the_smaller_box() -> None:
    assert covered((0, 0, 10, 10), (5, 0, 15, 10)) == 0.5
    assert covered((0, 0, 10, 10), (4, 4, 6, 6)) == 1
    assert covered((0, 0, 10, 10), (10, 0, 20, 10)) == 0


def test_a_scaled_scene_keeps_its_shape_and_its_objects() -> None:
    pixels = np.zeros((3, 50, 100), np.uint8)
    pixels[:, 10:20, 40:80] = 200
    scene = scaled(Scene(pixels, np.array([[40, 10, 80, 20]], np.float32), np.array([0])), 50)
    assert scene.pixels.shape == (3, 25, 50)
    assert scene.boxes.tolist() == [[20, 5, 40, 10]]
    assert scene.pixels[:, 6:9, 21:39].min() == 200


# Penn-Fudan


ANNOTATION = """# Compatible with PASCAL Annotation Version 1.00
Image filename : "PennFudanPed/PNGImages/{name}.png"
Image size (X x Y x C) : 60 x 40 x 3
Objects with ground truth : 2 {{ "PASpersonWalking" "PASpersonWalking" }}
# Details for pedestrian 1 ("PASpersonWalking")
Bounding box for object 1 "PASpersonWalking" (Xmin, Ymin) - (Xmax, Ymax) : (11, 6) - (20, 35)
# Details for pedestrian 2 ("PASpersonWalking")
Bounding box for object 2 "PASpersonWalking" (Xmin, Ymin) - (Xmax, Ymax) : ({left}, 1) - (60, 40)
"""


def write_penn_fudan(folder: Path, count: int = 3) -> Path:
    (folder / "Annotation").mkdir(parents=True)
    (folder / "PNGImages").mkdir()
    for index in range(count):
        name = f"FudanPed{index:05d}"
        (folder / "Annotation" / f"{name}.txt").write_text(ANNOTATION.format(name=name, left=41))
        Image.fromarray(np.full((40, 60, 3), 50 * index, np.uint8)).save(folder / "PNGImages" / f"{name}.png")
    return folder


def test_boxes_of_penn_fudan_count_pixels_from_one_and_include_the_last(tmp_path: Path) -> None:
    found = find_penn_fudan(write_penn_fudan(tmp_path / "PennFudanPed"))
    assert (len(found), found.classes) == (3, ("pedestrian",))
    scene = found[1]
    assert scene.pixels.shape == (3, 40, 60) and (scene.pixels == 50).all()
    assert scene.boxes.tolist() == [[10, 5, 20, 35], [40, 0, 60, 40]]
    assert scene.labels.tolist() == [0, 0]


def test_files_that_are_not_penn_fudans_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no Annotation/\*.txt"):
        find_penn_fudan(tmp_path)
    folder = write_penn_fudan(tmp_path / "PennFudanPed")
    file = folder / "Annotation" / "FudanPed00001.txt"
    for text, message in {
        ANNOTATION.format(name="a", left=61): r"box \(60, 0\) to \(60, 40\) must have an area and lie within",
        "nothing": "FudanPed00001.txt names no image size",
    }.items():
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            find_penn_fudan(folder)
    file.write_text(ANNOTATION.format(name="a", left=41))
    (folder / "PNGImages" / "FudanPed00001.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"FudanPed00001.png cannot be decoded"):
        find_penn_fudan(folder)[1]
    (folder / "PNGImages" / "FudanPed00001.png").unlink()
    with pytest.raises(UserError, match=r"FudanPed00001.png is missing"):
        find_penn_fudan(folder)


# COCO


def coco() -> dict:
    return {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 60, "height": 40}, {"id": 9, "file_name": "b.jpg"}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"image_id": 7, "category_id": 18, "bbox": [10.5, 5, 20, 30], "iscrowd": 0},
            {"image_id": 7, "category_id": 3, "bbox": [0, 0, 60, 40]},
            {"image_id": 7, "category_id": 3, "bbox": [0, 0, 60, 400], "iscrowd": 1},
        ],
    }


def write_coco(folder: Path, content: object) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(folder / "images" / "a.jpg")
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def test_coco_has_classes_by_category_and_neither_crowds_nor_pictures_without_a_box(tmp_path: Path) -> None:
    found = find_coco(write_coco(tmp_path, coco()))
    assert (len(found), found.classes) == (1, ("car", "dog"))
    assert found[0].pixels.shape == (3, 40, 60)
    assert found[0].boxes.tolist() == [[10.5, 5, 30.5, 35], [0, 0, 60, 40]]
    assert found[0].labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [{"image_id": 7, "category_id": 3, "bbox": [50, 0, 20, 10]}]}, "must have an area and lie wi"),
        ({"annotations": [{"image_id": 7, "category_id": 3, "bbox": [5, 5, 0, 10]}]}, "must have an area and lie wi"),
        ({"annotations": [{"image_id": 8, "category_id": 3, "bbox": [5, 5, 1, 1]}]}, "image 8, which is not among"),
        ({"annotations": [{"image_id": 7, "category_id": 4, "bbox": [5, 5, 1, 1]}]}, "category 4, which is not among"),
        (
            {"annotations": [{"image_id": 9, "category_id": 3, "bbox": [5, 5, 1, 1]}]},
            "lacks file_name, width or",
        ),
        ({"annotations": []}, "has no boxes"),
        ({"categories": None}, "is not in COCO's format"),
        ({"images": [{"id": 7, "file_name": "c.jpg", "width": 60, "height": 40}]}, "c.jpg is missing"),
    ],
)
def test_a_file_that_is_not_cocos_is_refused_by_name(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_coco(write_coco(tmp_path, coco() | change))


def test_a_folder_without_annotations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"annotations.json not found"):
        find_coco(tmp_path)


# Settings


def settings(**changes: object) -> DetectSettings:
    return DetectSettings(**small_settings(detect=changes)["detect"])


def test_composed_scenes_are_of_other_digits_for_training_and_test(small_project: Callable) -> None:
    scenes = load_scenes(settings(images=10, test_images=3, held_out=0.2), "storage", seed=0)
    assert [len(part) for part in (scenes.train, scenes.held_out, scenes.test)] == [8, 2, 3]
    assert len(scenes.train.classes) == 10
    assert all(0 < mean < 1 for mean in (*scenes.mean, *scenes.std))
    assert load_scenes(settings(images=10, test_images=3, held_out=0.2), "storage", seed=0).digest == scenes.digest
    assert load_scenes(settings(images=10, test_images=3, held_out=0.2), "storage", seed=1).digest != scenes.digest


def test_scenes_of_a_folder_are_split_and_scaled(tmp_path: Path, small_project: Callable) -> None:
    folder = str(write_penn_fudan(tmp_path / "PennFudanPed", count=6))
    scenes = load_scenes(settings(dataset="penn_fudan", folder=folder, images=4, test_images=2), "storage", seed=0)
    assert [len(part) for part in (scenes.train, scenes.held_out, scenes.test)] == [3, 1, 2]
    assert {scene.pixels.shape for scene in scenes.train.scenes} == {(3, 21, 32)}


def test_a_missing_folder_and_too_few_pictures_are_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"detect.folder = nowhere: must be a folder"):
        find_scenes(settings(dataset="coco", folder="nowhere"))
    folder = str(write_penn_fudan(tmp_path / "PennFudanPed"))
    with pytest.raises(UserError, match=r"detect.images \+ detect.test_images = 7: must be at most 3"):
        find_scenes(settings(dataset="penn_fudan", folder=folder, images=5, test_images=2))
    assert find_scenes(settings()) is None
