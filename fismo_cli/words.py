"""Parts of sentences for people: counts, long lists, and what an error says. Pure text."""

from collections.abc import Sequence

__all__ = ["counted", "first_line", "listed"]


def counted(count: int, thing: str, things: str | None = None) -> str:
    """A number of things: 1 image, 2 images, 1,000 images."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


def listed(names: Sequence[object], most: int = 3) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(str(name) for name in names[:most]) + more


def first_line(error: BaseException | str, otherwise: str | None = None) -> str:
    """The first line of what an error says that is not blank.

    Args:
        error: the error.
        otherwise: what to say of one that says nothing; None: its kind.
    """
    kind = type(error).__name__ if otherwise is None else otherwise
    return next((line.strip() for line in str(error).splitlines() if line.strip()), kind)
