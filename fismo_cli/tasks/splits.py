"""Which of a source's own splits is which part: the names asked for, or the usual ones."""

from collections.abc import Mapping, Sequence

__all__ = ["split_names"]


def split_names(part: str, asked: Mapping[str, str], usual: Sequence[str]) -> tuple[str, ...]:
    """Names to look for, in order: the one that `data.splits` gives the part, or the usual ones.

    A usual name that `data.splits` gives to another part is left out: ImageNet's public validation images, used as the
    test (`{test: validation}`), must not be the validation part too.
    """
    if part in asked:
        return (asked[part],)
    taken = {name for other, name in asked.items() if other != part}
    return tuple(name for name in usual if name not in taken)
