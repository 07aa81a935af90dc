"""Files of text that cannot be read say so in one line that names them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fssops.data.errors import AnnotationError
from fssops.data.text_files import read_json, read_lines


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 3}', '[{"x": {"a": [], "a": [1]}}]'])
def test_two_values_of_one_key_are_refused_instead_of_one_being_lost(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(AnnotationError, match=r"x\.json: table must be JSON text, got two values of the key 'a'"):
        read_json(tmp_path / "x.json", "table")


def test_one_value_said_twice_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": [1], "a": [1]}')
    assert read_json(tmp_path / "x.json", "table") == {"a": [1]}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xff", b"[" * 100_000, b"9" * 5000, b'{"a": 1}}'])
def test_what_is_no_json_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(AnnotationError, match=r"x\.json: table must be (complete JSON|JSON text), got") as caught:
        read_json(tmp_path / "x.json", "table")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-8"])
def test_json_and_lists_may_begin_with_a_byte_order_mark(tmp_path: Path, coding: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps(["ü"]), encoding=coding)
    assert read_json(tmp_path / "x.json", "table") == ["ü"]
    if coding != "utf-16":
        (tmp_path / "x.txt").write_text("ü\nb\n", encoding=coding)
        assert read_lines(tmp_path / "x.txt", "list") == ["ü", "b"]


def test_lists_in_another_coding_folders_and_missing_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("ü".encode("latin-1"))
    with pytest.raises(AnnotationError, match=r"x\.txt: list must be UTF-8 text"):
        read_lines(tmp_path / "x.txt", "list")
    for read in (read_lines, read_json):
        with pytest.raises(AnnotationError, match="list must be readable, got Is a directory"):
            read(tmp_path, "list")
        with pytest.raises(FileNotFoundError, match=r"no\.txt: list must exist, got nothing of that name"):
            read(tmp_path / "no.txt", "list")
