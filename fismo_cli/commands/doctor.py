"""`fismo doctor`: what is slow on this machine, or will go wrong."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fismo_cli.commands.options import Overrides, shipped_names
from fismo_cli.errors import ExitCode
from fismo_cli.preset.loading import load_preset

__all__ = ["doctor"]


def doctor(
    preset: Annotated[
        str | None,
        typer.Argument(metavar="PRESET", help="What is to be run; else the machine.", autocompletion=shipped_names),
    ] = None,
    overrides: Overrides = None,
    runs_dir: Annotated[Path, typer.Option("--runs-dir", metavar="DIR", help="Where runs are written.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout.")] = False,
) -> None:
    """Say what is slow here or will go wrong, and what to do."""
    loaded = None if preset is None else load_preset(preset, overrides or ())
    from fismo_cli.advice import advice_for
    from fismo_cli.environment import environment
    from fismo_cli.reporting.console import answer_console, say

    advice = advice_for(None if loaded is None else loaded.preset, environment(), runs_dir)
    stops = any(each.severity == "stops" for each in advice)
    if as_json:
        print(json.dumps({"ok": not stops, "advice": [asdict(each) for each in advice]}))
    else:
        console = answer_console(as_json=False)
        for each in advice:
            say(console, f"{each.severity}: {each.text}")
        if not advice:
            say(console, "all is well")
    if stops:
        raise typer.Exit(ExitCode.FAILED)
