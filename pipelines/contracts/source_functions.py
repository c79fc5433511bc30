"""Functions of single source files: transforms, request features, post-processing, costs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.contracts.errors import ContractError


def load_function(path: Path, digest: str, name: str) -> Callable[..., Any]:
    """The function `name` of a source file, in a module named by the file's SHA-256 `digest`.

    A changed file is a new module, so that two versions run side by side; a copy (in a release's bundle) is the same
    one, so that training, scoring and serving call the same object. Nothing is written beside the source.
    Raises ContractError when the file cannot be run or has no such function.
    """
    module_name = f"slipway_source_{digest}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        writing, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise ContractError(f"{path}", got=f"{type(error).__name__}: {error}", expected="a module") from error
        finally:
            sys.dont_write_bytecode = writing
        sys.modules[module_name] = module
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        raise ContractError(f"{path}", got=f"no function {name}", expected=f"def {name}(...)")
    return function
