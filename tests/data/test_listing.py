"""Files of a folder: order, hidden files, links, and what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from fssops.data.listing import folders_in, natural, pictures_in


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def listed(folder: Path, **options: bool) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in pictures_in(folder, **options).files]


def test_numbers_in_names_count_as_numbers(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number}.png" for number in (10, 2, 1, 12, 11)), "a10b2.png", "a9b11.png", "a10b1.png")
    assert listed(tmp_path) == ["1.png", "2.png", "10.png", "11.png", "12.png", "a9b11.png", "a10b1.png", "a10b2.png"]


def test_names_of_one_number_keep_an_order_of_their_own() -> None:
    for names in (["01.png", "1.png", "001.png"], ["1.png", "001.png", "01.png"]):
        assert sorted(names, key=natural) == ["001.png", "01.png", "1.png"]
    padded = [f"seq{a}_{b:05d}" for a in "ab" for b in (3, 20, 100)]
    assert sorted(padded, key=natural) == sorted(padded)


def test_hidden_files_are_no_pictures_and_everything_left_out_has_a_reason(tmp_path: Path) -> None:
    touch(tmp_path, "a.JPG", "._a.jpg", ".b.jpg", ".thumbnails/c.jpg", "notes.txt", "d.jpg/e.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    listing = pictures_in(tmp_path)
    assert listed(tmp_path) == ["a.JPG", "d.jpg/e.png"]
    reasons = {path.relative_to(tmp_path).as_posix(): reason for path, reason in listing.left_out}
    assert reasons == {
        "._a.jpg": "hidden",
        ".b.jpg": "hidden",
        ".thumbnails": "hidden",
        "notes.txt": "other suffix",
        "gone.png": "link to nothing",
    }
    assert f"{tmp_path}: 3 left out (hidden), e.g. ._a.jpg" in listing.notes()


def test_sub_folders_are_read_where_others_lie_on_top_or_told(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "more/a.png", "more/deeper/c.png")
    assert listed(tmp_path) == ["b.png", "more/a.png", "more/deeper/c.png"]
    assert listed(tmp_path, below=False) == ["b.png"]
    assert pictures_in(tmp_path, below=False).left_out == ((tmp_path / "more", "sub-folder"),)


def test_linked_folders_are_followed_without_going_round(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.png", "set/b.png")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
    assert listed(tmp_path / "set") == ["again/a.png", "b.png", "linked/a.png"]
    told = [reason for _, reason in pictures_in(tmp_path / "set").left_out]
    assert told == ["link to a folder that it lies in"] * 2


def test_files_of_one_stem_are_grouped_by_their_place(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "more/a.png", "a.b.png")
    grouped = pictures_in(tmp_path).by_stem()
    assert {stem: len(paths) for stem, paths in grouped.items()} == {"a": 2, "more/a": 1, "a.b": 1}


def test_folders_are_named_in_natural_order_and_a_missing_one_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "10/x", "9/x", ".hidden/x", "file")
    assert folders_in(tmp_path) == ["9", "10"]
    assert folders_in(tmp_path / "file") == folders_in(tmp_path / "none") == []
    with pytest.raises(FileNotFoundError, match="none: folder must exist, got no such folder"):
        pictures_in(tmp_path / "none")
