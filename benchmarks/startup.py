"""How long `fismo --help` takes, next to the `--help` of an empty Typer app with as many commands.

    python benchmarks/startup.py [--runs 31] [--out PATH]

The two take turns, each in a fresh process, so that what else the machine does falls on both alike. Prints a table and
saves the times as JSON.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fismo_cli.app import COMMANDS

GOAL = 1.2
ROOT = Path(__file__).resolve().parents[1]

EMPTY_APP = """
import typer
app = typer.Typer(help="An empty app.", add_completion=False)
@app.callback()
def options(version: bool = False, debug: bool = False) -> None: ...
def command() -> None: ...
for name in {names!r}:
    app.command(name, help="Does nothing at all, but says so.")(command)
app()
"""

FISMO = "from fismo_cli.app import main; main()"


def seconds(code: str) -> float:
    """Wall-clock seconds of a fresh Python that runs `code` with --help."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, "--help"], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - start


def measure(runs: int) -> dict[str, list[float]]:
    """Times of both, taking turns after one run each that fills the caches."""
    codes = {"empty": EMPTY_APP.format(names=list(COMMANDS)), "fismo": FISMO}
    for code in codes.values():
        seconds(code)
    times: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(runs):
        for name, code in codes.items():
            times[name].append(seconds(code))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=31, help="runs of each (default 31)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/startup.json", help="JSON file to write")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be a positive integer")
    times = measure(options.runs)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["fismo"] / medians["empty"]

    table = Table(title=f"--help, median of {options.runs} runs each, taking turns")
    for column in ("app", "median", "fastest", "slowest"):
        table.add_column(column, justify="left" if column == "app" else "right")
    for name, values in times.items():
        numbers = (medians[name], min(values), max(values))
        table.add_row({"empty": "empty Typer app"}.get(name, name), *(f"{1000 * number:.0f} ms" for number in numbers))
    console = Console()
    console.print(table)
    console.print(f"fismo / empty: {ratio:.3f} (goal: at most {GOAL}): {'met' if ratio <= GOAL else 'missed'}")

    options.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "commands": list(COMMANDS),
        "runs": options.runs,
        "seconds": times,
        "median_seconds": medians,
        "ratio": ratio,
        "goal": GOAL,
        "python": platform.python_version(),
        "machine": platform.platform(),
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    console.print(f"saved {options.out}")


if __name__ == "__main__":
    main()
