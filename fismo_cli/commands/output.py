"""What commands print for machines: one JSON value on stdout, and nothing else there."""

import json
from typing import Any

__all__ = ["print_json"]


def print_json(value: Any) -> None:
    """Print a value as one line of JSON; NaN and infinities are null."""
    from fismo_cli.runs.directory import json_safe

    print(json.dumps(json_safe(value), allow_nan=False))
