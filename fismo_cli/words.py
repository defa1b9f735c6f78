"""Parts of sentences for people: counts and long lists. Pure text."""

from collections.abc import Sequence

__all__ = ["counted", "duration", "listed"]


def counted(count: int, thing: str, things: str | None = None) -> str:
    """A number of things: 1 image, 2 images, 1,000 images."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


def duration(seconds: float) -> str:
    """A length of time with two digits or so: 40 s, 12 min, 3 h 20 min, 2 days 4 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def listed(names: Sequence[object], most: int = 3) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(str(name) for name in names[:most]) + more
