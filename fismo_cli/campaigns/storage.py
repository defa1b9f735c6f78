"""Where a study's trials are kept: a journal file on one host, a database for several. Passwords are never shown."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, ProgrammingError, SQLAlchemyError

from fismo_cli.campaigns.journal import Journal, JournalError, StoredJournal
from fismo_cli.campaigns.ledger import requeue
from fismo_cli.errors import FismoError, UsageError, first_line

__all__ = [
    "HEARTBEAT_SECONDS",
    "check_same_storage",
    "journal_file",
    "open_storage",
    "quiet_optuna",
    "read_journal",
    "shown_url",
    "storage_errors",
]

HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 60
"""A database takes a worker for dead that has given no sign of life for so long."""

CONNECT_SECONDS = 10
ATTEMPTS = 5


def check_same_storage(directory: Path, stored: Mapping[str, Any], url: str | None, instead: str) -> None:
    """Make sure that runs of two storages do not get into one another's folders, as when a URL was forgotten.

    Args:
        directory: of a study or a comparison.
        stored: what was written there of it, with the `database` that it is in; empty if nothing was.
        url: of the database that is to be used; None: a journal file.
        instead: what else could be given.

    Raises:
        UsageError: if it is in a database, and a journal file is to be used, or the reverse.
    """
    if not stored or (stored.get("database") is None) == (url is None):
        return
    if url is None:
        where, how = stored["database"], "give its URL by FISMO_STORAGE or --storage"
    else:
        where, how = journal_file(directory), "leave out FISMO_STORAGE and --storage"
    raise UsageError(f"{directory} has the trials of a study in {where}: {how}, or give {instead}")


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


def open_storage(url: str | None, directory: Path, notice: Callable[[str], None] = lambda text: None) -> BaseStorage:
    """The database at a URL, or the journal file of a study's directory, which is made.

    Args:
        url: of a database; None: the file.
        directory: of the study.
        notice: told of what in the file could not be read.

    Raises:
        UsageError: if the database cannot be reached or used, or the file cannot be written or understood.
    """
    if url is None:
        try:
            return _replayed(Journal(journal_file(directory), notice), directory)
        except (OSError, JournalError) as error:
            raise UsageError(f"cannot write to {directory}: {getattr(error, 'strerror', error)}") from error
    try:
        drivername = make_url(url).drivername
    except (ArgumentError, ValueError):
        raise UsageError(
            "--storage: not a database's URL; it looks like postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
        ) from None
    if drivername.startswith("sqlite"):
        raise UsageError("--storage: SQLite is not for several processes; leave --storage out for a file on this host")
    timeout: dict[str, Any] = {}
    if drivername.startswith("postgresql"):  # also one that answers no more, or is cut off from here, is an error soon
        timeout = {"connect_timeout": CONNECT_SECONDS, "tcp_user_timeout": 1000 * CONNECT_SECONDS}
    try:
        return _database(url, {"pool_pre_ping": True, "connect_args": timeout})
    except (ImportError, NoSuchModuleError):
        hint = ': pip install "fismo[postgresql]"' if drivername == "postgresql+psycopg" else ""
        raise UsageError(f"--storage: the driver of {shown_url(url)} is not installed{hint}") from None
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        raise UsageError(f"--storage: cannot use {shown_url(url)}: {_reason(error, url)}") from None


def read_journal(directory: Path) -> BaseStorage:
    """What the journal file of a study's directory holds, to be read alone; nothing is written.

    Raises:
        UsageError: if it cannot be read or understood.
    """
    try:
        return _replayed(StoredJournal(journal_file(directory)), directory)
    except OSError as error:
        raise UsageError(f"cannot read {journal_file(directory)}: {error.strerror}") from error


def _replayed(backend: BaseJournalBackend, directory: Path) -> JournalStorage:
    try:
        return JournalStorage(backend)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{journal_file(directory)}: Optuna {optuna.__version__} does not understand it; another version wrote it, "
            "or it is no journal. Use that version, or another --study"
        ) from error


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
    except JournalError as error:
        raise FismoError(
            f"{journal_file(directory)} cannot be used any more: {error}. The same command goes on from what it holds"
        ) from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = _reason(error.__cause__ or error, url or "")
        raise FismoError(
            f"{shown_url(url or '')} went away: {reason}. The same command goes on from what was told to it"
        ) from None


def _reason(error: BaseException, url: str) -> str:
    """The first line of what went wrong, without what may be secret in it."""
    text = first_line(getattr(error, "orig", None) or error, "")
    with contextlib.suppress(ArgumentError, ValueError):
        parts = make_url(url)
        for secret in (parts.password, *parts.query.values()):
            if secret:
                text = text.replace(str(secret), "***")
        text = text.replace(url, shown_url(url))
    return text or type(error).__name__
