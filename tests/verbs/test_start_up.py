"""The command fssops: every verb answers at once, is named as typed, and imports nothing heavy for its help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fssops import __version__
from fssops.command_line import VERBS

HEAVY = {"torch", "lightning_fabric", "numpy", "scipy", "PIL", "matplotlib", "rich", "transformers"}
LIGHT = ["models", "doctor"]
"""Verbs whose help imports none of HEAVY."""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("verb", ["", *LIGHT])
def test_help_imports_nothing_heavy(verb: str) -> None:
    done = run("-X", "importtime", "-m", "fssops", *filter(None, [verb]), "--help")
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize("module", ["engine.settings", "engine.toml_text", "recipes", "tasks"])
def test_what_parsers_need_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, fssops.{module}; print(*({HEAVY} & {{name.partition('.')[0] for name in sys.modules}}))"
    assert run("-c", code).stdout == "\n"


def test_help_lists_every_verb_with_its_purpose() -> None:
    text = run("-m", "fssops", "--help").stdout
    for verb, (_, purpose) in VERBS.items():
        assert f"  {verb:<10}{purpose}\n" in text
    assert run("-m", "fssops", "--version").stdout == f"fssops {__version__}\n"
    for arguments, told in (([], "are required: VERB"), (["tran"], "invalid choice: 'tran'")):
        done = run("-m", "fssops", *arguments)
        assert done.returncode == 2
        assert told in done.stderr
        assert done.stderr.endswith("(see python -m fssops --help)\n")


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_the_same_as_a_module_and_below_the_command(verb: str) -> None:
    # A usage error comes from the parser alone.
    wrong = [run("-m", *start, "--no-such-option") for start in (["fssops", verb], [f"fssops.{verb}"])]
    assert [done.returncode for done in wrong] == [2, 2]
    for done, name in zip(wrong, (f"python -m fssops {verb}", f"python -m fssops.{verb}"), strict=True):
        assert f"(see {name} --help)" in done.stderr


def test_the_console_command_is_declared_and_names_itself(tmp_path: Path) -> None:
    tomllib = pytest.importorskip("tomllib")
    project = Path(__file__).parents[2] / "pyproject.toml"
    if not project.is_file():
        pytest.skip("needs the source tree")
    module, _, function = tomllib.loads(project.read_text())["project"]["scripts"]["fssops"].partition(":")
    script = tmp_path / "fssops"
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    assert run(str(script), "doctor", "--help").stdout.startswith("usage: fssops doctor")
    assert "(see fssops --help)" in run(str(script)).stderr
    assert "(see fssops doctor --help)" in run(str(script), "doctor", "--bogus").stderr
