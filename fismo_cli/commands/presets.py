"""`fismo presets`: list, show and copy the presets that come with fismo."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from fismo_cli.errors import UsageError
from fismo_cli.files import whole_file
from fismo_cli.preset.locate import DEFAULT_PRESET, find_shipped, shipped_presets

__all__ = ["app"]

app = typer.Typer(
    help="List, show and copy the presets that come with fismo.", add_completion=False, rich_markup_mode=None
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name that `fismo presets list` shows.")]


@app.callback(invoke_without_command=True)
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_presets()


@app.command("list")
def list_presets(
    as_json: Annotated[bool, typer.Option("--json", help="Print the names as JSON on stdout.")] = False,
) -> None:
    """List the presets that come with fismo."""
    presets = shipped_presets()
    if as_json:
        print(json.dumps(list(presets)))
        return
    from fismo_cli.reporting.console import answer_console, print_pairs, say

    console = answer_console(as_json=False)
    default = {DEFAULT_PRESET: " (the default)"}
    print_pairs(console, {name: _title(path) + default.get(name, "") for name, path in presets.items()})
    say(console, "\nfismo train NAME trains one; fismo presets copy NAME PATH makes a copy to change.")


@app.command("show")
def show(name: Name) -> None:
    """Print a preset, with its comments, on stdout."""
    sys.stdout.write(find_shipped(name).read_text(encoding="utf-8"))


@app.command("copy")
def copy(
    name: Name,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file to write, or a folder to put it in.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Copy a preset to a file of your own."""
    source = find_shipped(name)
    target = path / f"{name}.yaml" if path.is_dir() else path
    if target.exists() and not force:
        raise UsageError(f"{target} is there already; --force overwrites it")
    if not target.parent.is_dir():
        raise UsageError(f"cannot write {target}: there is no folder {target.parent}")
    try:
        with whole_file(target) as temporary:
            temporary.write_bytes(source.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from error
    print(f"wrote {target}; train it with: fismo train {shlex.quote(str(target))}")


def _title(path: Path) -> str:
    """The first line of a preset's opening comment."""
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").strip().lstrip("# ").rstrip(".")
