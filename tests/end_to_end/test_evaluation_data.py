"""With every augmentation on, all commands report what timm and Pillow alone compute from the saved model."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch.nn.functional import cross_entropy

from fismo_cli.preset.loading import load_preset
from fismo_cli.runs.execution import execute
from fismo_cli.runs.measuring import measure

pytestmark = pytest.mark.slow

PRESET = """task: image-classification
model: {library: timm, name: test_resnet}
data: {source: image-folder, path: FOLDER, image_size: 32, interpolation: bicubic, eval_crop_ratio: 0.83,
  crop: random-resized, horizontal_flip: 0.5, auto_augment: rand-m9-mstd0.5-inc1, random_erasing: 0.5,
  mixup_alpha: 0.3, cutmix_alpha: 0.5, label_smoothing: 0.1}
optimizer: {name: adamw, lr: 1.0e-3}
train: {steps: 3, batch_size: 8, threads: 1, noise_every: null}
evaluate: {every: 3}
tune: {space: {optimizer.lr: {low: 1.0e-4, high: 1.0e-2, log: true}}}
"""


def draw(root: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 6), ("test", 7)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = rng.integers(20, 60, 2)
                pixels = rng.integers(0, 120, (height, width, 3))
                pixels[: height // 2] += 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


def by_timm_alone(run: Path, folder: Path) -> dict[str, dict[str, float]]:
    model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    found = {}
    for part, name in (("validation", "val"), ("test", "test")):
        files = sorted((folder / name).glob("*/*.png"))
        images = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
        labels = torch.tensor([["cat", "dog"].index(file.parent.name) for file in files])
        with torch.no_grad():
            logits = model(images)
        hits = (logits.argmax(dim=1) == labels).double().mean().item()
        found[part] = {"loss": cross_entropy(logits, labels).item(), "top1": hits}
    return found


def runs_below(folder: Path) -> Iterable[Path]:
    return sorted(path.parent for path in folder.rglob("model") if path.is_dir())


def test_all_commands_measure_plain_images(cli):
    folder = cli.folder / "pictures"
    draw(folder)
    preset = cli.folder / "augmented.yaml"
    preset.write_text(PRESET.replace("FOLDER", str(folder)))

    reported = {}
    for workers in (0, 2):
        runs = cli.folder / f"runs-{workers}"
        summary = execute(load_preset(str(preset), [f"data.workers={workers}"]), runs_dir=runs)
        (run,) = runs_below(runs)
        reported[run] = summary["metrics"]
        for again in ("data.workers=0", "data.workers=1"):
            measured = measure(run, load_preset(str(run / "preset.yaml"), [again]))
            metrics = {part: found.metrics for part, found in measured.items()}
            assert metrics == {part: pytest.approx(reported[run][part], abs=1e-9) for part in ("validation", "test")}

    tuned = cli.run("tune", preset, "--trials", 1, "--json")
    assert tuned.code == 0, tuned.err
    (trial,) = tuned.json["trial_list"]
    reported[cli.folder / trial["run_dirs"][0]] = trial["metrics"][0]
    assert trial["value"] == trial["metrics"][0]["validation"]["loss"]
    compared = cli.run("compare", preset, "--baselines", "sgd", "--seeds", 1, "compare.sgd.lr=0.01", "--json")
    assert compared.code == 0, compared.err
    reported |= {cli.folder / run["run_dir"]: run["metrics"] for run in compared.json["runs"]}

    assert len(reported) == 5
    for run, metrics in reported.items():
        for part, expected in by_timm_alone(run, folder).items():
            assert metrics[part] == pytest.approx(expected, abs=1e-6), (run, part)
