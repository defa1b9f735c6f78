"""Presets mutated at random, through `fismo validate` and, a sample of them, `fismo train --dry-run`.

    python benchmarks/preset_fuzz.py [--cases 1000] [--dry-runs 60] [--seed 0] [--show]

Starts from the shipped presets and the presets in README.md and docs/presets.md; changes keys, types, values and YAML
syntax, in the file and as overrides. Each case is a process of its own, forked after the imports, with a time limit and
a memory limit. Whatever comes in, the command must leave with 0 or 2, without a traceback or an unexpected error; a dry
run may also leave with 1 if it says in one line what failed. Prints the outcomes, and what was not as it should be with
its seed; leaves with 1 if anything was. Needs a system that can fork.
"""

import argparse
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from fismo_cli.app import main as fismo
from fismo_cli.commands import train, validate  # noqa: F401  # imported before the forks
from fismo_cli.preset.locate import find_preset, shipped_presets
from fismo_cli.preset.optimizer_names import REFUSED, optimizer_names
from fismo_cli.preset.reference import reference

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"validate": 10, "train": 120}
MEMORY = 12 * 2**30
SMALL = ["digits-vit", "digits-resnet"]
"""Presets of which a dry run takes seconds and needs no download."""

STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 0.5, 1.0, -0.0, 1e-320, 1e308, 2**31, 2**64, -(2**70)),
    *(float("nan"), float("inf"), -float("inf"), "", " ", "0", "1e-3", "true", "null", "~", "é", "\u202e", "x" * 5000),
    *(
        "../..",
        "/",
        ".",
        "a/b",
        "*",
        "%s{}",
        "[b]",
        "\x00",
        "\x1b[31m",
        "\n",
        [],
        {},
        [[]],
        [None],
        [1, "a"],
        {"": None},
    ),
    *({"a": {"b": {"c": 1}}}, {1: 2}, {None: None}, {True: []}, [0.9], [0.9, 0.99], [0.9, 0.99, 0.999], ["a", "b"]),
)
SYNTAX = (
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "&a ",
    "*a",
    "!!",
    "!x ",
    "|",
    ">",
    "'",
    '"',
    "%",
    "@",
    "`",
    "#",
    "\t",
    "- ",
    "? ",
)
LINES = (
    *("---", "...", "%YAML 1.1", "<<: *a", "x: &x [*x]", "? [1, 2]\n: 3", "a: !!python/object:os.system ls", "b: 1: 2"),
    *(
        "train:",
        "optimizer: fismo",
        "c: 2020-01-01",
        "d: 0o17",
        "e: 1_000",
        "f: !!binary aGk=",
        "g: !!set {a, b}",
        "\ufeff",
    ),
)


@dataclass(frozen=True)
class Case:
    """A file's content and what stands on the command line behind it."""

    content: bytes
    overrides: tuple[str, ...]


def starts() -> dict[str, str]:
    """Presets to begin with, by name."""
    texts = {name: find_preset(name).text for name in shipped_presets()}
    for document in ("README.md", "docs/presets.md"):
        blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)
        texts |= {f"{document}#{index}": block for index, block in enumerate(blocks) if "task:" in block}
    return texts


def make_case(texts: dict[str, str], seed: int) -> Case:
    """One preset with one to three changes."""
    draw = random.Random(seed)
    text = draw.choice(list(texts.values()))
    overrides = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        kind = draw.random()
        if kind < 0.5:
            text = change_values(text, draw)
        elif kind < 0.8:
            overrides.append(make_override(draw))
        else:
            text = change_text(text, draw)
    content = text.encode("utf-8", "surrogatepass")
    if draw.random() < 0.03:
        content = content.replace(b"\n", b"\r\n") if draw.random() < 0.5 else content[:40] + b"\xff\xfe" + content[40:]
    return Case(content, tuple(overrides))


def change_values(text: str, draw: random.Random) -> str:
    """Change one key of the parsed preset; text that is no mapping any more is left as it is."""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    places = list(_places(values))
    if not places:
        return text
    holder, key = draw.choice(places)
    match draw.randrange(7):
        case 0:
            del holder[key]
        case 1:
            holder[_misspelt(str(key), draw)] = holder.pop(key)
        case 2:
            holder[draw.choice(places)[1]] = holder[key]
        case 3:
            other, other_key = draw.choice(places)
            holder[key] = other[other_key]
        case 4:
            values.setdefault("optimizer", {})
            if isinstance(values["optimizer"], dict):
                values["optimizer"]["name"] = _optimizer(draw)
        case _:
            holder[key] = _value(key, holder[key], draw)
    try:
        return str(yaml.dump(values, sort_keys=False, allow_unicode=draw.random() < 0.5))
    except (RecursionError, ValueError):
        return text


def change_text(text: str, draw: random.Random) -> str:
    """Change characters or lines."""
    lines = text.split("\n")
    row = draw.randrange(len(lines))
    column = draw.randrange(len(lines[row]) + 1)
    match draw.randrange(6):
        case 0:
            lines[row] = lines[row][:column] + draw.choice(SYNTAX) + lines[row][column:]
        case 1:
            lines[row] = lines[row][:column] + lines[row][column + 1 :]
        case 2:
            lines.insert(row, draw.choice(LINES))
        case 3:
            lines[row] = " " * draw.randrange(6) + lines[row].lstrip()
        case 4:
            lines.insert(row, lines[draw.randrange(len(lines))])
        case _:
            del lines[row:]
    return "\n".join(lines)


def make_override(draw: random.Random) -> str:
    """A `key=value` of a key that there is, mostly."""
    keys = list(
        reference(draw.choice(("image-classification", "language-modelling")), draw.choice(("fismo", "baseline")))
    )
    path = list(draw.choice(keys))
    if draw.random() < 0.1:
        path[-1] = _misspelt(path[-1], draw)
    if draw.random() < 0.15:
        return f"optimizer.name={_optimizer(draw)}"
    value = str(yaml.safe_dump(_value(path[-1], None, draw), default_flow_style=True)).removesuffix("\n...\n").strip()
    return draw.choice(("{}={}", "{}={}", "{}={}", "{} = {}", "{}", "{}=", ".{}={}")).format(".".join(path), value)


def _places(values: Any) -> Any:
    if isinstance(values, dict):
        for key, item in values.items():
            yield values, key
            yield from _places(item)


def _misspelt(word: str, draw: random.Random) -> str:
    place = draw.randrange(len(word) + 1)
    return draw.choice((word[:place] + word[place + 1 :], word[:place] + "x" + word[place:], word.upper(), f"{word}s"))


def _optimizer(draw: random.Random) -> str:
    name = draw.choice((*optimizer_names(), *REFUSED))
    return _misspelt(name, draw) if draw.random() < 0.2 else name


def _value(key: Any, old: Any, draw: random.Random) -> Any:
    """Something strange, or something near what was there."""
    if isinstance(old, bool) or old is None or draw.random() < 0.5:
        return draw.choice(STRANGE)
    if isinstance(old, int | float):
        return draw.choice((old * 2, old // 2, -old, old + 0.5, str(old), [old], int(old)))
    return draw.choice((str(old).upper(), [old], {str(key): old}, str(old)[::-1]))


def attempt(arguments: Sequence[str], limit: int) -> tuple[int | None, str]:
    """Run a command in a child; its exit code (None: it took too long) and all that it wrote."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            code = 70
            try:
                fismo(list(arguments))
            except SystemExit as leaving:
                code = leaving.code if isinstance(leaving.code, int) else 70
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        end = time.monotonic() + limit
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.002)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        output.seek(0)
        written = output.read().decode("utf-8", "replace")
    return (os.waitstatus_to_exitcode(status) if done else None), written


def judge(code: int | None, written: str, allowed: set[int]) -> str:
    """What came of a case, in a word or two; anything in capitals is a fault."""
    if code is None:
        return "NEVER ENDED"
    if "Traceback" in written:
        return "TRACEBACK"
    if "unexpected error" in written:
        return "UNEXPECTED ERROR"
    if code not in allowed:
        return f"EXIT CODE {code}"
    if code and not written.strip():
        return "SILENT"
    return {0: "accepted (0)", 2: "refused (2)"}.get(code, f"failed, says why ({code})")


def sweep(
    command: str, cases: dict[int, Case], flags: Sequence[str], allowed: set[int], report: Callable[[str], None]
) -> tuple[Counter[str], list[int]]:
    """Put cases through a command: how many came to what, and the seeds of those that were accepted."""
    outcomes: Counter[str] = Counter()
    accepted = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for seed, case in cases.items():
            path = Path(folder) / "case.yaml"
            path.write_bytes(case.content)
            code, written = attempt([command, str(path), *case.overrides, *flags], LIMITS[command])
            outcome = judge(code, written, allowed)
            outcomes[outcome] += 1
            if code == 0:
                accepted.append(seed)
            if outcome.isupper() or outcome.startswith("EXIT"):
                report(f"{command} seed {seed}: {outcome} {case.overrides}\n{written[-600:]}")
            else:
                report(f"-{command} seed {seed}: {outcome} {case.overrides}\n{written[-600:]}")
        os.chdir(ROOT)
    return outcomes, accepted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--dry-runs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the others follow")
    parser.add_argument("--show", action="store_true", help="print what every case wrote")
    options = parser.parse_args()
    console = Console()

    def report(text: str) -> None:
        if options.show or not text.startswith("-"):
            console.print(text.removeprefix("-"), markup=False, highlight=False)

    texts = starts()
    cases = {seed: make_case(texts, seed) for seed in range(options.seed, options.seed + options.cases)}
    results = {"validate": sweep("validate", cases, (), {0, 2}, report)[0]}
    if options.dry_runs:
        import torch

        from fismo_cli.runs import preparation  # noqa: F401

        torch.set_num_threads(1)
        small = {name: texts[name] for name in SMALL}
        drawn = ((seed, make_case(small, seed)) for seed in range(options.seed, options.seed + 20 * options.dry_runs))
        accepted = sweep("validate", dict(drawn), (), {0, 2}, lambda text: None)[1][: options.dry_runs]
        sample = {seed: make_case(small, seed) for seed in accepted}
        results["train --dry-run"] = sweep("train", sample, ("--dry-run",), {0, 1, 2}, report)[0]
    table = Table("command", "outcome", "cases", title=f"Presets mutated at random, seeds from {options.seed}")
    for command, outcomes in results.items():
        for outcome, count in outcomes.most_common():
            table.add_row(command, outcome, str(count))
    console.print(table)
    faults = [outcome for outcomes in results.values() for outcome in outcomes if outcome.split()[0].isupper()]
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
