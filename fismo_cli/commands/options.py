"""Options that several commands have alike."""

from typing import Annotated

import typer

__all__ = ["Storage"]

Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="FISMO_STORAGE",
        help="A database that several hosts share (postgresql+psycopg://...); by default a file, for one host.",
    ),
]
