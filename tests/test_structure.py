"""The tree keeps its rules: who may include or import whom; an operator or a system is found in every layer."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC, PACKAGE = ROOT / "csrc", ROOT / "fssops"

pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="needs the source tree")

OPERATORS = sorted(p.name for p in CSRC.glob("*") if p.is_dir() and (p / f"{p.name}_torch.cpp").is_file())
CONFIGS = sorted(
    name
    for path in (PACKAGE / "models").rglob("*.py")
    for name in re.findall(r"^class (\w+Config)\b", path.read_text(), re.MULTILINE)
    if name != "UniversalConfig"  # which systems extend
)


def _includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def _native_files() -> list[Path]:
    return sorted(p for p in CSRC.rglob("*") if p.suffix in (".h", ".cuh", ".cpp", ".cu"))


def test_only_registration_files_include_torch_and_only_its_stable_part() -> None:
    allowed = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/shim.h")
    for path in _native_files():
        from_torch = [i for i in _includes(path) if i.startswith(("torch/", "ATen/", "c10/"))]
        if "_torch" not in path.stem and path.name not in ("check.h", "check_cuda.h"):
            assert not from_torch, f"{path.relative_to(ROOT)} includes {from_torch}"
        assert all(i.startswith(allowed) for i in from_torch), f"{path.relative_to(ROOT)} includes {from_torch}"


def test_operators_include_common_and_themselves_only() -> None:
    folders = {p.name for p in CSRC.iterdir() if p.is_dir()}
    for path in _native_files():
        own = path.relative_to(CSRC).parts[0]
        others = {i.split("/")[0] for i in _includes(path)} & folders - {own, "common"}
        assert not others, f"{path.relative_to(ROOT)} includes from {sorted(others)}"


def test_files_compiled_per_instruction_set_share_no_template_instances() -> None:
    # Standard containers would be instantiated once per set and merged by the linker: one processor, another's code.
    shared = {"vector", "algorithm", "functional", "memory", "string", "map", "array", "sstream", "iostream", "numeric"}
    for path in CSRC.rglob("*_cpu.cpp"):
        assert not shared & set(_includes(path)), path.name


def test_no_two_translation_units_share_a_stem() -> None:
    stems = [p.name for p in _native_files() if p.suffix in (".cpp", ".cu")]
    assert len(stems) == len(set(stems))


@pytest.mark.parametrize("op", OPERATORS)
def test_operator_is_found_by_its_name_in_every_layer(op: str) -> None:
    roles = [f"{op}.h", f"{op}_cpu.cpp", f"{op}_cuda.cuh", f"{op}_cuda.cu", f"{op}_torch.cpp", f"{op}_torch_cuda.cpp"]
    places = [CSRC / op / role for role in roles]
    places += [
        PACKAGE / "ops" / f"{op}.py",
        PACKAGE / "reference" / f"{op}.py",
        ROOT / "tests" / "ops" / f"test_{op}.py",
    ]
    places += [ROOT / "tests" / "emulation" / f"test_{op}_emulated.py", ROOT / "benchmarks" / f"bench_{op}.py"]
    missing = [str(p.relative_to(ROOT)) for p in places if not p.is_file()]
    assert not missing
    from fssops import doctor, ops, reference

    assert op in ops.__all__
    assert hasattr(reference, op)
    assert op in doctor.OPERATORS
    assert f"`{op}`" in (ROOT / "README.md").read_text(), "the README's table has a row for it"


@pytest.mark.parametrize("config", CONFIGS)
def test_system_is_found_by_its_name_in_every_layer(config: str) -> None:
    from fssops.models import MODELS

    (system,) = [row.name for row in MODELS.values() if f"{row.model}Config" == config]
    assert (ROOT / "tests" / "models" / f"test_{system}.py").is_file()
    assert f"`{system}`" in (ROOT / "README.md").read_text()


METRIC_FILES = sorted(
    p.stem for p in (PACKAGE / "evaluation" / "metrics").glob("*.py") if p.stem not in ("__init__", "metric")
)


@pytest.mark.parametrize("file", METRIC_FILES)
def test_metric_is_a_file_and_its_test(file: str) -> None:
    from fssops.evaluation.metrics import METRICS

    assert [name for name, metric in METRICS.items() if metric.__module__ == f"fssops.evaluation.metrics.{file}"]
    assert (ROOT / "tests" / "evaluation" / "metrics" / f"test_{file}.py").is_file()


def test_every_family_of_backbones_has_its_test() -> None:
    families = {p.stem for p in (PACKAGE / "models" / "backbones").glob("*.py")} - {"__init__", "backbone"}
    tests = {p.stem.removeprefix("test_") for p in (ROOT / "tests" / "models" / "backbones").glob("test_*.py")}
    assert families == tests


LAYOUT_FILES = sorted(p.stem for p in (PACKAGE / "data" / "layouts").glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("file", LAYOUT_FILES)
def test_layout_is_one_file_that_declares_itself_and_its_test(file: str) -> None:
    import importlib
    import inspect

    from fssops.data.layout import TRUTHS
    from fssops.data.layouts import LAYOUTS

    module = importlib.import_module(f"fssops.data.layouts.{file}")
    declared = getattr(module, "LAYOUTS", None) or (module.LAYOUT,)
    for layout in declared:
        assert LAYOUTS[layout.name] is layout
        assert layout.files
        assert layout.readers
        assert set(layout.offers) <= set(TRUTHS)
        for truth, reader in layout.readers.items():
            assert "split" in layout.options(truth), f"{layout.name} for {truth}"
            assert inspect.getdoc(getattr(reader, "func", reader)), f"{layout.name} for {truth} explains its options"
        assert layout.recognise(ROOT / "csrc"), "a folder of something else has a reason"
    assert (ROOT / "tests" / "data" / "layouts" / f"test_{file}.py").is_file()


def test_every_layout_is_found_once_and_importing_them_brings_nothing_heavy() -> None:
    import subprocess
    import sys

    from fssops.data.layouts import LAYOUTS

    text = "".join((PACKAGE / "data" / "layouts" / f"{file}.py").read_text() for file in LAYOUT_FILES)
    assert len(LAYOUTS) >= len(LAYOUT_FILES)
    assert "def recognise" in text
    heavy = "import sys, fssops.data.layouts; print({'torch', 'scipy', 'pycocotools', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


def _modules_imported_at_once(path: Path) -> set[str]:
    """Modules of the package that importing a file imports: not those inside functions."""
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.startswith("fssops.")}


def test_data_has_no_circle_of_imports() -> None:
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (PACKAGE / "data").rglob("*.py")
    }
    graph = {name: _modules_imported_at_once(path) & files.keys() - {name} for name, path in files.items()}
    while leaves := [name for name, imported in graph.items() if not imported & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, "these import each other"


def _imports(path: Path) -> set[str]:
    """Dotted names of the package's modules that a file imports at any level, type checking aside."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            if node.module == "fssops":
                found |= {f"fssops.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("fssops.")}


VERBS = {"fssops.train", "fssops.evaluate", "fssops.predict", "fssops.convert", "fssops.doctor"}
SHARED = {
    f"fssops.{name}"
    for name in (
        "labels",
        "structures",
        "truth",
        "run_lengths",
        "polygons",
        "protocols",
        "pictures",
        "normalisation",
        "facts",
    )
}
MAY_IMPORT = {
    "labels.py": set(),
    "spelling.py": set(),
    "structures.py": {"fssops.labels"},
    "normalisation.py": set(),
    "protocols.py": set(),
    "facts.py": set(),
    "pictures.py": {"fssops.labels"},
    "truth.py": {"fssops.labels", "fssops.run_lengths", "fssops.data.errors", "fssops.data.json_values"},
    "reference": {"fssops.reference"},
    "ops": {"fssops.ops", "fssops.reference", "fssops._native"},
    "losses": {"fssops.losses", "fssops.ops", "fssops.structures"},
    "models": {"fssops.models", "fssops.ops", "fssops.losses", "fssops.structures", "fssops.normalisation"},
    "data": {"fssops.data", "fssops._version", "fssops.command_line"} | SHARED,
    "evaluation": {"fssops.evaluation", "fssops._version"} | SHARED,
    "engine": {"fssops.engine", "fssops.structures", "fssops.models.interface", "fssops._version"},
    "weights": {
        *("fssops.weights", "fssops.models", "fssops.normalisation"),
        *("fssops.engine.archives", "fssops.engine.checkpoints"),
    },
    "recipes": {"fssops.engine.settings"},
}


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_go_one_way(part: str) -> None:
    target = PACKAGE / part
    files = [target] if target.is_file() else sorted(target.rglob("*.py"))
    for path in files:
        if path.name == "__main__.py":  # the verb of a package is a verb
            continue
        for name in _imports(path):
            allowed = any(name == a or name.startswith(a + ".") for a in {"fssops.spelling", *MAY_IMPORT[part]})
            assert allowed, f"{path.relative_to(ROOT)} imports {name}"


WEIGHT_FILES = sorted(p.stem for p in (PACKAGE / "weights" / "layouts").glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("file", WEIGHT_FILES)
def test_a_file_of_names_of_weights_is_all_that_adds_them(file: str) -> None:
    from fssops.models import MODELS
    from fssops.weights.layouts import LAYOUTS

    layouts = importlib.import_module(f"fssops.weights.layouts.{file}").LAYOUTS
    assert layouts
    assert set(layouts) <= set(LAYOUTS)
    assert {layout.model for layout in layouts} <= {*MODELS, "resnet", "vgg16", "swin", "vit", "efficientnet_lite"}
    for path in sorted(PACKAGE.rglob("*.py")):
        if "weights" not in path.relative_to(PACKAGE).parts:
            assert f"fssops.weights.layouts.{file}" not in _imports(path), path.relative_to(ROOT)
    assert f'"{file}' not in (PACKAGE / "weights" / "layouts" / "__init__.py").read_text()


def test_layouts_of_systems_come_before_those_of_backbones_and_no_two_are_the_same() -> None:
    from fssops.models import MODELS
    from fssops.weights.layouts import LAYOUTS

    of_system = [layout.model in MODELS for layout in LAYOUTS]
    assert of_system == sorted(of_system, reverse=True)
    assert len({(layout.name, layout.model) for layout in LAYOUTS}) == len(LAYOUTS)
    for layout in LAYOUTS:
        authors = re.match(r"authors.*?\(([^,)]+)", layout.name)
        for model in {layout.model, *layout.also} & set(MODELS):
            origin = authors[1] if authors else layout.name.split(" (")[0]
            assert origin in " ".join(MODELS[model].weights), f"the table of models does not name {layout.name}"


@pytest.mark.parametrize("file", sorted(p.stem for p in (PACKAGE / "recipes").glob("*.toml")))
def test_a_recipe_file_is_called_after_its_system_and_its_variants_say_what_differs(file: str) -> None:
    from fssops.engine.toml_text import parse_toml
    from fssops.recipes import read_named_recipe

    tables = parse_toml((PACKAGE / "recipes" / f"{file}.toml").read_text())
    variants = tables.pop("variants", {})
    assert ("name" in tables) or variants
    assert tables.get("name", file) == file
    for name in [*([file] if "name" in tables else []), *(f"{file}_{variant}" for variant in variants)]:
        recipe = read_named_recipe(name)
        assert recipe["name"] == name
        assert file.startswith(recipe["model"]["name"])
    for variant, change in variants.items():
        repeated = _leaves(change) & _leaves(tables)
        assert not repeated, f"{variant} repeats {repeated}"
    if len(variants) > 1 and "name" not in tables:
        shared = set.intersection(*(_leaves(change) for change in variants.values()))
        assert not shared, f"all variants say {shared}, which belongs into the common tables"


def _leaves(table: dict[str, object], place: str = "") -> set[tuple[str, str]]:
    """Dotted keys with their values, as text."""
    leaves: set[tuple[str, str]] = set()
    for key, value in table.items():
        leaves |= _leaves(value, f"{place}{key}.") if isinstance(value, dict) else {(place + key, repr(value))}
    return leaves


def test_nothing_imports_a_verb_and_testing_is_for_tests() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        assert not _imports(path) & VERBS, path.relative_to(ROOT)
        if "testing" not in path.relative_to(PACKAGE).parts:
            assert not {n for n in _imports(path) if n.startswith("fssops.testing")}, path.relative_to(ROOT)


def test_no_file_is_called_after_nothing() -> None:
    vague = {"utils", "util", "misc", "helpers", "common_utils"}
    assert not [p for p in ROOT.rglob("*.py") if p.stem in vague and ".venv" not in p.parts and "build" not in p.parts]


def test_no_generated_or_binary_file_is_tracked() -> None:
    import subprocess

    done = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    tracked = done.stdout.split()
    assert not [name for name in tracked if name.endswith((".so", ".o", ".pyc", ".pth", ".pkl", ".jpg", ".jpeg"))]
