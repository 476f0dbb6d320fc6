"""A folder with everything that people's folders of images hold: what `ghn check` says of it, and what is decoded."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.images.load import load_images
from pipeline.params import Params
from pipeline.stages.check import check

CATS = (
    *("0.GIF", "1.jfif", "2.JP2", "3.webp", "16 bit.tiff", "rgba.PNG", "palette.png", "cmyk.jpg", "turned.JPEG"),
    *("my cat.png", "my%20cat.png", "what?.png", "a::b.png", "#1.png", "nested/deep er/7.png"),
    *(unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")),
)
"""Files of one class that are images, and are read."""


def picture(mode: str = "RGB") -> Image.Image:
    ramp = np.linspace(0, 255, 20 * 24 * 3).astype(np.uint8).reshape(20, 24, 3)
    return Image.fromarray(ramp).convert(mode)


def save(path: Path) -> None:
    """Write a picture in the format of its name, in the mode or with the data that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, object] = {"format": "JPEG"} if path.suffix == ".jfif" else {}
    image = picture("CMYK" if path.stem == "cmyk" else "RGBA" if path.stem == "rgba" else "RGB")
    if path.stem == "16 bit":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if path.stem == "palette":
        image, options = image.convert("P"), {"transparency": 0}
    if path.stem == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif}
    image.save(path, **options)


@pytest.fixture
def worst(tmp_path: Path) -> Path:
    """Return the folder; three of its files of class `cat` are named as images and are none, or half of one."""
    folder = tmp_path / "my pictures?"
    for name in CATS:
        save(folder / "cat" / name)
    for number in range(5):
        save(folder / unicodedata.normalize("NFD", "chién") / f"{number}.png")
    for hidden in (".ipynb_checkpoints/0.png", "cat/.thumbnails/0.png", "cat/.thumbnails/1.png", ".git/config.png"):
        save(folder / hidden)
    save(folder / "stray.png")
    for name in ("__MACOSX/cat/._0.GIF", ".DS_Store", "cat/Thumbs.db", "cat/desktop.ini", "README.md", "cat/a.heic"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not an image")
    (folder / "cat" / "nothing.png").touch()
    for name, target in (
        ("up", ".."),
        ("self", "."),
        ("again.gif", "0.GIF"),
        ("gone.png", "no.png"),
        ("round", "round"),
    ):
        (folder / "cat" / name).symlink_to(target)
    (folder / "cat" / "text.jpg").write_text("not an image")
    (folder / "cat" / "none.jpg").write_bytes(bytes(100))
    whole = folder / "cat" / "1.jfif"
    (folder / "cat" / "half.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return folder


def test_check_says_of_the_worst_folder_what_is_used_and_what_is_not(
    worst: Path, small_project: Callable[..., Params], capsys: pytest.CaptureFixture
) -> None:
    check(small_project(dataset="folder", images={"folder": str(worst), "passed_over": 0.25}))
    assert capsys.readouterr().out.splitlines()[:9] == [
        "folder: 25 images, 2 classes",
        f"passed over: 5 hidden (the name begins with a dot), such as {worst}/.DS_Store",
        f"passed over: 1 no image by its name, such as {worst}/README.md",
        f"passed over: 3 left by a system or an archive, such as {worst}/__MACOSX",
        f"passed over: 1 not in a class folder, such as {worst}/stray.png",
        f"passed over: 1 of a format that is not read, such as {worst}/cat/a.heic",
        f"passed over: 3 a link to what was already found, such as {worst}/cat/again.gif",
        f"passed over: 2 not readable, such as {worst}/cat/gone.png",
        f"passed over: 1 without any content, such as {worst}/cat/nothing.png",
    ]


def test_the_share_that_is_passed_over_is_refused_with_the_counts_and_the_setting(
    worst: Path, small_project: Callable[..., Params]
) -> None:
    with pytest.raises(UserError) as caught:
        check(small_project(dataset="folder", images={"folder": str(worst)}))
    assert str(caught.value).splitlines() == [
        f"image folder {worst}: 5 of 30 images would be passed over, more than images.passed_over = 0.01 allows: "
        f"1 not in a class folder, such as {worst}/stray.png; "
        f"1 of a format that is not read, such as {worst}/cat/a.heic; "
        f"2 not readable, such as {worst}/cat/gone.png; "
        f"1 without any content, such as {worst}/cat/nothing.png",
        "repair them, take them out of the folder, or raise images.passed_over",
    ]


def test_what_is_no_image_is_refused_by_name_and_all_else_is_decoded(
    worst: Path, small_project: Callable[..., Params]
) -> None:
    params = small_project(dataset="folder", images={"folder": str(worst), "passed_over": 0.25})
    refused = set()
    while len(refused) < 3:
        with pytest.raises(UserError, match=r"cannot be read as an image") as caught:
            load_images(params.dataset, params.images, params.storage)
        (name,) = (name for name in ("text.jpg", "none.jpg", "half.jpg") if f"{worst}/cat/{name}" in str(caught.value))
        (worst / "cat" / name).unlink()
        refused.add(name)
    images = load_images(params.dataset, params.images, params.storage)
    assert images.classes == ("cat", unicodedata.normalize("NFC", "chién"))
    assert len(images.train) + len(images.test) == len(CATS) + 5
