"""Image parts: sources, splits, transforms, key-determinism, mixing, metrics, and what bad data says."""

import json
import random
import struct
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import create_transform
from torch import nn
from torch.utils.data import DataLoader

from fismo_cli.errors import UsageError
from fismo_cli.preset.schema import preset_adapter
from fismo_cli.tasks import build_task
from fismo_cli.tasks.base import CONFUSION
from fismo_cli.tasks.image_parts import CropFlipPart, LazyPart, TensorPart
from fismo_cli.tasks.image_sources import read_digits
from fismo_cli.tasks.randomness import key_numbers, split_stratified


def preset(model="resnet18", args=None, seed=0, **data):
    return preset_adapter.validate_python(
        {
            "task": "image-classification",
            "model": {"library": "timm", "name": model, "args": args or {}},
            "data": {"source": "digits", "image_size": 8, "channels": 1, "mean": [0.0] * data.get("channels", 1),
                     "std": [1.0] * data.get("channels", 1), **data},
            "optimizer": {"name": "fismo"},
            "train": {"steps": 1, "seed": seed},
        }
    )  # fmt: skip


def keys(indices, epoch=0):
    return [(epoch, index) for index in indices]


def everything(part):
    return part.__getitems__(keys(range(len(part))))


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return np.round(data.images * 255 / 16).astype(np.uint8), data.target


@pytest.fixture
def npz(tmp_path, digits):
    def write(**arrays):
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return str(path)

    return write


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """PNG files of the first 60 digits, 0 to 2 only, in one folder a class."""
    root = tmp_path_factory.mktemp("folder")
    pixels, labels = digits
    for i in np.flatnonzero(labels < 3)[:60]:
        target = root / "all" / str(labels[i])
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(target / f"{i}.png")
    return root


def test_split_is_stratified_complete_and_seeded():
    labels = np.repeat(np.arange(4), [200, 100, 50, 1])
    kept, held = split_stratified(labels, 70, seed=3)
    assert sorted([*kept, *held]) == list(range(351))
    assert len(held) == 70
    counts = np.bincount(labels[held], minlength=4)
    assert np.abs(counts - np.array([40, 20, 10, 0])).max() <= 1
    assert np.array_equal(held, split_stratified(labels, 70, seed=3)[1])
    assert not np.array_equal(held, split_stratified(labels, 70, seed=4)[1])


def test_digits_parts_do_not_overlap_and_hold_every_image(digits):
    task = build_task(preset())
    parts = [everything(part)["images"].flatten(1) for part in (task.train, task.validation, task.test)]
    assert sum(len(part) for part in parts) == 1797
    assert len(parts[2]) == round(0.2 * 1797)
    assert len(parts[1]) == round(0.15 * (1797 - len(parts[2])))
    # Sorted rows rather than sets: digits may be identical.
    rows = np.concatenate([np.round(part.numpy() * 255).astype(int) for part in parts])
    expected = digits[0].reshape(1797, -1).astype(int)
    assert np.array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])
    assert task.model_args == {"num_classes": 10, "in_chans": 1}


def test_batch_matches_source_and_order(npz, digits):
    pixels, labels = digits
    path = npz(x_train=pixels[:40], y_train=labels[:40], x_test=pixels[40:60], y_test=labels[40:60])
    task = build_task(preset(source="npz", path=path, validation_fraction=0, mean=[0.25], std=[0.5]))
    assert task.validation is None
    assert isinstance(task.train, TensorPart)
    batch = task.train.__getitems__(keys([5, 3, 5]))
    expected = (torch.from_numpy(pixels[[5, 3, 5]]).float()[:, None] / 255 - 0.25) / 0.5
    torch.testing.assert_close(batch["images"], expected)
    assert batch["labels"].tolist() == labels[[5, 3, 5]].tolist()
    assert batch["images"].dtype == torch.float32
    assert batch["labels"].dtype == torch.int64
    assert len(task.test) == 20


def test_colour_and_grey_convert(npz):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (20, 8, 8, 3), np.uint8)
    path = npz(x=colour, y=np.arange(20) % 2)
    none = {"validation_fraction": 0, "test_fraction": 0}
    grey = everything(build_task(preset(source="npz", path=path, **none)).train)["images"]
    luma = colour.astype(float) @ [0.299, 0.587, 0.114] / 255
    assert np.abs(grey[:, 0].numpy() - luma).max() < 1.01 / 255
    path = npz(x=colour[..., 0], y=np.arange(20) % 2)
    rgb = everything(build_task(preset(source="npz", path=path, channels=3, **none)).train)["images"]
    assert rgb.shape == (20, 3, 8, 8)
    assert torch.equal(rgb[:, 0], rgb[:, 2])


def test_evaluation_resizes_and_crops_the_centre(npz):
    pixels = np.zeros((20, 10, 20), np.uint8)
    pixels[:, 2:8, 7:13] = 255  # the middle of the centre square
    path = npz(x=pixels, y=np.arange(20) % 2)
    task = build_task(preset(source="npz", path=path, image_size=5, eval_crop_ratio=0.5, interpolation="nearest"))
    assert torch.equal(everything(task.test)["images"].unique(), torch.ones(1))
    seen = everything(task.train)["images"]  # training sees the whole centre square
    assert seen.mean().item() == pytest.approx(9 / 25)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "ratio"), [(12, 1.0), (12, 0.875), (7, 0.6)])
def test_evaluation_sees_what_timm_makes_of_the_files(tmp_path, interpolation, size, ratio):
    """Whatever augmentation is on; read twice, and with the sizes rounded as timm rounds them."""
    rng = np.random.default_rng(0)
    for i in range(12):
        folder = tmp_path / ("train", "val", "test")[i % 3] / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9 + i, 25 - i, 3), np.uint8)).save(folder / f"{i}.png")
    options = {"image_size": size, "channels": 3, "interpolation": interpolation, "eval_crop_ratio": ratio}
    task = build_task(preset(source="image-folder", path=str(tmp_path), **options, **AUGMENTED))
    transform = create_transform(
        (3, size, size), interpolation=interpolation, crop_pct=ratio, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    for part, name in ((task.validation, "val"), (task.test, "test")):
        files = sorted((tmp_path / name).glob("*/*.png"))
        expected = torch.stack([transform(Image.open(file)) for file in files])
        assert torch.equal(everything(part)["images"], expected)
        assert torch.equal(everything(part)["images"], expected)


def test_normalisation_is_the_models_own():
    assert build_task(preset("resnet18", mean=None, std=None)).description["mean"] == pytest.approx(
        [(0.485 + 0.456 + 0.406) / 3]
    )
    vit = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    task = build_task(preset("vit_tiny_patch16_224", vit, mean=None, std=None, channels=3))
    assert task.description["mean"] == [0.5, 0.5, 0.5]
    assert task.model_args == {"num_classes": 10, "in_chans": 3, "img_size": 8}


AUGMENTED = {
    "crop": "random-resized", "crop_scale": [0.5, 1.0], "horizontal_flip": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.5,
}  # fmt: skip


def test_augmented_samples_depend_on_the_key_alone():
    part = build_task(preset(**AUGMENTED)).train
    assert isinstance(part, LazyPart)
    indices = list(range(24))
    reference = part.__getitems__(keys(indices))
    backwards = part.__getitems__(keys(indices[::-1]))
    assert torch.equal(reference["images"], backwards["images"].flip(0))
    alone = torch.cat([part.__getitems__([(0, i)])["images"] for i in indices])
    assert torch.equal(reference["images"], alone)
    assert not torch.equal(reference["images"], part.__getitems__(keys(indices, epoch=1))["images"])
    other_seed = build_task(preset(seed=1, **AUGMENTED)).train.__getitems__(keys(indices))
    assert not torch.equal(reference["images"], other_seed["images"])
    batches = [keys(indices[:7]), keys(indices[7:])]
    loader = DataLoader(part, batch_sampler=batches, num_workers=2, collate_fn=lambda batch: batch)
    assert torch.equal(reference["images"], torch.cat([batch["images"] for batch in loader]))


def test_crop_and_flip_in_memory_give_windows_of_the_padded_image(npz, digits):
    """Every window and both directions occur, about equally often, and nothing else; it depends on the key alone."""
    pixels, _ = digits
    path = npz(x_train=pixels[:2], y_train=[0, 1], x_test=pixels[:2], y_test=[0, 1])
    options = {"validation_fraction": 0, "crop": "pad", "horizontal_flip": 0.25, "mean": [0.25], "std": [0.5]}
    part = build_task(preset(source="npz", path=path, **options)).train
    assert isinstance(part, CropFlipPart)
    padded = np.pad(pixels[1], 1)
    windows = {}
    for top, left, flip in np.ndindex(3, 3, 2):
        window = padded[top : top + 8, left : left + 8]
        windows[(window[:, ::-1] if flip else window).tobytes()] = (top, left, flip)
    assert len(windows) == 18
    epochs = [(epoch, 1) for epoch in range(3600)]
    batch = part.__getitems__(epochs)
    seen = np.round((batch["images"].numpy() * 0.5 + 0.25) * 255).astype(np.uint8)
    counts = np.zeros((3, 3, 2), int)
    for image in seen:
        counts[windows[image.tobytes()]] += 1
    assert counts.sum(axis=2) == pytest.approx(np.full((3, 3), 400), abs=100)  # five standard deviations
    assert counts[..., 1].sum() == pytest.approx(900, abs=130)
    assert set(batch["labels"].tolist()) == {1}
    mixed = part.__getitems__([(7, 0), (3599, 1), (7, 1)])
    assert torch.equal(mixed["images"][1:], batch["images"][[3599, 7]])


def test_key_numbers_are_uniform_and_uncorrelated():
    numbers = key_numbers(5, [(epoch, index) for epoch in range(20) for index in range(500)], 3)
    histogram = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert np.abs(histogram - 1500).max() < 200  # five standard deviations
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.05
    by_epoch = numbers[:, 0].reshape(20, 500)
    assert np.abs(np.corrcoef(by_epoch) - np.eye(20)).max() < 0.25
    assert not np.array_equal(numbers, key_numbers(6, [(e, i) for e in range(20) for i in range(500)], 3))


@pytest.mark.parametrize("policy", ["original-mstd0.5", "augmix-m5-w4", "3a", "rand-m2-n3"])
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_work_on_grey_and_colour(policy, channels):
    part = build_task(preset(auto_augment=policy, crop="pad", channels=channels)).train
    assert part.__getitems__(keys(range(60)))["images"].shape == (60, channels, 8, 8)


def test_global_generators_are_left_alone():
    task = build_task(preset(mixup_alpha=0.5, cutmix_alpha=1.0, **AUGMENTED))
    states = [state() for state in (random.getstate, np.random.get_state, torch.get_rng_state)]
    batch = task.train.__getitems__(keys(range(8)))
    task.prepare(batch, torch.Generator().manual_seed(1))
    assert random.getstate() == states[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[1], strict=True))
    assert torch.equal(torch.get_rng_state(), states[2])


def test_mixing_is_driven_by_the_generator_and_labels_match_pixels():
    task = build_task(preset(mixup_alpha=1.0, cutmix_alpha=1.0))
    batch = task.train.__getitems__(keys(range(7)))  # an odd batch, as the last of an epoch may be
    hard = nn.functional.one_hot(batch["labels"], 10).float()
    seen = set()
    for seed in range(20):
        mixed = task.prepare(batch, torch.Generator().manual_seed(seed))
        again = task.prepare(batch, torch.Generator().manual_seed(seed))
        assert torch.equal(mixed["images"], again["images"])
        assert torch.equal(mixed["labels"], again["labels"])
        torch.testing.assert_close(mixed["labels"].sum(1), torch.ones(7))
        # The share of the partner in the labels is what an all-or-nothing pixel count or a blend must agree with.
        blend = any(
            torch.allclose(mixed["images"], batch["images"] * w + batch["images"].roll(1, 0) * (1 - w), atol=1e-5)
            and torch.allclose(mixed["labels"], hard * w + hard.roll(1, 0) * (1 - w), atol=1e-5)
            for w in mixed["labels"].unique().tolist()
        )
        seen.add("mixup" if blend else "cutmix")
    assert seen == {"mixup", "cutmix"}
    off = build_task(preset(mixup_alpha=1.0, mix_probability=0.0))
    assert off.prepare(batch, torch.Generator())["labels"].dtype == torch.int64


class Constant(nn.Module):
    """Gives the same logits for every image."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def test_losses_and_metrics_equal_hand_computation():
    task = build_task(preset(label_smoothing=0.1))
    model = Constant([float(i) for i in range(10)])  # classes 5..9 are the five first guesses
    batch = {"images": torch.zeros(4, 1, 8, 8), "labels": torch.tensor([9, 5, 4, 0])}
    log_p = np.arange(10.0) - np.log(np.exp(np.arange(10.0)).sum())
    sums = task.measure(model, batch)
    confusion = sums.pop(CONFUSION)
    assert confusion[[9, 5, 4, 0], 9].tolist() == [1.0] * 4
    assert confusion.sum() == 4
    metrics = task.metrics({name: value.item() for name, value in sums.items()})
    assert metrics == pytest.approx({"loss": -log_p[[9, 5, 4, 0]].mean(), "top1": 0.25, "top5": 0.5})
    smooth = -(0.9 * log_p[[9, 5, 4, 0]].mean() + 0.1 * log_p.mean())
    assert task.training_loss(model, batch).item() == pytest.approx(smooth, rel=1e-5)
    soft = {**batch, "labels": nn.functional.one_hot(batch["labels"], 10).float()}
    assert task.training_loss(model, soft).item() == pytest.approx(smooth, rel=1e-5)


def test_top5_needs_more_than_five_classes(npz):
    path = npz(x=np.zeros((40, 8, 8), np.uint8), y=np.arange(40) % 5)
    task = build_task(preset(source="npz", path=path))
    assert set(task.measure(Constant([0.0] * 5), everything(task.test))) == {"loss", "top1", "count", CONFUSION}


def test_image_folder_with_and_without_parts(folder, tmp_path):
    task = build_task(preset(source="image-folder", path=str(folder / "all"), validation_fraction=0.25))
    assert [len(part) for part in (task.train, task.validation, task.test)] == [36, 12, 12]
    assert task.description["classes"] == ["0", "1", "2"]
    (tmp_path / "train").symlink_to(folder / "all")
    # The test folder lacks a class, so its own numbering would be wrong.
    (tmp_path / "exam").mkdir()
    (tmp_path / "exam" / "2").symlink_to(folder / "all" / "2")
    task = build_task(preset(source="image-folder", path=str(tmp_path), validation_fraction=0, splits={"test": "exam"}))
    assert len(task.train) == 60
    assert set(everything(task.test)["labels"].tolist()) == {2}
    with pytest.raises(UsageError, match=r"splits.test"):
        build_task(preset(source="image-folder", path=str(tmp_path), splits={"test": "missing"}))


def test_a_split_that_is_claimed_for_the_test_is_not_the_validation_too(folder, tmp_path):
    """ImageNet's public validation images are used as the test: validating on them would leak."""
    (tmp_path / "train").symlink_to(folder / "all")
    (tmp_path / "val").symlink_to(folder / "all" / ".." / "all")
    task = build_task(
        preset(source="image-folder", path=str(tmp_path), splits={"test": "val"}, validation_fraction=0.25)
    )
    assert [len(part) for part in (task.train, task.validation, task.test)] == [45, 15, 60]


def test_torchvision_with_train_flag_and_with_split_names(tmp_path, digits):
    pixels, labels = digits
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    big = np.zeros((50, 28, 28), np.uint8)
    big[:, :8, :8] = pixels[:50]
    for prefix, part in (("train", slice(0, 40)), ("t10k", slice(40, 50))):
        images = big[part]
        header = struct.pack(">IIII", 2051, *images.shape)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        label = labels[part].astype(np.uint8)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(label)) + label.tobytes())
    options = {"source": "torchvision", "path": str(tmp_path), "download": False, "validation_fraction": 0}
    task = build_task(preset(name="MNIST", image_size=28, **options))
    assert len(task.train) == 40
    batch = everything(task.test)
    assert batch["labels"].tolist() == labels[40:50].tolist()
    torch.testing.assert_close(batch["images"][:, 0, :8, :8], torch.from_numpy(pixels[40:50]).float() / 255)

    food = tmp_path / "food-101"
    for part, count in (("train", 6), ("test", 4)):
        names = {kind: [f"{kind}/{part}{i}" for i in range(count)] for kind in ("apple", "pie")}
        (food / "meta").mkdir(parents=True, exist_ok=True)
        (food / "meta" / f"{part}.json").write_text(json.dumps(names))
        for entry in chain.from_iterable(names.values()):
            path = food / "images" / f"{entry}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[0]).convert("RGB").save(path)
    task = build_task(preset(name="Food101", **options))
    assert (len(task.train), task.validation, len(task.test)) == (12, None, 8)
    assert everything(task.train)["images"].shape == (12, 1, 8, 8)

    with pytest.raises(UsageError, match="CIFAR10 cannot be opened"):
        build_task(preset(name="CIFAR10", **options))
    with pytest.raises(UsageError, match="did you mean CIFAR10"):
        build_task(preset(name="CIFAR1", **options))


def test_huggingface_from_disk_and_from_a_folder_of_images(tmp_path, folder, digits, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pixels, labels = digits
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.Value("string")})
    rows = {
        "img": [Image.fromarray(image) for image in pixels[:30]],
        "kind": [f"digit-{label}" for label in labels[:30]],
    }
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)})
    saved.save_to_disk(str(tmp_path / "saved"))
    task = build_task(
        preset(
            source="huggingface", name=str(tmp_path / "saved"), image_column="img", label_column="kind",
            validation_fraction=0, test_fraction=0,
        )
    )  # fmt: skip
    assert task.description["classes"] == [f"digit-{i}" for i in range(10)]
    batch = everything(task.train)
    assert batch["labels"].tolist() == labels[:30].tolist()
    torch.testing.assert_close(batch["images"][:, 0], torch.from_numpy(pixels[:30]).float() / 255)
    task = build_task(preset(source="huggingface", name="imagefolder", path=str(folder / "all")))
    assert task.description["classes"] == ["0", "1", "2"]
    with pytest.raises(UsageError, match="image_column: no column image; the data set has img, kind"):
        build_task(preset(source="huggingface", name=str(tmp_path / "saved")))


def test_hub_name_without_network_is_one_sentence(monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"cannot be reached \(data.name\); give a folder") as caught:
        build_task(preset(source="huggingface", name="somebody/some-images"))
    assert "\n" not in str(caught.value)


GOOD = {"x_train": np.zeros((20, 8, 8), np.uint8), "y_train": np.arange(20) % 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": None}, "y_train is missing"),
        ({"x_train": np.zeros((20, 8, 8))}, "x_train is float64; images must be uint8"),
        ({"x_train": np.zeros((20, 64), np.uint8)}, r"x_train has shape \(20, 64\)"),
        ({"x_train": np.zeros((20, 3, 8, 8), np.uint8)}, r"N x H x W x C with C of 1, 3 or 4"),
        ({"y_train": np.arange(19)}, r"y_train has shape \(19,\)"),
        ({"y_train": np.linspace(0, 1, 20)}, "float64; 20 whole numbers"),
        ({"y_train": np.arange(20) - 1}, "label -1 of the"),
        ({"y_train": np.zeros(20, int)}, "found 1 class"),
        ({"x_train": np.zeros((0, 8, 8), np.uint8), "y_train": np.zeros(0, int)}, "x_train is empty"),
        ({"x_train": np.zeros((2, 0, 8), np.uint8), "y_train": np.zeros(2, int)}, "x_train is empty"),
        ({"y_train": np.array([{}] * 20)}, r"not a readable .npz file of plain arrays; write it with numpy.savez"),
        (
            {"y_train": np.arange(20) + 2_000_000_000 * (np.arange(20) == 7)},
            "has the label 2000000007 but only 20 images",
        ),
        (
            {"x_test": np.zeros((2, 8, 8), np.uint8), "y_test": np.array([0, 2])},
            "the test part has the label 2, which the training part does not have",
        ),
    ],
)
def test_bad_npz_says_file_key_and_remedy(npz, changes, message):
    path = npz(**{key: value for key, value in {**GOOD, **changes}.items() if value is not None})
    with pytest.raises(UsageError, match=message) as caught:
        build_task(preset(source="npz", path=path))
    assert "data.npz" in str(caught.value) or "data.source npz" in str(caught.value)
    assert "allow_pickle" not in str(caught.value)


def test_a_bare_array_is_no_npz(tmp_path):
    np.save(tmp_path / "array.npy", GOOD["x_train"])
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with pytest.raises(UsageError, match=r"array.npz: holds one bare array; write it with numpy.savez"):
        build_task(preset(source="npz", path=str(tmp_path / "array.npz")))


def test_digits_are_scikit_learns_with_and_without_its_import(monkeypatch):
    code = (
        "import sys; from fismo_cli.tasks.image_sources import read_digits\n"
        "read_digits(); sys.exit('sklearn' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    expected = load_digits()
    for _ in range(2):
        images, labels = read_digits()
        assert np.array_equal(images, expected.images)
        assert np.array_equal(labels, expected.target)
        assert (images.dtype, labels.dtype) == (np.float64, np.int64)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def test_more_workers_than_any_use_are_refused(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    with pytest.raises(UsageError, match=r"data.workers is 21, but this machine has 5 processors; give at most 20"):
        build_task(preset(workers=21))
    build_task(preset(workers=20))


def test_other_bad_input(tmp_path, npz):
    with pytest.raises(UsageError, match=r"none.npz is not a file"):
        build_task(preset(source="npz", path=str(tmp_path / "none.npz")))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not a zip file")
    with pytest.raises(UsageError, match=r"broken.npz: not a readable"):
        build_task(preset(source="npz", path=str(tmp_path / "broken.npz")))
    with pytest.raises(UsageError, match=r"validation_fraction: 0.0001 of"):
        build_task(preset(source="npz", path=npz(**GOOD), validation_fraction=0.0001))
    with pytest.raises(UsageError, match="is not a folder"):
        build_task(preset(source="image-folder", path=str(tmp_path / "none")))
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(UsageError, match="no images in its class folders"):
        build_task(preset(source="image-folder", path=str(tmp_path / "empty")))
    with pytest.raises(UsageError, match="does not know the policy 'randm'"):
        build_task(preset(auto_augment="randm"))
    with pytest.raises(UsageError, match=r"model.args.num_classes is 7, but the data gives 10"):
        build_task(preset(args={"num_classes": 7}))
    with pytest.raises(UsageError, match=r"model.args.img_size is 16, but data.image_size is 8"):
        build_task(preset("vit_tiny_patch16_224", {"img_size": 16}))
