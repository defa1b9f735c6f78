"""Tables of docs/presets.md, written from the schema: `python -m fismo_cli.preset.tables docs/presets.md`.

A test fails when the file is not what this makes of it.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fismo_cli.preset.optimizer_names import PYTORCH_OPTIMIZER_NAMES, TIMM_NAMES, TIMM_PREFIX, TORCH_NAMES
from fismo_cli.preset.reference import Key, reference

__all__ = ["fill"]

BEGIN, END = "<!-- generated: {} -->", "<!-- end -->"


def fill(text: str) -> str:
    """The document with everything between its markers written anew."""
    images, texts = reference("image-classification", "fismo"), reference("language-modelling", "fismo")
    baseline = reference("image-classification", "baseline")
    parts = {
        "top": _table(_under(images, (), top_only=True)),
        "model": _table(_under(images, ("model",))),
        "data-images": _table(_under(images, ("data",))),
        "data-text": _table(_under(texts, ("data",))),
        "optimizer-fismo": _table(_under(images, ("optimizer",))),
        "optimizer-baseline": _table(_under(baseline, ("optimizer",))),
        "optimizer-names": f"torch.optim: {_names(TORCH_NAMES)}\n\n"
        f"pytorch-optimizer: {_names(PYTORCH_OPTIMIZER_NAMES)}\n\n"
        f"timm: {_names(TIMM_PREFIX + name for name in TIMM_NAMES)}\n",
        **{name: _table(_under(images, (name,))) for name in ("train", "evaluate", "checkpoint", "logging", "tune")},
    }
    for name, body in parts.items():
        begin = BEGIN.format(name)
        before, _, rest = text.partition(begin)
        after = rest.partition(END)[2]
        text = f"{before}{begin}\n\n{body}\n{END}{after}"
    return text


def _under(keys: dict[tuple[str, ...], Key], section: tuple[str, ...], *, top_only: bool = False) -> list[Key]:
    inside = [key for path, key in keys.items() if path[: len(section)] == section and path != section]
    if top_only:
        order = ("task", "model", "data")
        found = [key for key in inside if len(key.path) == 1]
        return sorted(found, key=lambda key: order.index(key.path[0]) if key.path[0] in order else len(order))
    return [key for key in inside if key.kind != "section"]


def _table(keys: Iterable[Key]) -> str:
    lines = ["| key | must be | default | meaning |", "| --- | --- | --- | --- |"]
    for key in keys:
        default = "required" if key.required else f"`{_yaml(key.default)}`" if key.kind != "section" else ""
        cells = (f"`{'.'.join(key.path)}`", key.expected, default, key.description)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return str(value)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def main() -> None:
    """Rewrite the file that the command line names."""
    path = Path(sys.argv[1])
    path.write_text(fill(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
