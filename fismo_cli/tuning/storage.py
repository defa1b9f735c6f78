"""Where a study's trials are kept: a journal file on one host, a database for several. Passwords are never shown."""

import contextlib
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, ProgrammingError, SQLAlchemyError

from fismo_cli.errors import FismoError, UsageError
from fismo_cli.tuning.ledger import requeue

__all__ = ["HEARTBEAT_SECONDS", "journal_file", "open_storage", "quiet_optuna", "shown_url", "storage_errors"]

HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 60
"""A database takes a worker for dead that has given no sign of life for so long."""

CONNECT_SECONDS = 10
ATTEMPTS = 5


def quiet_optuna() -> None:
    """Optuna's own messages are for people who call it themselves."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used with Study.optimize")


def journal_file(directory: Path) -> Path:
    """The journal of a study's directory."""
    return directory / "journal.log"


def shown_url(url: str) -> str:
    """A database's URL as it may be shown: without password, and without its query, which may hold one too."""
    try:
        return make_url(url).set(query={}).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return "the URL that was given"


def open_storage(url: str | None, directory: Path) -> BaseStorage:
    """The database at a URL, or the journal file of a study's directory, which is made.

    Raises:
        UsageError: if the database cannot be reached or used, or the file cannot be written.
    """
    if url is None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(str(journal_file(directory))))
        except OSError as error:
            raise UsageError(f"cannot write to {directory}: {error.strerror}") from error
    try:
        drivername = make_url(url).drivername
    except (ArgumentError, ValueError):
        raise UsageError(
            "--storage: not a database's URL; it looks like postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
        ) from None
    if drivername.startswith("sqlite"):
        raise UsageError("--storage: SQLite is not for several processes; leave --storage out for a file on this host")
    timeout = {"connect_timeout": CONNECT_SECONDS} if drivername.startswith("postgresql") else {}
    try:
        return _database(url, {"pool_pre_ping": True, "connect_args": timeout})
    except (ImportError, NoSuchModuleError):
        hint = ': pip install "fismo[postgresql]"' if drivername == "postgresql+psycopg" else ""
        raise UsageError(f"--storage: the driver of {shown_url(url)} is not installed{hint}") from None
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        raise UsageError(f"--storage: cannot use {shown_url(url)}: {_reason(error, url)}") from None


def _database(url: str, options: dict[str, Any]) -> RDBStorage:
    for attempt in range(ATTEMPTS):
        try:
            return RDBStorage(
                url.replace("{", "{{").replace("}", "}}"),  # Optuna formats it
                engine_kwargs=options,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=requeue,
            )
        except (IntegrityError, ProgrammingError):  # workers that start at once make the same tables
            if attempt + 1 == ATTEMPTS:
                raise
            time.sleep(0.5 * (attempt + 1))
    raise AssertionError


@contextlib.contextmanager
def storage_errors(url: str | None, directory: Path) -> Iterator[None]:
    """Turn what a storage raises while it is used into an error that says which one it was.

    Raises:
        FismoError: if it went away; nothing that was told to it before is lost.
    """
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        where = str(journal_file(directory)) if url is None else shown_url(url)
        reason = _reason(error.__cause__ or error, url or "")
        raise FismoError(f"{where} went away: {reason}. The same command goes on from what was told to it") from None


def _reason(error: BaseException, url: str) -> str:
    """The first line of what went wrong, without what may be secret in it."""
    text = next((line for line in str(getattr(error, "orig", None) or error).splitlines() if line.strip()), "")
    with contextlib.suppress(ArgumentError, ValueError):
        parts = make_url(url)
        for secret in (parts.password, *parts.query.values()):
            if secret:
                text = text.replace(str(secret), "***")
        text = text.replace(url, shown_url(url))
    return text or type(error).__name__
