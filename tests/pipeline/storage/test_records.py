"""Outputs and their records: what counts as finished after each kind of interruption and damage."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.files import write_bytes
from pipeline.storage.records import find_outputs, has_record, read_output, write_output, write_record

MADE_FROM = {"settings_hash": "abc", "first": 0}


def test_a_finished_output_is_found_with_its_data(tmp_path: Path) -> None:
    record = write_output(f"{tmp_path}/a.bin", b"content", MADE_FROM, {"images": 3})
    assert find_outputs(str(tmp_path)) == {"a.bin": record}
    assert read_output(f"{tmp_path}/a.bin", MADE_FROM) == (b"content", record)
    assert record.data == {"images": 3}


def test_a_finished_output_is_found_in_a_bucket(bucket: str) -> None:
    assert find_outputs(f"{bucket}/folder") == {}
    record = write_output(f"{bucket}/folder/a.bin", b"content", MADE_FROM)
    assert find_outputs(f"{bucket}/folder") == {"a.bin": record}
    assert read_output(f"{bucket}/folder/a.bin", MADE_FROM) == (b"content", record)


def test_an_output_without_a_record_is_not_finished(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.bin", b"content")
    assert find_outputs(str(tmp_path)) == {}
    assert read_output(f"{tmp_path}/a.bin", MADE_FROM) is None
    assert not has_record(f"{tmp_path}/a.bin")
    write_record(f"{tmp_path}/a.bin", b"content", MADE_FROM)
    assert list(find_outputs(str(tmp_path))) == ["a.bin"]
    assert has_record(f"{tmp_path}/a.bin")


def test_a_record_without_its_output_is_not_finished(tmp_path: Path) -> None:
    write_output(f"{tmp_path}/a.bin", b"content", MADE_FROM)
    (tmp_path / "a.bin").unlink()
    assert find_outputs(str(tmp_path)) == {}
    assert read_output(f"{tmp_path}/a.bin", MADE_FROM) is None


def test_an_output_of_another_size_is_not_finished(tmp_path: Path) -> None:
    write_output(f"{tmp_path}/a.bin", b"content", MADE_FROM)
    write_bytes(tmp_path / "a.bin", b"conten")
    assert find_outputs(str(tmp_path)) == {}
    assert read_output(f"{tmp_path}/a.bin", MADE_FROM) is None


def test_damage_that_keeps_the_size_is_noticed_when_the_output_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = write_output(f"{tmp_path}/a.bin", b"content", MADE_FROM)
    write_bytes(tmp_path / "a.bin", b"c0ntent")
    assert find_outputs(str(tmp_path)) == {"a.bin": record}
    assert not record.describes(b"c0ntent")
    assert read_output(f"{tmp_path}/a.bin", MADE_FROM) is None
    assert [one.getMessage() for one in caplog.records] == [f"{tmp_path}/a.bin is damaged: it is made again"]


def test_an_output_made_from_something_else_is_not_taken(tmp_path: Path) -> None:
    write_output(f"{tmp_path}/a.bin", b"content", MADE_FROM)
    for other in ({**MADE_FROM, "first": 5}, {**MADE_FROM, "seed": 1}, {}):
        assert read_output(f"{tmp_path}/a.bin", other) is None


def test_two_outputs_exchanged_with_their_records_are_not_taken(tmp_path: Path) -> None:
    for name, first in (("a.bin", 0), ("b.bin", 5)):
        write_output(f"{tmp_path}/{name}", b"content", {**MADE_FROM, "first": first})
    for folder, suffix in ((tmp_path, ""), (tmp_path / "records", ".json")):
        shutil.move(folder / f"a.bin{suffix}", folder / "c")
        shutil.move(folder / f"b.bin{suffix}", folder / f"a.bin{suffix}")
        shutil.move(folder / "c", folder / f"b.bin{suffix}")
    assert read_output(f"{tmp_path}/a.bin", {**MADE_FROM, "first": 0}) is None
    assert read_output(f"{tmp_path}/b.bin", {**MADE_FROM, "first": 5}) is None


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_of_a_record_is_noticed_wherever_it_is(position: float, bit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        record = write_output(f"{folder}/a.bin", b"content", MADE_FROM, {"sums": [1, 2, 3]})
        file = Path(folder) / "records" / "a.bin.json"
        content = bytearray(file.read_bytes())
        content[int(position * len(content))] ^= 1 << bit
        file.write_bytes(content)
        assert find_outputs(folder) in ({}, {"a.bin": record})  # JSON allows other white space


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'{"size": 7}', b"\xff"])
def test_a_damaged_record_is_none(tmp_path: Path, content: bytes) -> None:
    write_output(f"{tmp_path}/a.bin", b"content", MADE_FROM)
    write_bytes(tmp_path / "records" / "a.bin.json", content)
    assert find_outputs(str(tmp_path)) == {}
    assert read_output(f"{tmp_path}/a.bin", MADE_FROM) is None


def test_an_output_that_is_written_again_replaces_its_record(tmp_path: Path) -> None:
    write_output(f"{tmp_path}/a.bin", b"old", MADE_FROM)
    record = write_output(f"{tmp_path}/a.bin", b"content", MADE_FROM)
    assert read_output(f"{tmp_path}/a.bin", MADE_FROM) == (b"content", record)
