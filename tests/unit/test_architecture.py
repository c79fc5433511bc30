"""The rules of docs/architecture.md that import-linter cannot see, read from the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pipelines.settings import PROJECT

HEAVY = {
    "airflow",
    "evidently",
    "feast",
    "great_expectations",
    "ibis",
    "lightgbm",
    "matplotlib",
    "mlflow",
    "onnxmltools",
    "optuna",
    "pandas",
    "pyspark",
    "skl2onnx",
    "sklearn",
}
"""Libraries whose import takes a good part of a second or more."""

SHARED = {"msgspec", "numpy", "google_crc32c"}
"""What the contracts may import beside the standard library: both environments have it."""


def python_files(folder: str) -> list[Path]:
    return sorted(path for path in (PROJECT / folder).rglob("*.py") if ".venv" not in path.parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module or "."


def imports(path: Path) -> set[str]:
    return {name for node in ast.walk(tree_of(path)) for name in imported(node)}


def imports_at_load(path: Path) -> set[str]:
    """What loading the module imports: not what functions import, nor what only the type checker sees."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree_of(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        found.update(imported(node))
        waiting.extend(ast.iter_child_nodes(node))
    return found


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def breaches(folder: str, wrong: set[str], *, at_load: bool = False) -> list[str]:
    """`file: imports` for every file of the folder that imports one of the modules, or something inside one."""
    found = []
    for path in python_files(folder):
        names = imports_at_load(path) if at_load else imports(path)
        bad = {name for name in names if any(name == w or name.startswith(f"{w}.") for w in wrong)}
        if bad:
            found.append(f"{path.relative_to(PROJECT)}: {', '.join(sorted(bad))}")
    return found


def plugin_modules() -> set[str]:
    return {path.stem for path in (PROJECT / "plugins").glob("*.py")}


def test_the_layers_hold():
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-logo"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("folder", ["pipelines", "serving", "plugins", "include/transforms"])
def test_nothing_imports_the_dags(folder):
    dags = {path.stem for path in (PROJECT / "dags").glob("*.py")}
    assert breaches(folder, {"dags"} | {f"dags.{name}" for name in dags}) == []


@pytest.mark.parametrize("folder", ["pipelines", "serving", "include/transforms"])
def test_only_dags_import_the_plugins(folder):
    assert breaches(folder, {"plugins"} | plugin_modules()) == []


def test_plugins_have_names_of_their_own():
    strange = [
        path.name
        for path in (PROJECT / "plugins").rglob("*.py")
        if path.name != "__init__.py" and not path.stem.startswith("slipway_")
    ]
    assert strange == [], "Airflow imports each plugin by its bare file name"


def test_dag_files_reach_the_pipelines_through_plugins_alone():
    allowed = {"pipelines.spec", "pipelines.settings", "pipelines.contracts"}
    wrong = [
        f"{path.name}: {name}"
        for path in python_files("dags")
        for name in imports(path)
        if name.split(".")[0] == "pipelines" and ".".join(name.split(".")[:2]) not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", ["dags", "plugins"])
def test_what_airflow_parses_again_and_again_imports_nothing_heavy(folder):
    assert breaches(folder, HEAVY - {"airflow"}, at_load=True) == []


def test_dag_files_read_no_clock_network_or_database():
    doors = {"httpx", "requests", "socket", "sqlalchemy", "sqlite3", "time", "urllib.request", "duckdb", "deltalake"}
    assert breaches("dags", doors) == []
    clocks = [
        f"{path.name}:{node.lineno}"
        for path in python_files("dags")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"now", "utcnow", "today"}
    ]
    assert clocks == []


@pytest.mark.parametrize("package", ["contracts", "spec", "collect", "stats", "rollout", "registry", "stack", "cli"])
def test_light_packages_load_nothing_heavy(package):
    assert breaches(f"pipelines/{package}", HEAVY, at_load=True) == []


def test_contracts_import_only_what_both_environments_have():
    allowed = SHARED | set(sys.stdlib_module_names) | {"pipelines"}
    wrong = {
        path.name: extra for path in python_files("pipelines/contracts") if (extra := roots(imports(path)) - allowed)
    }
    assert wrong == {}


def test_serving_knows_of_the_pipelines_only_contracts_and_settings():
    wrong = [
        f"{path.name}: {name}"
        for path in python_files("serving")
        for name in imports(path)
        if name.split(".")[0] == "pipelines" and not name.startswith(("pipelines.contracts", "pipelines.settings"))
    ]
    assert wrong == []


def test_files_that_travel_in_a_release_need_numpy_alone():
    travelling = [*PROJECT.glob("include/transforms/*_request.py"), *PROJECT.glob("include/transforms/*_post.py")]
    allowed = {"numpy", "__future__", "math", "typing", "collections"}
    assert {path.name: extra for path in travelling if (extra := roots(imports(path)) - allowed)} == {}


def test_there_is_no_drawer_for_everything():
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    found = [
        path
        for folder in ("pipelines", "serving", "plugins", "dags")
        for path in python_files(folder)
        if drawers & {part.removesuffix(".py") for part in path.relative_to(PROJECT).parts}
    ]
    assert found == []
