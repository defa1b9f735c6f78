import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest

from fismo_cli.app import main
from tests.ranks import run_ranks

ROOT = Path(__file__).parents[2]
SMALL = ["train.threads=1", "train.epochs=null", "train.steps=24", "train.log_every=4"]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


class Cli:
    """The real command in processes of its own, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}

    def start(self, *arguments: object, stderr: Any = subprocess.PIPE) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "fismo_cli", *map(str, arguments)],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def finish(self, process: subprocess.Popen) -> Outcome:
        out, err = process.communicate(timeout=900)
        assert "Traceback" not in (err or ""), err
        return Outcome(process.returncode, out, err or "")

    def run(self, *arguments: object) -> Outcome:
        return self.finish(self.start(*arguments))


class HereCli(Cli):
    """Commands of `run` in this process, which has the imports of the runs that they start: they take longer than most.

    `start` makes a process still: for kills, signals, what goes on side by side, and torchrun. The processes of
    `train --nproc N` are processes, too, but without torchrun.
    """

    def run(self, *arguments: object) -> Outcome:
        if arguments[0] == "train" and "--nproc" in arguments:
            return self._run_ranks([str(argument) for argument in arguments])
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(self.folder),
            mock.patch.dict(os.environ, self.env),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "argv", ["fismo", *map(str, arguments)]),
            pytest.raises(SystemExit) as leaving,
        ):
            main([str(argument) for argument in arguments])
        code = int(leaving.value.code or 0)
        assert "Traceback" not in err.getvalue(), err.getvalue()
        return Outcome(code, out.getvalue(), err.getvalue())

    def _run_ranks(self, arguments: list[str]) -> Outcome:
        place = arguments.index("--nproc")
        count = int(arguments.pop(place + 1))
        del arguments[place]
        with TemporaryDirectory() as name:
            streams = Path(name)
            codes = run_ranks(
                count, "fismo_cli.app:main", arguments, folder=self.folder, streams=streams, environment=self.env
            )
            out, err = ((streams / stream).read_text(encoding="utf-8") for stream in ("out", "err"))
        assert "Traceback" not in err, err
        return Outcome(max(codes, key=abs), out, err)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen, seconds: float = 120) -> None:
    """Until something holds; fails if the process ends before, or the time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_until(condition: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium whose console must stay without an error; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver_path is None:
        pytest.skip("no chromium and chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver_path))
    try:
        yield driver
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        driver.quit()


def open_page(driver: Any, page: Path, figures: int, first: str, least: int) -> int:
    """Opens a page and waits until its figures are drawn; the first one then has these many lines, `least` at least."""
    driver.get(page.as_uri())
    drawn = "return document.querySelectorAll('.js-plotly-plot .main-svg').length > 0 && "
    drawn += f"document.querySelectorAll('.js-plotly-plot').length == {figures}"
    wait_until(lambda: driver.execute_script(drawn))
    buttons = "return [...document.querySelectorAll('.modebar-btn')].map(button => button.dataset.title)"
    assert not [title for title in driver.execute_script(buttons) if "hare" in title or "loud" in title]
    lines = f"return document.querySelectorAll('{first} .scatterlayer .trace').length"
    wait_until(lambda: driver.execute_script(lines) >= least)
    return driver.execute_script(lines)


@pytest.fixture
def cli(tmp_path: Path) -> HereCli:
    return HereCli(tmp_path)
