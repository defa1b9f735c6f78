"""Carries out runs in processes of their own: each is `fismo train` on a preset file, continued where it was cut off.

A process a run buys memory figures that are the run's own, no state that leaks from one run into the next, and a
crash that stays where it happened.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fismo_cli.campaigns import forked
from fismo_cli.errors import ExitCode
from fismo_cli.own_optimizers import import_arguments
from fismo_cli.preset.loading import LoadedPreset
from fismo_cli.processes import killed_by
from fismo_cli.runs.directory import RunDirectory, read_json, run_identity, write_preset
from fismo_cli.runs.same_data import data_of_run
from fismo_cli.tasks.identity import Identity, changes

__all__ = ["Failure", "RunProcess", "dry_run_elsewhere", "finished_run"]

_POLL_SECONDS = 0.05

_LAST = 262144
"""Bytes at a file's end in which its last record is looked for."""


@dataclass(frozen=True)
class Failure:
    """A run that neither completed nor diverged: its exit code (negative: by a signal) and why."""

    code: int
    message: str

    @property
    def by_accident(self) -> bool:
        """Whether it says nothing of its preset or its data: a signal, a full disk, a data worker that died."""
        return self.code not in (ExitCode.USAGE, ExitCode.DATA)


class RunProcess:
    """One run in a process of its own.

    Args:
        loaded: its preset.
        preset_file: where the resolved preset is written, from which the run can be repeated by hand.
        runs_dir: under which its run directory is, or is made.
        log: file to which what the run says is appended.
        keep_open: descriptors that it holds as long as it lives, such as a lock's.
        nproc: processes that train together; the one that is started here starts and watches them.
        gpus: numbers of the GPUs that it may use; None: all that there are.
        same_data: a file that says what its data must be; with other data, or with data that cannot be read, it ends
            by `ExitCode.DATA`.
        data: what that file says; a run that has finished on other data is not taken for this one.
    """

    def __init__(
        self,
        loaded: LoadedPreset,
        *,
        preset_file: Path,
        runs_dir: Path,
        log: Path,
        keep_open: tuple[int, ...] = (),
        nproc: int = 1,
        gpus: Sequence[int] | None = None,
        same_data: Path | None = None,
        data: Identity | None = None,
    ) -> None:
        self._loaded, self._log, self._data = loaded, log, data
        self._runs = runs_dir / loaded.name
        write_preset(preset_file, loaded)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = ["train", str(preset_file), "--runs-dir", str(runs_dir), "--resume", "auto", *_several(nproc)]
        command += import_arguments()
        command += ["--same-data", str(same_data)] if same_data is not None else []
        with log.open("ab") as messages:
            self._process = forked.start(
                command,
                loaded.preset,
                stdout=None,
                stderr=messages.fileno(),
                environment=_environment(loaded, gpus),
                keep_open=keep_open,
            )

    def poll(self) -> RunDirectory | Failure | None:
        """The finished run, a failure, or None while it goes on."""
        code = self._process.exitcode
        if code is None:
            return None
        found = finished_run(self._runs.parent, self._loaded, self._data)
        return found if found is not None else Failure(code, _why(code, _last_line(self._log)))

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.exitcode is None

    def step(self) -> int:
        """The last step that it logged; 0 before any."""
        for newest in self._unfinished():
            lines: list[bytes] = []
            with contextlib.suppress(OSError), newest.open("rb") as file:
                file.seek(max(0, newest.stat().st_size - _LAST))
                lines = file.read().splitlines()
            for line in reversed(lines):
                with contextlib.suppress(ValueError, AttributeError, TypeError):
                    return int(json.loads(line).get("step", 0))
        return 0

    def _unfinished(self) -> list[Path]:
        """The metrics of the run that goes on: of the newest that has not ended, where there is one."""
        with contextlib.suppress(OSError):  # somebody removes directories
            newest = max(self._runs.glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime_ns, default=None)
            return [] if newest is None or newest.with_name("summary.json").exists() else [newest]
        return []

    def validations(self) -> list[tuple[int, dict[str, Any]]]:
        """Samples seen until, and metrics of, each evaluation on validation data so far."""
        found = []
        for file in self._unfinished():
            text = ""
            with contextlib.suppress(OSError):
                text = file.read_text(encoding="utf-8", errors="replace")
            for line in text.splitlines():
                with contextlib.suppress(ValueError):  # a line that is being written
                    event = json.loads(line)
                    if event.get("event") == "Evaluated" and event["split"] == "validation":
                        found.append((int(event["samples"]), event["metrics"]))
        return found

    def stop(self) -> None:
        """Ask it to save and leave."""
        self._process.terminate()

    def kill(self) -> None:
        """Make it end at once."""
        self._process.kill()

    def wait(self) -> None:
        """Until it has ended."""
        self._process.join()


def finished_run(runs_dir: Path, loaded: LoadedPreset, data: Identity | None) -> RunDirectory | None:
    """The first run of this very preset that completed or diverged; a run that was cut off never counts.

    Args:
        runs_dir: under which it is.
        loaded: the preset.
        data: the identity of its data; runs on other data do not count. None: not known.
    """
    wanted = run_identity(loaded.preset)
    for file in sorted((runs_dir / loaded.name).glob("*/summary.json")):
        summary = read_json(file)
        if summary.get("identity") == wanted and summary.get("status") in ("completed", "diverged"):
            run = RunDirectory(file.parent)
            if not data or not changes(data_of_run(run) or data, data):
                return run
    return None


def dry_run_elsewhere(
    loaded: LoadedPreset, preset_file: Path, nproc: int = 1, *, leave: Callable[[], bool] = lambda: False
) -> dict[str, Any] | Failure:
    """`fismo train --dry-run` in a process of its own, or several: what it says as JSON, or why it failed.

    Args:
        loaded: the preset.
        preset_file: where it is written.
        nproc: processes that train together.
        leave: asked all the time whether to end it at once.
    """
    write_preset(preset_file, loaded)
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as messages:
        # Into files: a pipe would be waited for as long as any process that the run has left behind holds it.
        process = forked.start(
            ["train", str(preset_file), "--dry-run", "--json", *_several(nproc), *import_arguments()],
            loaded.preset,
            stdout=answer.fileno(),
            stderr=messages.fileno(),
            environment=_environment(loaded),
        )
        try:
            while process.exitcode is None and not leave():
                process.join(_POLL_SECONDS)
        finally:
            if process.exitcode is None:
                process.kill()
            process.join()
        code = process.exitcode or 0
        answer.seek(0)
        messages.seek(0)
        if code != 0:
            return Failure(code, _why(code, _what_it_said(messages.read())))
        result: dict[str, Any] = json.loads(answer.read())
    return result


def _several(nproc: int) -> list[str]:
    return ["--nproc", str(nproc)] if nproc > 1 else []


def _environment(loaded: LoadedPreset, gpus: Sequence[int] | None = None) -> dict[str, str]:
    """Also libraries that start threads before torch is told its number keep to it; and the run's GPUs, of those here.

    Args:
        loaded: the preset of the run.
        gpus: numbers among the GPUs that this process may use; None: all.
    """
    inherited, changed = dict(os.environ), {}
    if loaded.preset.train.threads is not None:
        changed["OMP_NUM_THREADS"] = str(loaded.preset.train.threads)
    if gpus is not None:
        allowed = [name for name in inherited.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        changed["CUDA_VISIBLE_DEVICES"] = ",".join(allowed[gpu] if allowed else str(gpu) for gpu in gpus)
    return {**inherited, **changed}


def _why(code: int, said: str) -> str:
    """What a run said last; of one that a signal ended, by which."""
    return said if code >= 0 else f"its process was {killed_by(code)}"


def _last_line(log: Path) -> str:
    try:
        return _what_it_said(log.read_bytes())
    except OSError:
        return "it said nothing"


def _what_it_said(messages: bytes) -> str:
    """The last error, or else the last line."""
    lines = [line for line in messages.decode("utf-8", errors="replace").splitlines() if line.strip()]
    # What follows an error says what is kept.
    errors = [line for line in lines if line.startswith(("error: ", "unexpected error: ", "preset error: "))]
    return (errors or lines)[-1].removeprefix("error: ") if lines else "it said nothing"
