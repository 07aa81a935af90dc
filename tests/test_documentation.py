"""The documentation: its examples run, the names that it gives exist, and no setting goes unexplained."""

from __future__ import annotations

import ast
import importlib
import re
from functools import reduce
from pathlib import Path

import pytest

from fssops import ops
from fssops.recipes import list_recipes

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
EXAMPLES = [ROOT / "docs" / "operators.md", *sorted((ROOT / "docs" / "systems").glob("*.md"))]
SETTINGS = [ROOT / "fssops" / "engine" / "settings.py", *sorted((ROOT / "fssops" / "tasks").glob("*.py"))]


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.stem)
def test_the_examples_run(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, str(page), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_names_exist(page: Path) -> None:
    text = page.read_text()
    wrong = [name for name in re.findall(r"(?:`|::: )(fssops(?:\.\w+)+)", text) if not _exists(name)]
    wrong += [name for name in re.findall(r"`ops\.(\w+)", text) if not hasattr(ops, name)]
    recipes = re.findall(r"fssops\.train (\w+)(?= |$)|--recipe (\w+)", text, re.MULTILINE)
    wrong += [name for name in map("".join, recipes) if name not in list_recipes()]
    assert wrong == []


def test_the_settings_are_explained() -> None:
    silent = []
    for path in SETTINGS:
        for table in ast.parse(path.read_text()).body:
            if isinstance(table, ast.ClassDef) and any("Table" in ast.unparse(base) for base in table.bases):
                pairs = zip(table.body, [*table.body[1:], None], strict=True)
                silent += [
                    f"{table.name}.{ast.unparse(field.target)}" for field, after in pairs if _silent(field, after)
                ]
    assert silent == []


def _silent(field: ast.stmt, after: ast.stmt | None) -> bool:
    if not isinstance(field, ast.AnnAssign) or ast.unparse(field.target).startswith("_"):
        return False
    return not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))


def _exists(name: str) -> bool:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        try:
            reduce(getattr, parts[count:], found)
        except AttributeError:
            return False
        return True
    return False
