"""Functions of single source files, loaded by digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.contracts.canonical import file_digest
from pipelines.contracts.errors import ContractError
from pipelines.contracts.source_functions import load_function


def source(folder: Path, text: str) -> Path:
    path = folder / "half.py"
    path.write_text(text)
    return path


def test_two_versions_of_a_file_run_side_by_side_and_nothing_is_written_beside_them(tmp_path: Path) -> None:
    path = source(tmp_path, "def half(x):\n    return x / 2\n")
    old = load_function(path, file_digest(path), "half")
    path = source(tmp_path, "def half(x):\n    return x // 2\n")
    new = load_function(path, file_digest(path), "half")
    assert (old(3), new(3)) == (1.5, 1)
    assert load_function(path, file_digest(path), "half") is new
    assert [*tmp_path.iterdir()] == [path]


def test_a_copy_under_another_name_gives_the_same_object(tmp_path: Path) -> None:
    path = source(tmp_path, "def half(x):\n    return x / 2.0\n")
    bundled = tmp_path / "request_features.py"
    bundled.write_bytes(path.read_bytes())
    assert load_function(bundled, file_digest(bundled), "half") is load_function(path, file_digest(path), "half")


def test_a_file_that_cannot_be_run_is_named_with_the_reason(tmp_path: Path) -> None:
    path = source(tmp_path, "import no_such_library\n")
    with pytest.raises(ContractError, match=r"half\.py; got ModuleNotFoundError: No module named 'no_such_library'"):
        load_function(path, file_digest(path), "half")


def test_a_missing_function_is_named(tmp_path: Path) -> None:
    path = source(tmp_path, "HALF = 0.5\n")
    with pytest.raises(ContractError, match=r"got no function half; expected def half\(\.\.\.\)"):
        load_function(path, file_digest(path), "half")
