"""`fismo env`: what a bug report should say about versions, hardware and settings."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from fismo_cli.environment import environment

__all__ = ["env"]


def env(as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON on stdout.")] = False) -> None:
    """Show versions, hardware and settings, for a bug report."""
    found = environment()
    if as_json:
        print(json.dumps(found))
        return
    from fismo_cli.reporting.console import answer_console, print_pairs

    print_pairs(answer_console(as_json=False), dict(_rows(found)))


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, installed in found["versions"].items():
        yield name, installed or "not installed"
    cpu = found["cpu"]
    yield "system", found["system"]
    yield "cpu", f"{cpu['model']}, {cpu['usable_cores']} of {cpu['cores']} cores, {cpu['capability']}"
    yield "memory", _gib(cpu["memory_bytes"])
    yield "gpus", "; ".join(f"{gpu['name']}, {_gib(gpu['memory_bytes'])}" for gpu in found["gpus"]) or "none"
    for key in ("mps", "cuda"):
        yield key, _words(found[key])
    for section in ("bfloat16", "threads", "determinism"):
        yield section, ", ".join(f"{name.replace('_', ' ')}: {_words(value)}" for name, value in found[section].items())
    git = found["git"]
    yield "git", f"{git['commit']}{', with changes' if git['dirty'] else ''}" if git else "not a checkout"


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"
