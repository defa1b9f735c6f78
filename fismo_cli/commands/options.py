"""Arguments and options that several commands have alike."""

from typing import Annotated

import typer

from fismo_cli.errors import UsageError

__all__ = ["Overrides", "PresetName", "Quiet", "Storage", "refuse", "shipped_names"]


def refuse(*checks: tuple[bool, str]) -> None:
    """Raise one error of every `(wrong, problem)` that is wrong.

    Raises:
        UsageError: if one is.
    """
    if problems := [problem for wrong, problem in checks if wrong]:
        raise UsageError.of(problems)


def shipped_names(incomplete: str) -> list[str]:
    """The shipped presets whose names begin so, for the shell's completion."""
    from fismo_cli.preset.locate import shipped_presets

    return [name for name in shipped_presets() if name.startswith(incomplete)]


PresetName = Annotated[
    str,
    typer.Argument(
        metavar="PRESET", help="A preset file, or the name of a shipped preset.", autocompletion=shipped_names
    ),
]

Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as train.epochs=5.")]

Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no notes: only the answer, and errors.")]

Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="FISMO_STORAGE",
        help="A database that several hosts share (postgresql+psycopg://...); by default a file, for one host.",
    ),
]
