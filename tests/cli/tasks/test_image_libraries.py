"""Images of Hugging Face data sets and of torchvision's: labels, broken rows, depths, orientation, identity."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fismo_cli.errors import UsageError
from fismo_cli.tasks import build_task
from tests.cli.tasks.test_images import everything, preset

datasets = pytest.importorskip("datasets")

NAMES = ["cat", "dog"]


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def grey(count, seed=0):
    rng = np.random.default_rng(seed)
    return [encoded(Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8))) for _ in range(count)]


def split(images, labels, label=None):
    feature = label if label is not None else datasets.ClassLabel(names=NAMES)
    rows = {"image": [{"bytes": image, "path": None} for image in images], "label": labels}
    return datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image(), "label": feature}))


@pytest.fixture
def hub(tmp_path):
    def load(splits, **data):
        root = tmp_path / f"hub-{len(list(tmp_path.iterdir()))}"
        datasets.DatasetDict(splits).save_to_disk(str(root))
        return build_task(preset(source="huggingface", name=str(root), **{"validation_fraction": 0, **data}))

    return load


def test_labels_of_splits_are_matched_by_the_names_of_their_classes(hub):
    test = split(grey(4, 1), [0, 1, 1, 0], datasets.ClassLabel(names=NAMES[::-1]))
    task = hub({"train": split(grey(6), [0, 1] * 3), "test": test})
    assert task.description["classes"] == NAMES
    assert everything(task.test)["labels"].tolist() == [1, 0, 0, 1]


def test_a_part_without_labels_is_left_out_and_said(hub):
    train = split(grey(10), [0, 1] * 5)
    task = hub({"train": train, "test": split(grey(4, 1), [-1] * 4)}, test_fraction=0.2)
    assert task.notes == ("left out: the test part, which has no labels (all are -1)",)
    assert task.description["samples"] == {"train": 8, "test": 2}
    with pytest.raises(UsageError, match="label -1 of the test part is out of range"):
        hub({"train": train, "test": split(grey(2, 1), [-1, 0])})
    with pytest.raises(UsageError, match="label_column: 1 images of the train part have no label"):
        hub({"train": split(grey(3), [0, 1, None])})
    with pytest.raises(UsageError, match=r"label_column: label is .*; one class an image is needed"):
        hub({"train": split(grey(2), [[0], [0, 1]], datasets.Sequence(datasets.Value("int64")))})


def test_a_small_part_may_have_large_labels(hub):
    numbers = datasets.Value("int32")
    task = hub({"train": split(grey(20), [*range(10)] * 2, numbers), "test": split(grey(2, 1), [9, 8], numbers)})
    assert everything(task.test)["labels"].tolist() == [9, 8]


def test_classes_without_a_training_image_are_noted(hub):
    task = hub(
        {"train": split(grey(4), [0, 2, 0, 2], datasets.ClassLabel(names=["ant", "bee", "cat"]))}, test_fraction=0
    )
    assert task.notes == ("1 class of 3 without a training image: bee",)
    assert task.model_args["num_classes"] == 3


def test_broken_rows_are_named_before_training(hub):
    images = grey(6)
    images[2], images[4] = images[2][:40], b""
    splits = {"train": split(images, [0, 1] * 3), "test": split(grey(4, 1), [0, 1] * 2)}
    with pytest.raises(UsageError) as caught:
        hub(splits)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[1:]] == [
        "  image 2 of the train part", "  image 4 of the train part",
    ]  # fmt: skip
    task = hub(splits, skip_unreadable=True)
    assert task.description["samples"] == {"train": 4, "test": 4}
    assert everything(task.train)["labels"].tolist() == [0, 1, 1, 1]
    assert len(task.notes) == 1


def test_rows_are_shown_as_files_are(hub):
    exif = Image.Exif()
    exif[0x0112] = 6
    half = Image.fromarray(np.repeat(np.array([0, 255], np.uint8), 32).reshape(8, 8))
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    images = [encoded(half, exif=exif), encoded(Image.fromarray(ramp)), *grey(2)]
    task = hub({"train": split(images, [0, 1, 0, 1])}, test_fraction=0)
    found = everything(task.train)["images"][:, 0] * 255
    assert torch.equal(found[0], torch.from_numpy(np.array(half).T[:, ::-1].astype(np.float32)))
    torch.testing.assert_close(found[1], torch.from_numpy(np.round(ramp / 257).astype(np.float32)))


def test_identity_of_rows(hub):
    images, labels = grey(6), [0, 1] * 3
    first = hub({"train": split(images, labels)}).description["identity"]["train"]
    assert {name: value["count"] for name, value in first.items()} == {"cat": 3, "dog": 3}
    assert hub({"train": split(images, labels)}, split_seed=3).description["identity"]["train"] == first
    images[1] = encoded(Image.new("L", (9, 9)))
    second = hub({"train": split(images, labels)}).description["identity"]["train"]
    assert second["cat"] == first["cat"]
    assert second["dog"] != first["dog"]


def test_torchvisions_files_are_shown_as_files_are(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for name in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            folder = tmp_path / "imagenette2" / name / wnid
            folder.mkdir(parents=True)
            Image.fromarray(ramp).save(folder / "0.JPEG", "PNG")
            Image.fromarray((ramp >> 8).astype(np.uint8)).save(folder / "1.JPEG", "PNG")
    path = tmp_path / "imagenette2/train/n01440764"
    options = {"path": str(tmp_path), "download": False, "validation_fraction": 0, "test_fraction": 0}
    task = build_task(preset(source="torchvision", name="Imagenette", **options))
    images = everything(task.train)["images"][:, 0] * 255
    torch.testing.assert_close(images[0], torch.from_numpy(np.round(ramp / 257).astype(np.float32)))
    torch.testing.assert_close(images[1], torch.from_numpy((ramp >> 8).astype(np.float32)))
    identity = task.description["identity"]["train"]
    with (path / "0.JPEG").open("ab") as stream:
        stream.write(b"more")
    again = build_task(preset(source="torchvision", name="Imagenette", **options)).description["identity"]["train"]
    assert [again[name] == identity[name] for name in identity] == [False, True]
    (path / "0.JPEG").write_bytes(b"no image")
    task = build_task(preset(source="torchvision", name="Imagenette", **options))
    with pytest.raises(UsageError, match=r"image 0 of the data set cannot be read .*/0\.JPEG: not a readable image"):
        everything(task.train)


def test_image_folder_of_torchvision_is_read_as_any_folder_of_images(tmp_path):
    for name in NAMES:
        (tmp_path / name).mkdir()
        for i, image in enumerate(grey(5)):
            (tmp_path / name / f"{i}.png").write_bytes(image)
    options = {"path": str(tmp_path), "validation_fraction": 0}
    clean = build_task(preset(source="image-folder", **options)).description
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints/0.png").write_bytes(image)
    (tmp_path / "cat/._0.png").write_bytes(image)
    found = build_task(preset(source="torchvision", name="ImageFolder", **options)).description
    assert {**found, "source": "image-folder"} == clean
    (tmp_path / "cat/9.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"9\.png: not a readable image \(the file is empty\).*skip_unreadable=true"):
        build_task(preset(source="torchvision", name="ImageFolder", **options))
    task = build_task(preset(source="torchvision", name="ImageFolder", skip_unreadable=True, **options))
    assert task.description["samples"] == clean["samples"]


def test_the_users_home_is_found(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    hub({"train": split(grey(6), [0, 1] * 3)})
    assert len(build_task(preset(source="huggingface", name="~/hub-0", validation_fraction=0)).train) == 5


def test_labels_that_are_fractions(hub):
    def rows(labels):
        return {"train": split(grey(4), labels, datasets.Value("float32"))}

    task = hub(rows([0.0, 2.0, 1.0, 1.0]), test_fraction=0)
    assert everything(task.train)["labels"].tolist() == [0, 2, 1, 1]
    with pytest.raises(UsageError, match=r"data\.label_column: label is float32; whole numbers or words are needed"):
        hub(rows([0.0, 0.5, 1.0, 1.0]))


def test_npz_with_a_test_part_only_is_for_measuring(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x_test=np.zeros((3, 8, 8), np.uint8), y_test=[7, 1, 7])
    with pytest.raises(UsageError, match="x is missing"):
        build_task(preset(source="npz", path=str(path)))
    known = [str(i) for i in range(10)]
    task = build_task(preset(source="npz", path=str(path)), known=known, split=False)
    assert everything(task.test)["labels"].tolist() == [7, 1, 7]
    assert task.model_args["num_classes"] == 10
    with pytest.raises(UsageError, match=r"a\.npz has the label 7, but the model has 2 classes"):
        build_task(preset(source="npz", path=str(path)), known=known[:2], split=False)
