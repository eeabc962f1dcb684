"""The structure of the package: imports between modules, public names, and requirements for each of these."""

import ast
import importlib
import importlib.util
import inspect
import subprocess
import sys
import types
from pathlib import Path

import pytest

import polylosses

ROOT = Path(polylosses.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def module_name(file: Path) -> str:
    """The dotted name: ``polylosses.torch`` for ``.../polylosses/torch/__init__.py``."""
    parts = ["polylosses", *file.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def own_imports(module: str, source: str) -> set[str]:
    """The modules of this package that ``source`` imports, at the top level or inside functions."""
    package = module.split(".") if MODULES.get(module, Path()).name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*parent, *([node.module] if node.module else [])])
            names = {f"{origin}.{alias.name}" for alias in node.names}
            # `from package import module` imports package.module, `from module import name` imports module.
            found |= {name if name in MODULES else origin for name in names}
    return {name for name in found if name.split(".")[0] == "polylosses"}


IMPORTS = {name: own_imports(name, file.read_text(encoding="utf-8")) for name, file in MODULES.items()}


def inside(module: str, folder: str) -> bool:
    return module == folder or module.startswith(folder + ".")


def test_the_imports_of_a_file_are_found() -> None:
    """Tests :func:`own_imports` on source with every form of import."""
    source = """
import json, polylosses.tune.tabular
from polylosses import catalogue, poly1
from polylosses.polynomial import Polynomial
from . import softmax
from ..catalogue import ALL
def inner():
    from polylosses.torch import poly_softmax
"""
    assert own_imports("polylosses.torch.modules", source) == {
        "polylosses",
        "polylosses.catalogue",
        "polylosses.polynomial",
        "polylosses.torch",
        "polylosses.torch.softmax",
        "polylosses.tune.tabular",
    }


# Each with the package that it is for.
FRAMEWORKS = {"torch": "torch", "jax": "jax", "keras": "keras", "boosting": "numpy"}
BACKENDS = [name for name in FRAMEWORKS if f"polylosses.{name}" in MODULES]
CORE = {"polylosses.polynomial", "polylosses.catalogue", "polylosses.two_sided", "polylosses.named"}


def test_the_polynomial_imports_nothing_of_ours() -> None:
    assert IMPORTS["polylosses.polynomial"] == set()


def test_named_losses_import_the_polynomial() -> None:
    for module in ("catalogue", "two_sided"):
        assert IMPORTS[f"polylosses.{module}"] <= {"polylosses.polynomial"}


def test_the_package_imports_the_core() -> None:
    assert IMPORTS["polylosses"] <= CORE


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_imports_the_core_and_its_own_files(backend: str) -> None:
    folder = f"polylosses.{backend}"
    for module in filter(lambda name: inside(name, folder), MODULES):
        foreign = {name for name in IMPORTS[module] - CORE if not inside(name, folder)}
        assert not foreign, f"{module} imports {foreign}"


# Layers, from the lowest up: a file may only import from the lines above its own.
TORCH_LAYERS = """
precision concrete reduction
targets likelihood sharded
softmax sigmoid posterior
kernels
cross_entropy binary_cross_entropy
linear
modules
"""
BOOSTING_LAYERS = """
derivatives
compiled
objectives
estimators
catboost_classifier lightgbm_classifier xgboost_classifier
"""
KERNEL_LAYERS = """
internals layout native_library triton_kernels
native triton
dispatch
operators
"""


# Plan, run and analyse; then what puts them together. A table, its network and the page are beside them.
TUNE_LAYERS = """
plan space sequential splits tables statistics report files locks
store analysis batched columns
data
labelled
experiment trials
boosted figures
study_figures
worker studies
workers
result
tabular
"""


@pytest.mark.parametrize(
    ("folder", "layers"),
    [
        ("torch", TORCH_LAYERS),
        ("torch.kernels", KERNEL_LAYERS),
        ("boosting", BOOSTING_LAYERS),
        ("tune", TUNE_LAYERS),
    ],
)
def test_files_import_from_the_layers_below(folder: str, layers: str) -> None:
    package = f"polylosses.{folder}"
    level = {f"{package}.{name}": k for k, line in enumerate(layers.split("\n")) for name in line.split()}
    files = {m for m in MODULES if inside(m, package) and m != package}
    assert {m for m in files if m.count(".") == package.count(".") + 1} == set(level)
    for module, own in level.items():
        for name in IMPORTS[module] & set(level):
            assert level[name] < own, f"{module} imports {name}"


def test_the_kernels_are_entered_by_their_package() -> None:
    kernels = "polylosses.torch.kernels"
    for module, names in IMPORTS.items():
        if not inside(module, kernels):
            assert not {name for name in names if inside(name, kernels)} - {kernels}, module


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("polylosses.theme", set()),
        ("polylosses.progress", set()),
        ("polylosses.plot", {"polylosses.polynomial", "polylosses.theme"}),
        ("polylosses.tune.report", {"polylosses.theme"}),
    ],
)
def test_what_is_shown_builds_on_little(module: str, allowed: set[str]) -> None:
    assert IMPORTS[module] == allowed


# For these modules, the only ones that may import them.
MAY_IMPORT = {
    "polylosses.cli": {"polylosses.__main__"},
    "polylosses.progress": {"polylosses.cli"},
    "polylosses.theme": {
        "polylosses.plot",
        "polylosses.tune.figures",
        "polylosses.tune.study_figures",
        "polylosses.tune.report",
    },
    "polylosses.plot": {"polylosses.tune.figures", "polylosses.cli"},
    "polylosses.tune": {"polylosses.tune", "polylosses.cli"},
    "polylosses.tune.figures": {"polylosses.tune.tabular", "polylosses.tune.study_figures"},
    "polylosses.tune.study_figures": {"polylosses.tune.studies", "polylosses.tune.tabular"},
    "polylosses.tune.report": {"polylosses.tune.result", "polylosses.tune.studies"},
}


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_few_import(module: str) -> None:
    for importer, names in IMPORTS.items():
        if any(inside(importer, allowed) for allowed in MAY_IMPORT[module]):
            continue
        assert not any(inside(name, module) for name in names), f"{importer} imports {module}"


def test_the_analysis_knows_nothing_of_where_trials_run() -> None:
    runs = {f"polylosses.tune.{name}" for name in ("store", "trials", "studies", "worker", "workers")}
    for module in ("plan", "space", "sequential", "analysis"):
        assert not IMPORTS[f"polylosses.tune.{module}"] & runs


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(("module", "needs"), [("polylosses", set()), ("polylosses.boosting", {"numpy"})])
def test_importing_the_package_imports_no_framework(module: str, needs: set[str]) -> None:
    code = f"import sys; before = set(sys.modules); import {module}; print(*(set(sys.modules) - before))"
    result = run(code)
    assert result.returncode == 0, result.stderr
    roots = {name.split(".")[0] for name in result.stdout.split()}
    assert roots - set(sys.stdlib_module_names) == {"polylosses"} | needs


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_framework_is_named_with_the_line_that_installs_it(backend: str) -> None:
    result = run(
        f"import sys; sys.modules[{FRAMEWORKS[backend]!r}] = None; import polylosses; import polylosses.{backend}"
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert f"pip install 'polylosses[{backend}]'" in last


PUBLIC = [
    "polylosses",
    "polylosses.catalogue",
    *(f"polylosses.{backend}" for backend in BACKENDS),
]
NAMES = [(module, name) for module in PUBLIC for name in importlib.import_module(module).__all__]
# Those that are imported when they are asked for, and are in no __all__: a star would import three libraries.
LAZY = {"PolyCatBoostClassifier": "catboost", "PolyLGBMClassifier": "lightgbm", "PolyXGBClassifier": "xgboost"}
NAMES += [("polylosses.boosting", name) for name, library in LAZY.items() if importlib.util.find_spec(library)]


@pytest.mark.parametrize("module", PUBLIC)
def test_all_is_what_is_public(module: str) -> None:
    imported = importlib.import_module(module)
    public = {
        name
        for name, value in vars(imported).items()
        if not name.startswith("_")
        and callable(value)
        and not isinstance(value, types.ModuleType)
        # A package re-exports the names of its files; a file has only names that it defines.
        and (hasattr(imported, "__path__") or value.__module__ == module)
    }
    assert public == set(imported.__all__)
    assert len(imported.__all__) == len(set(imported.__all__))


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[f"{m}.{n}" for m, n in NAMES])
def test_every_public_name_has_an_example(module: str, name: str) -> None:
    documented = inspect.getdoc(getattr(importlib.import_module(module), name)) or ""
    assert "Example:\n" in documented
    assert ">>> " in documented


@pytest.mark.parametrize("module", MODULES)
def test_users_mistakes_are_not_asserted(module: str) -> None:
    """``python -O`` removes assertions, and an AssertionError explains nothing to the user."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert not lines, f"assert in {MODULES[module].name}, lines {lines}"
