"""python -m fssops.models and python -m fssops.convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fssops
from fssops import convert
from fssops.command_line import exit_code_of
from fssops.models import MODELS
from fssops.models import __main__ as models_verb


def test_the_table_lists_every_model_and_what_weights_it_accepts(capsys: pytest.CaptureFixture[str]) -> None:
    assert models_verb.main([]) == 0
    printed = capsys.readouterr().out
    for name in fssops.list_models():
        assert name in printed
    assert "authors (kaixin96/PANet)" in printed


def test_json_holds_options_that_create_model_accepts(capsys: pytest.CaptureFixture[str]) -> None:
    assert models_verb.main(["--json", "panet"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["task"] == "few-shot"
    assert row["options"]["scale"] == 20.0
    assert fssops.create_model("panet", **(row["options"] | {"backbone_width": 2})) is not None


def test_a_recipe_belongs_to_the_longest_name_that_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_verb, "list_recipes", lambda: ["panet_pascal5i", "panet_x_voc", "panetta_voc"])
    monkeypatch.setattr(models_verb, "MODELS", {"panet": None, "panet_x": None})
    assert models_verb.recipes_of("panet") == ["panet_pascal5i"]
    assert models_verb.recipes_of("panet_x") == ["panet_x_voc"]


def test_an_unknown_model_is_an_error_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of("models", models_verb.main, ["segnet"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", list(MODELS))
def test_every_row_names_classes_that_exist(name: str) -> None:
    row = MODELS[name]
    config = row.config_class()()
    assert row.model_class().name == name  # type: ignore[attr-defined]
    assert config == row.config_class()()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbon": "vgg16"}, "did you mean 'backbone'"),
        ({"scale": "wide"}, "scale must be a valid number.* got 'wide'"),
        ({"backbone": "vgg19"}, "backbone must be one of vgg16, .* got 'vgg19'"),
        ({"scale": -1}, "scale must be more than 0, got -1"),
    ],
)
def test_create_model_names_the_option_the_rule_and_the_value(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fssops.create_model("panet", **options)
    with pytest.raises(ValueError, match="did you mean 'panet'"):
        fssops.create_model("panett")


def authors_file(folder: Path) -> Path:
    model = fssops.create_model("panet", backbone_width=2)
    state = {}
    for key, value in model.state_dict().items():
        _, stage, position, kind = key.split(".")
        state[f"module.encoder.backbone.features.{2 * int(stage[-1]) - 2}.{2 * int(position)}.{kind}"] = value
    torch.save(state, folder / "30000.pth")
    return folder / "30000.pth"


def test_convert_writes_a_file_that_loads_and_prints_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = authors_file(tmp_path), tmp_path / "panet.safetensors"
    assert convert.main([str(source), str(output), "--model", "panet", "--set", "backbone_width=2"]) == 0
    printed = capsys.readouterr().out
    assert "authors (kaixin96/PANet)" in printed
    assert "26" in printed
    model = fssops.create_model("panet", backbone_width=2)
    assert fssops.load_weights(model, output).layout == "fssops"
    expected = torch.load(source)["module.encoder.backbone.features.8.4.weight"]
    assert torch.equal(model.get_parameter("backbone.stage5.2.weight"), expected)


def test_convert_refuses_in_one_line_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = authors_file(tmp_path), tmp_path / "out.safetensors"
    (tmp_path / "cut.pth").write_bytes(source.read_bytes()[:500])
    for arguments, message in (
        ([source, output, "--model", "panet"], "must be [64, 3, 3, 3]"),
        ([tmp_path / "cut.pth", output, "--model", "panet"], "cut.pth is truncated"),
        ([source, tmp_path / "out.pth", "--model", "panet"], "must end in .safetensors"),
        ([source, output, "--model", "panet", "--set", "backbone_width"], "--set must be KEY=VALUE"),
        ([source, output, "--model", "panet", "--set", "width=2"], "options of panet are"),
        ([tmp_path / "none.pth", output, "--model", "panet"], "path must exist"),
    ):
        assert exit_code_of("convert", convert.main, [str(a) for a in arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not output.exists()


def test_a_run_is_converted_by_what_it_says_of_itself(tiny_run: Path, tmp_path: Path, verb: Any) -> None:
    for number, source in enumerate((tiny_run, tiny_run / "checkpoints" / "last.pt")):
        output = tmp_path / f"{number}.safetensors"
        code, out, err = verb("convert", source, output)
        assert code == 0, err
        assert str(tiny_run / "checkpoints" / "last.pt") in out
        written = load_file(output)
        trained = torch.load(tiny_run / "checkpoints" / "last.pt", weights_only=True)["model"]
        assert all(torch.equal(written[name], value) for name, value in trained.items())


def test_convert_teaches_with_examples_and_tells_mistakes_in_two_lines(tmp_path: Path, verb: Any) -> None:
    code, out, _ = verb("convert", "--help")
    assert (code, "examples:" in out) == (0, True)
    source = authors_file(tmp_path)
    for arguments, told in (
        ([source, tmp_path / "none" / "out.safetensors", "--model", "panet"], "must lie in a folder that exists"),
        ([source, tmp_path / "out.safetensors", "--model", "panett"], "invalid choice: 'panett'"),
        ([source, tmp_path / "out.safetensors"], "--model must be given unless the checkpoint is a run"),
        ([source], "the following arguments are required: output"),
    ):
        code, _, err = verb("convert", *arguments)
        assert code == 2
        assert told in err
        assert len(err.splitlines()) <= 2


def test_convert_overwrites_only_when_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = authors_file(tmp_path), tmp_path / "out.safetensors"
    output.write_text("precious")
    arguments = [str(source), str(output), "--model", "panet", "--set", "backbone_width=2"]
    assert exit_code_of("convert", convert.main, arguments) == 2
    assert output.read_text() == "precious"
    assert convert.main([*arguments, "--force"]) == 0
