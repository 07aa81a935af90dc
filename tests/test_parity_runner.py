"""The parity runner: it passes what agrees, fails what does not, and refuses what it does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import parity
import pytest
import torch
from parity_cases import panet as panet_cases
from parity_cases.case import Case, compared, compared_exactly, compared_share, summary_of

import fssops

FILL = """
import zlib
import numpy as np

def fill(key, shape, salt=""):
    rng = np.random.RandomState(zlib.crc32((salt + "|" + key).encode()))
    scale = np.sqrt(1.5 / max(1, int(np.prod(shape[1:])))) if len(shape) > 1 else 0.05
    return (rng.standard_normal(tuple(shape)) * scale).astype(np.float32)
"""


def state_rows() -> list[list[Any]]:
    rows = []
    channels = 3
    for block, widths in enumerate(((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)):
        for position, width in enumerate(widths):
            key = f"encoder.backbone.features.{2 * block}.{2 * position}"
            rows += [[f"{key}.weight", [width, channels, 3, 3], "float32"], [f"{key}.bias", [width], "float32"]]
            channels = width
    return rows


def write_case(folder: Path, mode: str = "train", align: bool = True) -> dict[str, np.ndarray]:
    """A case of 2 ways, 1 shot, B = 2 with 2 queries, whose expected arrays are our own results."""
    folder.mkdir()
    (folder.parent / "oracle_weights.py").write_text(FILL)
    rng = np.random.default_rng(5)
    side = (24, 32)
    labels = rng.choice([0, 3, 9, 255], size=(2, 1, 2, *side)).astype(np.uint8)
    arrays = {
        "support_images": rng.normal(size=(2, 1, 2, 3, *side)).astype(np.float32),
        "support_labels": labels,
        "support_fg_mask": (labels == np.array([3, 9]).reshape(2, 1, 1, 1, 1)).astype(np.uint8),
        "support_bg_mask": (~np.isin(labels, [3, 9])).astype(np.uint8),
        "query_images": rng.normal(size=(2, 2, 3, *side)).astype(np.float32),
        "query_labels": rng.integers(0, 3, size=(4, *side)).astype(np.uint8),
    }
    description = {
        "case": folder.name,
        "model": "PANet (FewShotSeg, VGG-16 encoder)",
        "config": {"mode": mode, "align": align, "class_ids": [3, 9]},
        "salt": f"other-{folder.name}",
        "state_scale": {"encoder.backbone.features.8.4.bias": 2.0},
        "tolerance": {"default": "max|a-b| <= 1e-4 * max|b|", "grad": "<= 5e-3", "argmax": ">= 99.9 % equal"},
        "state": state_rows(),
        "arrays": {name: {"role": "input"} for name in arrays},
    }
    (folder / "case.json").write_text(json.dumps(description))
    np.savez(folder / "arrays.npz", **arrays)
    case = Case.read(folder)
    model = fssops.create_model("panet", align=align)
    fssops.load_weights(model, case.weights())
    found = panet_cases.computed(case, model)  # type: ignore[arg-type]
    expected = {name: value.detach().numpy() for name, value in found.items() if name != "feat"}
    expected["feat.stats"] = summary_of(found["feat"], "stats").numpy()
    if mode == "train":
        gradient = model.get_parameter("backbone.stage5.2.weight").grad
        assert gradient is not None
        expected["grad.encoder.backbone.features.8.4.weight.sample"] = summary_of(gradient, "sample").numpy()
    expected["something_else"] = np.zeros(3)
    arrays.update(expected)
    np.savez(folder / "arrays.npz", **arrays)
    return arrays


@pytest.mark.parametrize(("mode", "align"), [("train", True), ("train", False), ("eval", True)])
def test_a_case_that_agrees_passes_and_every_array_has_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, align: bool
) -> None:
    arrays = write_case(tmp_path / "case", mode, align)
    assert parity.main([str(tmp_path / "case")]) == 0
    printed = capsys.readouterr().out.splitlines()
    for name in arrays:
        assert sum(line.split()[0] == name for line in printed if line.strip()) == 1
    assert ("align_loss" in arrays) == (mode == "train")
    assert any(line.startswith("something_else ") and "not compared" in line for line in printed)
    assert any(line.startswith("support_bg_mask ") and "the dense mask" in line for line in printed)


@pytest.mark.parametrize("name", ["query_pred", "prototypes", "align_loss", "feat.stats"])
def test_an_array_that_is_out_fails_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    arrays = write_case(tmp_path / "case")
    arrays[name] = arrays[name] + 3e-4 * np.abs(arrays[name]).max()
    np.savez(tmp_path / "case" / "arrays.npz", **arrays)
    assert parity.main([str(tmp_path / "case")]) == 1
    out = [line for line in capsys.readouterr().out.splitlines() if " OUT " in line]
    assert len(out) == 1
    assert out[0].startswith(f"{name} ")


def test_unknown_systems_and_folders_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "oracle_weights.py").write_text(FILL)
    unknown, empty, bare = tmp_path / "unknown", tmp_path / "empty", tmp_path / "bare"
    for folder in (unknown, empty, bare):
        folder.mkdir()
    (unknown / "case.json").write_text('{"model": "SegNet"}')
    np.savez(unknown / "arrays.npz", x=np.zeros(1))
    (bare / "case.json").write_text("{}")
    assert parity.main([str(unknown)]) == 2
    assert "got a case of SegNet" in capsys.readouterr().err
    assert parity.main([str(empty), str(bare)]) == 2
    printed = capsys.readouterr().err
    assert "must hold case.json" in printed
    assert "must hold arrays.npz" in printed


def test_weights_are_filled_scaled_overridden_and_left_out_as_the_case_says(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    (tmp_path / "oracle_weights.py").write_text(FILL)
    rows = [[name, [4], "float32"] for name in ("a.weight", "b.weight", "c.bias", "index")]
    description = {
        "salt": "s",
        "state": rows,
        "state_scale": {"a.weight": 2.0},
        "scale_rules": [["weight$", 3.0], ["^b", 0.5]],
        "keep_constructed": ["^index$"],
        "weights_in_npz": ["c.bias"],
    }
    (folder / "case.json").write_text(json.dumps(description))
    np.savez(folder / "arrays.npz", **{"weights/c.bias": np.arange(4, dtype=np.float32)})
    case = Case.read(folder)
    weights = case.weights()
    assert list(weights) == ["a.weight", "b.weight", "c.bias"]
    np.testing.assert_allclose(weights["a.weight"], 6 * case.fill("a.weight", (4,), "s"), rtol=1e-6)
    np.testing.assert_allclose(weights["b.weight"], 1.5 * case.fill("b.weight", (4,), "s"), rtol=1e-6)
    assert weights["c.bias"].tolist() == [0, 1, 2, 3]


def test_errors_are_relative_to_the_largest_value_and_nan_is_out() -> None:
    want = np.array([0.0, 10.0])
    line = compared("x", torch.tensor([0.001, 10.0]), want, 1e-4)
    assert line.error == pytest.approx(1e-4)
    assert compared("x", torch.tensor([float("nan"), 10.0]), want, 1e-4).out
    assert compared("x", torch.zeros(3), want, 1e-4).out
    assert compared_share("x", torch.tensor([1, 2, 3, 4]), np.array([1, 2, 3, 5]), 0.75).out is False
    assert compared_share("x", torch.tensor([1, 2, 3, 4]), np.array([1, 2, 0, 5]), 0.75).out
    assert compared_exactly("x", torch.tensor([1, 2]), np.array([1, 3])).out
    assert not compared_exactly("x", torch.tensor([1, 2]), np.array([1, 2])).out


def test_what_is_kept_in_float16_stands_for_all_that_rounds_to_it() -> None:
    """Between 1024 and 2048 float16 holds whole numbers: 1500.4 is kept as 1500."""
    want = np.array([1500.0, -2.0], dtype=np.float16)
    assert compared("x", torch.tensor([1500.4, -2.0]), want, 1e-6).error == 0
    assert compared("x", torch.tensor([1501.5, -2.0]), want, 1e-6).error == pytest.approx(1 / 1500)
    assert compared("x", torch.tensor([1500.4, -2.0]), want.astype(np.float32), 1e-6).out


def test_an_array_is_held_to_the_tolerance_that_lists_it_and_cut_as_the_case_says() -> None:
    tolerances = {"default": "<= 1e-5", "prototype, cluster.*": "max|a-b| <= 2e-4 * max|b|"}
    table = {"whole": {}, "part": {"index": "[:, ::2, 1:3]", "what": "words"}, "row": {"index": "[..., 0]"}}
    description = {"tolerance": tolerances, "arrays": table, "subsample": {"elsewhere": "[1]"}}
    case = Case(Path("x"), description, {}, fill=lambda *_: np.zeros(0))
    assert case.tolerance_of("cluster.score", 1.0) == 2e-4
    assert case.tolerance_of("prototype", 1.0) == 2e-4
    assert case.tolerance_of("prototypes", 1.0) == 1e-5
    assert (case.what("part"), case.what("whole")) == ("words", "")
    values = torch.arange(60).view(3, 4, 5)
    assert torch.equal(case.cut("whole", values), values)
    assert torch.equal(case.cut("part", values), values[:, ::2, 1:3])
    assert torch.equal(case.cut("row", values), values[:, :, 0])
    assert torch.equal(case.cut("elsewhere", values), values[1])


@pytest.mark.parametrize(("said", "threads"), [("float32, CPU, one thread", 1), ("CPU in float32", 2)])
def test_a_case_runs_with_the_threads_of_its_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, threads: int
) -> None:
    write_case(tmp_path / "case")
    description = json.loads((tmp_path / "case" / "case.json").read_text())
    (tmp_path / "case" / "case.json").write_text(json.dumps({**description, "mode": said}))
    seen = []
    original = panet_cases.computed
    monkeypatch.setattr(panet_cases, "computed", lambda *a: seen.append(torch.get_num_threads()) or original(*a))
    before = torch.get_num_threads()
    assert not [line for line in parity.lines_of(tmp_path / "case") if line.out]
    assert seen == [threads]
    assert torch.get_num_threads() == before


def test_summaries_are_those_of_the_case_files() -> None:
    values = torch.arange(24.0).view(2, 12)
    assert summary_of(values, "stats").tolist() == pytest.approx(
        [11.5, np.arange(24).std(), 0.0, 23.0, np.linalg.norm(np.arange(24))]
    )
    assert torch.equal(summary_of(values, "sample"), values.flatten())
    assert summary_of(torch.arange(1000.0), "sample").tolist() == list(range(0, 768, 3))
