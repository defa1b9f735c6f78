"""Optimizers of a user's own: of installed packages (entry points), and of a file that the command line names.

A preset names them `own/NAME`, or `own-matrices/NAME` where the matrices are theirs alone and AdamW treats the rest. No
preset can make anything run that the user has not installed or named by `--import`. Imports torch when one is built.
"""

import ast
import hashlib
import importlib.util
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from fismo_cli.errors import UsageError, first_line, place_of

__all__ = [
    "OWN_MATRICES",
    "import_arguments",
    "is_own",
    "own_class",
    "own_names",
    "own_origin",
    "use_file",
    "why_no_own",
]

OWN, OWN_MATRICES = "own/", "own-matrices/"

GROUP = "fismo.optimizers"
"""Of entry points."""

_files: list[Path] = []
"""The file of `--import`, if there is one."""


def use_file(text: str) -> None:
    """Take optimizers from a Python file, and from no other; nothing in it is run yet.

    Raises:
        UsageError: if it is not there, cannot be read, or is no Python.
    """
    if not text:
        raise UsageError("--import: name a Python file, as in --import mine.py")
    path = Path(text).expanduser().resolve()
    try:
        ast.parse(path.read_bytes(), filename=str(path))
    except OSError as error:
        raise UsageError(f"--import {text}: cannot be read ({error.strerror})") from error
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UsageError(f"--import {text}{line}: {first_line(error)}") from error
    _files[:] = [path]


def import_arguments() -> list[str]:
    """What another process of fismo has to be told to know the same file."""
    return [argument for file in _files for argument in ("--import", str(file))]


def is_own(name: str) -> bool:
    """Whether the name is one of a user's own optimizer, there or not."""
    return name.startswith((OWN, OWN_MATRICES))


def own_names() -> tuple[str, ...]:
    """What can stand after `own/` now: classes of the file, and entry points."""
    return (*_classes_of_file(), *(point.name for point in _points()))


def why_no_own(name: str) -> str | None:
    """Why an own optimizer is not there; None where it is, or the name is of another kind."""
    own = name.partition("/")[2]
    if not is_own(name) or own in own_names():
        return None
    file = _file()
    places = [
        *([] if file is None else [f"{file.name} has {', '.join(_classes_of_file()) or 'no class'}"]),
        *([f"installed are {', '.join(point.name for point in _points())}"] if _points() else []),
    ]
    known = "; ".join(places) if places else "name a file that has it by --import FILE.py, or install its package"
    return f"there is no optimizer {own} of your own: {known}"


def own_class(name: str) -> type[Any]:
    """The class of an own optimizer.

    Raises:
        UsageError: if there is none, it cannot be imported, or it is nothing that can be trained with here.
    """
    from torch.optim import Optimizer

    if (reason := why_no_own(name)) is not None:
        raise UsageError(f"optimizer.name: {reason}")
    own = name.partition("/")[2]
    file = _file()
    if own in _classes_of_file():
        assert file is not None
        found, where = getattr(_module(file), own, None), f"--import {file}"
    else:
        point = next(point for point in _points() if point.name == own)
        where = f"the entry point {own} of {_package(point)}"
        try:
            found = point.load()
        except Exception as error:  # whatever a package raises
            raise UsageError(f"{where}: {type(error).__name__}: {first_line(error)}{place_of(error)}") from error
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise UsageError(f"{where}: {own} is no subclass of torch.optim.Optimizer")
    if all(callable(getattr(found, method, None)) for method in ("train", "eval")):
        raise UsageError(f"{where}: {own} trains other weights than it evaluates (train(), eval()): not done here")
    return found


def own_origin(name: str) -> dict[str, str] | None:
    """Where an own optimizer comes from, to the byte, as runs are known by it; None for any other name."""
    if not is_own(name):
        return None
    own, file = name.partition("/")[2], _file()
    if file is not None and own in _classes_of_file():
        return {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    point = next((point for point in _points() if point.name == own), None)
    return {} if point is None else {"package": _package(point), "entry point": point.value}


def _file() -> Path | None:
    return _files[0] if _files else None


def _classes_of_file() -> tuple[str, ...]:
    """Those at the top level of the file, from its text alone."""
    file = _file()
    try:
        tree = ast.parse(b"" if file is None else file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # it has changed since it was named
        return ()
    return tuple(node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))


@cache
def _points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _package(point: EntryPoint) -> str:
    return "a package" if point.dist is None else f"{point.dist.name} {point.dist.version}"


@cache
def _module(file: Path) -> ModuleType:
    """The file, run once; what stands beside it can be imported by it."""
    spec = importlib.util.spec_from_file_location("fismo_imported", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"--import {file}: {type(error).__name__}: {first_line(error)}{place_of(error)}") from error
    return module
