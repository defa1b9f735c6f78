"""Parts of sentences for people: counts and long lists. Pure text."""

from collections.abc import Sequence

__all__ = ["counted", "listed"]


def counted(count: int, thing: str, things: str | None = None) -> str:
    """A number of things: 1 image, 2 images, 1,000 images."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


def listed(names: Sequence[object], most: int = 3) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(str(name) for name in names[:most]) + more
