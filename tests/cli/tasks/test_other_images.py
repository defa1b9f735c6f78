"""`fismo evaluate` on other images than the run's own: numbers as timm alone computes them, classes by their names."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch.nn.functional import cross_entropy

from fismo_cli.errors import UsageError
from fismo_cli.preset.loading import load_preset
from fismo_cli.runs.execution import execute
from fismo_cli.runs.measuring import measure

PRESET = """task: image-classification
model: {library: timm, name: test_resnet}
data: {source: image-folder, path: FOLDER, image_size: 32, eval_crop_ratio: 0.9, horizontal_flip: 0.5,
  crop: random-resized}
optimizer: {name: adamw, lr: 1.0e-2}
train: {steps: 2, batch_size: 4, threads: 1, noise_every: null}
"""
CLASSES = ["ant", "bee", "cat"]


def draw(folder: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (40 + i, 36, 3), np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    for seed, name in enumerate(CLASSES):
        draw(root / "own" / name, 6, seed)
    (root / "a.yaml").write_text(PRESET.replace("FOLDER", str(root / "own")))
    execute(load_preset(str(root / "a.yaml")), runs_dir=root / "runs")
    return next((root / "runs").glob("*/*/model")).parent


@pytest.fixture
def other(tmp_path):
    for seed, name in enumerate(CLASSES[1:]):  # not the first class: other numbers than the model's
        draw(tmp_path / "other" / name, 5, 10 + seed)
    return tmp_path / "other"


def by_timm_alone(run, folder):
    model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    files = sorted(folder.glob("*/*.png"))
    images = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    labels = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    with torch.no_grad():
        logits = model(images)
    top1 = (logits.argmax(dim=1) == labels).double().mean().item()
    return pytest.approx({"loss": cross_entropy(logits, labels).item(), "top1": top1}, abs=1e-6)


def measured(run, *overrides):
    notes = []
    found = measure(run, load_preset(str(run / "preset.yaml"), overrides), tell=notes.append)
    return {part: None if measured is None else measured.metrics for part, measured in found.items()}, notes


def test_a_folder_of_some_classes_is_measured_as_a_whole(run, other):
    metrics, notes = measured(run, f"data.path={other}")
    assert metrics == {"validation": None, "test": by_timm_alone(run, other)}
    assert "the data has no test part of its own: all 10 images are the test" in notes


def test_the_parts_that_there_are_are_measured(run, other, tmp_path):
    expected = by_timm_alone(run, other)
    (tmp_path / "parts").mkdir()
    other.rename(tmp_path / "parts/test")
    path = f"data.path={tmp_path / 'parts'}"
    assert measured(run, path)[0] == {"validation": None, "test": expected}
    draw(tmp_path / "parts/train/unknown", 3, 20)
    assert measured(run, path)[0] == {"validation": None, "test": expected}
    draw(tmp_path / "parts/val/bee", 3, 21)
    assert measured(run, path)[0] == {"validation": by_timm_alone(run, tmp_path / "parts/val"), "test": expected}


def test_the_runs_own_images_elsewhere_are_split_as_in_training(run, tmp_path):
    shutil.copytree(run.parents[2] / "own", tmp_path / "moved")
    assert measured(run, f"data.path={tmp_path / 'moved'}") == (measured(run)[0], [])
    (tmp_path / "moved/ant/0.png").unlink()
    metrics, notes = measured(run, f"data.path={tmp_path / 'moved'}")
    assert metrics["validation"] is None
    assert notes[0] == "measured on other data than the run's own"


def test_shares_that_are_asked_for_are_cut_off(run, other):
    metrics, _ = measured(run, f"data.path={other}", "data.test_fraction=0.5", "data.validation_fraction=0")
    assert metrics["validation"] is None
    assert metrics["test"] != by_timm_alone(run, other)


def test_a_class_that_the_model_does_not_know_is_named(run, other):
    draw(other / "dog", 2, 30)
    message = "the data has the class dog, which the model does not know; it knows ant, bee, cat"
    with pytest.raises(UsageError, match=message):
        measured(run, f"data.path={other}")


def test_other_sources_are_numbered_as_the_model_is(run, other, tmp_path):
    datasets = pytest.importorskip("datasets")
    expected = by_timm_alone(run, other)
    files = sorted(other.glob("*/*.png"))
    rows = {"image": [str(file) for file in files], "label": [["cat", "bee"].index(file.parent.name) for file in files]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "bee"])})
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"test": table}).save_to_disk(str(tmp_path / "hub"))
    options = ("data.source=huggingface", "data.path=null", f"data.name={tmp_path / 'hub'}")
    assert measured(run, *options)[0] == {"validation": None, "test": expected}


def test_the_runs_own_data_is_cut_as_in_training(run):
    trained = json.loads((run / "summary.json").read_text())["metrics"]
    metrics, notes = measured(run)
    assert metrics == {name: pytest.approx(trained[name], abs=1e-9) for name in ("validation", "test")}
    assert notes == []
