"""Errors of the Hugging Face hub and of local model folders, in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache

from fismo_cli.errors import UsageError, first_line

__all__ = ["is_offline_error", "reachable"]

_OFFLINE_TYPES = {
    "ConnectError",
    "ConnectionError",
    "ConnectTimeout",
    "LocalEntryNotFoundError",
    "MaxRetryError",
    "OfflineModeIsEnabled",
    "ReadTimeout",
    "URLError",
}
_OFFLINE_WORDS = (
    "couldn't connect to",
    "offline mode",
    "we have no connection",
    "local_files_only",
    "error downloading",
)
_MISSING_TYPES = {"RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "DatasetNotFoundError"}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_offline_error(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that the hub (or another server) could not be reached."""
    return any(
        _OFFLINE_TYPES & {kind.__name__ for kind in type(link).__mro__}
        or any(word in str(link).lower() for word in _OFFLINE_WORDS)
        for link in _chain(error)
    )


@cache
def _hub_answers() -> bool:
    """Whether the hub answers at all, asked once a process: the library itself would retry a request for 23 seconds."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # the client behind get_session, and so its errors, differs between versions
        return False
    return True


@contextmanager
def _offline_unless_reachable() -> Iterator[None]:
    """Let the hub library look only into its cache while the hub cannot be reached."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not before and not _hub_answers():
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def reachable(what: str, key: str, remedy: str, *, local: bool = False, unreadable: str = "") -> Iterator[None]:
    """Turn the errors of loading `what` into one sentence.

    Args:
        what: What is loaded, such as `the model gpt2`.
        key: The preset key that names it.
        remedy: What to give instead, where the hub cannot be reached.
        local: It is a folder on this machine: no need to ask whether the hub answers.
        unreadable: What to say where it is there but cannot be loaded; empty for the library's own first line.

    Raises:
        UsageError: The hub could not be reached, has no such entry, or what it holds cannot be loaded.
    """
    try:
        with nullcontext() if local else _offline_unless_reachable():
            yield
    except (UsageError, MemoryError):
        raise
    except Exception as error:  # every library below has its own hierarchy, from OSError to bare ValueError
        names = {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}
        # A missing repository is looked for first: offline errors are often raised while handling one another.
        if names & _MISSING_TYPES and not is_offline_error(error):
            message = f"{what}: not on the Hugging Face hub, or not open to you ({key}); check the name"
        elif is_offline_error(error):
            message = f"{what}: not on this machine, and the Hugging Face hub cannot be reached ({key}); {remedy}"
        else:
            message = f"{what}: cannot be loaded ({key}): {unreadable or first_line(error)}"
        raise UsageError(message) from error
