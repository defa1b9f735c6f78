"""Images of Hugging Face data sets and of torchvision's: labels, broken rows, depths, orientation, identity."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fismo_cli.errors import UsageError
from fismo_cli.tasks import build_task
from tests.cli.test_images import everything, preset

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
        for wnid in ("a", "b"):
            (tmp_path / name / wnid).mkdir(parents=True)
            Image.fromarray(ramp).save(tmp_path / name / wnid / "0.png")
            Image.fromarray((ramp >> 8).astype(np.uint8)).save(tmp_path / name / wnid / "1.png")
    path = tmp_path / "train"
    whole = {"path": str(path), "validation_fraction": 0, "test_fraction": 0}
    task = build_task(preset(source="torchvision", name="ImageFolder", **whole))
    images = everything(task.train)["images"][:, 0] * 255
    torch.testing.assert_close(images[0], torch.from_numpy(np.round(ramp / 257).astype(np.float32)))
    torch.testing.assert_close(images[1], torch.from_numpy((ramp >> 8).astype(np.float32)))
    identity = task.description["identity"]["train"]
    Image.fromarray(ramp).save(path / "b" / "1.png")
    with (path / "a" / "0.png").open("ab") as stream:
        stream.write(b"more")
    again = build_task(preset(source="torchvision", name="ImageFolder", **whole)).description["identity"]["train"]
    assert again["a"] != identity["a"]
    (path / "a" / "0.png").write_bytes(b"no image")
    task = build_task(preset(source="torchvision", name="ImageFolder", **whole))
    with pytest.raises(UsageError, match=r"image 0 of the data set cannot be read .*a/0\.png: not a readable image"):
        everything(task.train)


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
