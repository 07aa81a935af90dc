"""Parquet files of Hugging Face's datasets: images and label maps inside them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_folders import H, W, halves, picture, save
from PIL import Image

from fssops.data.conversion import convert
from fssops.data.errors import DataError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.layouts import open_data, parquet
from fssops.data.source import ImageSource


def png(values: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(written, "PNG")
    return written.getvalue()


def rows(*labels: np.ndarray, image: str = "image", mask: str = "label") -> list[dict[str, Any]]:
    """Rows as ``datasets`` encodes them."""
    return [
        {
            "n": number,
            image: {"bytes": png(picture(number)), "path": f"{number}.jpg"},
            mask: {"bytes": png(values), "path": None},
        }
        for number, values in enumerate(labels)
    ]


def write(file: Path, content: list[dict[str, Any]], group: int = 2) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow (fssops[datasets])")
    from pyarrow.parquet import write_table

    file.parent.mkdir(parents=True, exist_ok=True)
    write_table(pyarrow.Table.from_pylist(content), file, row_group_size=group)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of training with three groups of rows, and one of validation."""
    root = tmp_path / "set"
    labels = [halves(0, 1), halves(1, 2), halves(2, 255), halves(0, 0), halves(2, 2)]
    write(root / "data" / "train-00000-of-00002-0a1b.parquet", rows(*labels[:3]))
    write(root / "data" / "train-00001-of-00002-9f8e.parquet", rows(*labels[3:]))
    write(root / "data" / "validation-00000-of-00001.parquet", rows(labels[1]))
    (root / "id2label.json").write_text(json.dumps({"0": "background", "1": "road", "2": "tree"}))
    return root


def labels_of(source: ImageSource) -> list[np.ndarray]:
    return [source.truth(name).semantic() for name in source.names]


def test_rows_of_all_files_of_a_split_are_its_images(folder: Path) -> None:
    source = open_data("auto", folder, truth="semantic")
    assert (source.format, source.split, len(source.names)) == ("parquet", "train", 5)
    assert source.classes.names == ["background", "road", "tree"]
    expected = [halves(0, 1), halves(1, 2), halves(2, 255), halves(0, 0), halves(2, 2)]
    assert all(np.array_equal(*pair) for pair in zip(labels_of(source), expected, strict=True))
    assert np.array_equal(np.asarray(source.image(source.names[2])), picture(2))
    assert np.array_equal(np.asarray(source.image(source.names[4])), picture(1))
    assert source.truth_files(source.names[4])[0].name == "train-00001-of-00002-9f8e.parquet"
    assert open_data("parquet", folder, truth="semantic", split="val").split == "validation"
    with pytest.raises(FileNotFoundError, match="split must be one of train, validation, got 'test'"):
        open_data("parquet", folder, truth="semantic", split="test")


def test_classes_are_few_shot_classes_by_their_ids(folder: Path) -> None:
    source = open_data("parquet", folder, truth="few-shot")
    assert isinstance(source, FewShotSource)
    assert source.classes == {1: "road", 2: "tree"}
    assert source.areas()[source.names[1]] == {1: 300, 2: 300}
    (folder / "id2label.json").write_text(json.dumps({"0": "sky", "1": "road", "2": "tree"}))
    assert open_data("parquet", folder, truth="few-shot").classes == {1: "sky", 2: "road", 3: "tree"}


def test_files_may_lie_in_folders_of_splits_and_name_pictures_beside_them(tmp_path: Path) -> None:
    save(tmp_path / "train" / "0.png", picture())
    content = rows(halves(0, 1))
    content[0]["image"] = {"bytes": None, "path": "0.png"}
    write(tmp_path / "train" / "0000.parquet", content)
    (tmp_path / "classes.json").write_text('["road", "tree"]')
    source = open_data("auto", tmp_path, truth="semantic", split="train")
    assert np.array_equal(np.asarray(source.image("000000")), picture())
    content[0]["image"] = {"bytes": None, "path": "../../secret.png"}
    write(tmp_path / "train" / "0000.parquet", content)
    with pytest.raises(DataError, match=r"image of row 0 must be a name below its folder"):
        open_data("parquet", tmp_path, truth="semantic").image("000000")


def test_columns_are_named_where_their_names_do_not_say_which_is_which(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", rows(halves(0, 1), image="photo"))
    (tmp_path / "classes.json").write_text('["road", "tree"]')
    with pytest.raises(DataError, match=r"train\.parquet: there must be a column image and one of label maps"):
        open_data("parquet", tmp_path, truth="semantic")
    assert len(open_data("parquet", tmp_path, truth="semantic", image="photo").names) == 1
    with pytest.raises(DataError, match=r"column must be one of pictures \(photo, label\), got 'n'"):
        open_data("parquet", tmp_path, truth="semantic", image="photo", mask="n")


def test_mistakes_name_the_file_and_the_row(folder: Path) -> None:
    file = folder / "data" / "validation-00000-of-00001.parquet"
    write(file, rows(halves(0, 7), halves(0, 1)[:, :5]))
    source = open_data("parquet", folder, truth="semantic", split="validation")
    with pytest.raises(DataError, match=r"validation.*label of row 0: mask must hold only class ids 0-2"):
        source.truth("000000")
    with pytest.raises(DataError, match=r"label of row 1: mask must have the size of its image, 30 x 20, got 5 x 20"):
        source.truth("000001")
    ignored = open_data("parquet", folder, truth="semantic", split="validation", unknown="ignore")
    with pytest.warns(UserWarning, match="mapped to 255"):
        assert (ignored.truth("000000").semantic()[:, W // 2 :] == 255).all()
    file.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"validation-00000-of-00001\.parquet: file must be Parquet, got "):
        open_data("parquet", folder, truth="semantic", split="validation")
    (folder / "id2label.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"classes\.json: class list must exist"):
        open_data("parquet", folder, truth="semantic")


def test_a_conversion_makes_files_of_the_same_pixels(folder: Path, tmp_path: Path) -> None:
    before = open_data("parquet", folder, truth="semantic")
    convert(folder, tmp_path / "labels", "label_folder")
    after = open_data("label_folder", tmp_path / "labels", truth="semantic", split="train")
    assert all(np.array_equal(*pair) for pair in zip(labels_of(before), labels_of(after), strict=True))
    for name in before.names:
        assert np.array_equal(np.asarray(before.image(name)), np.asarray(after.image(name)))
    convert(folder, tmp_path / "coco", "coco", splits=["validation"])
    coco = open_data("coco", tmp_path / "coco", truth="instance", split="validation")
    objects = coco.truth(coco.names[0]).objects or []
    assert [(coco.classes.names[one.label], int(one.mask(H, W).sum())) for one in objects] == [
        ("road", 300),
        ("tree", 300),
    ]


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.parquet").write_bytes(b"")
    (tmp_path / "classes.json").write_text('["road"]')
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert parquet.LAYOUT.recognise(tmp_path) == ""
    with pytest.raises(ImportError, match=r"pip install 'fssops\[datasets\]'"):
        open_data("parquet", tmp_path, truth="semantic")
