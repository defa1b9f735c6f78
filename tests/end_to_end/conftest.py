import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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
        self.env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}

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


def wait_for(condition: Callable[[], Any], process: subprocess.Popen, seconds: float = 120) -> None:
    """Until something holds; fails if the process ends before, or the time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def open_browser() -> Any:
    """A headless Chromium that keeps its console's messages; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver_path is None:
        pytest.skip("no chromium and chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver_path))


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)
