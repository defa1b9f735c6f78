"""Image files of users: what is data, what is left out, what the model sees of each kind, and what data is known by."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from fismo_cli.tasks import build_task
from tests.cli.test_images import preset


def draw(folder: Path, count: int = 6, seed: int = 0, size: int = 8, end: str = "png") -> Path:
    rng = np.random.default_rng((seed, len(folder.name), *folder.name.encode()))
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (size, size), np.uint8)).save(folder / f"{i:02d}.{end}")
    return folder


@pytest.fixture
def pets(tmp_path):
    for seed, part in enumerate(("train", "test")):
        for name in ("cat", "dog"):
            draw(tmp_path / "pets" / part / name, seed=seed)
    return tmp_path / "pets"


def of(folder, **data):
    return build_task(preset(source="image-folder", path=str(folder), **{"validation_fraction": 0, **data}))


def test_files_come_in_torchvisions_order(pets):
    draw(pets / "train/dog/more/deep", seed=5)
    draw(pets / "train/dog/a", seed=6, end="jpg")
    draw(pets / "train/dog/more", seed=7, end="tif")
    task = of(pets)
    expected = ImageFolder(str(pets / "train"))
    assert [file.path for file in task.train.images.files] == [path for path, _ in expected.samples]
    assert task.train.images.labels.tolist() == expected.targets


def test_identity_is_of_what_was_read_and_of_nothing_else(pets, tmp_path):
    first = of(pets, validation_fraction=0.3).description["identity"]
    assert {part: {name: value["count"] for name, value in classes.items()} for part, classes in first.items()} == {
        part: {"cat": 6, "dog": 6} for part in ("train", "test")
    }
    shutil.copytree(pets, tmp_path / "elsewhere")  # with other times of writing
    (tmp_path / "elsewhere/train/cat/00.png").touch()
    assert of(tmp_path / "elsewhere", split_seed=7).description["identity"] == first
    draw(pets / "train/dog", count=1, seed=9)  # another picture under an old name
    second = of(pets).description["identity"]
    assert second["train"]["dog"]["count"] == 6
    assert second["train"]["dog"] != first["train"]["dog"]
    assert (second["train"]["cat"], second["test"]) == (first["train"]["cat"], first["test"])
    (pets / "train/cat/00.png").rename(pets / "train/cat/99.png")
    assert of(pets).description["identity"]["train"]["cat"] != first["train"]["cat"]


def test_identity_of_arrays_is_of_pixels_labels_and_order(tmp_path):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (40, 8, 8), np.uint8), np.arange(40) % 2

    def identity(pixels, labels):
        np.savez(tmp_path / "a.npz", x=pixels, y=labels)
        return build_task(preset(source="npz", path=str(tmp_path / "a.npz"))).description["identity"]["train"]

    first = identity(pixels, labels)
    assert {name: value["count"] for name, value in first.items()} == {"0": 20, "1": 20}
    assert identity(pixels.copy(), labels.copy()) == first
    changed = pixels.copy()
    changed[3, 0, 0] ^= 1
    assert identity(changed, labels)["0"] == first["0"]
    assert identity(changed, labels)["1"] != first["1"]
    order = rng.permutation(40)
    assert identity(pixels[order], labels[order]) != first
