"""Image files of users: what is data, what is left out, what the model sees of each kind, and what data is known by."""

import io
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder

from fismo_cli.errors import UsageError
from fismo_cli.reporting.console import looking, stderr_console
from fismo_cli.tasks import build_task, image_files
from fismo_cli.tasks.image_files import image_endings, look_at, read_image
from fismo_cli.tasks.image_sources import load_images
from tests.cli.tasks.test_images import everything, preset


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


def test_hidden_files_and_folders_are_no_data(pets):
    before = of(pets).description
    shutil.copytree(pets / "train/cat", pets / "train/cat/.ipynb_checkpoints")
    shutil.copytree(pets / "train/cat", pets / "train/__MACOSX")
    draw(pets / "train/.ipynb_checkpoints")
    (pets / "train/dog/._00.png").write_bytes(b"\0\5\26\7 of a Mac")
    (pets / "train/dog/.DS_Store").write_bytes(b"\0")
    task = of(pets)
    assert task.description == before
    assert task.notes == ()


def test_a_class_needs_a_training_image(pets):
    (pets / "train/bird").mkdir()
    (pets / "train/bird/notes.txt").write_text("none yet")
    task = of(pets)
    assert task.description["classes"] == ["cat", "dog"]
    assert task.notes == (f"left out: bird in {pets / 'train'}, without an image", "left out: 1 .txt (no images)")
    draw(pets / "test/bird")
    with pytest.raises(UsageError, match="test/bird: the training part has no class bird"):
        of(pets)


def test_what_is_no_image_is_counted_and_the_rest_is_read(pets):
    for name in ("a.txt", "b.TXT", "c.pdf", "none"):
        (pets / "train/cat" / name).write_text("text")
    draw(pets / "train", count=2)
    for end in ("gif", "TIF", "webp", "bmp", "ppm", "jp2", "tga", "Jpeg", "ico", "pcx"):
        draw(pets / "train/dog", count=1, end=end, size=16)
    task = of(pets)
    assert task.description["samples"] == {"train": 22, "test": 12}
    assert task.notes == (
        f"left out: 2 images in {pets / 'train'} itself, in no class's folder",
        "left out: 2 .txt, 1 .pdf, 1 without ending (no images)",
    )
    everything(task.train)
    assert not image_endings() & {".pdf", ".mp4", ".h5", ".txt", ".eps", ".npy"}


def test_folders_that_are_parts_are_not_taken_for_classes(pets, tmp_path):
    (pets / "train").rename(pets / "Training")
    (pets / "test").rename(pets / "Testing")
    with pytest.raises(UsageError, match="Testing, Training look like parts, not like classes"):
        of(pets)
    assert of(pets, splits={"train": "Training", "test": "Testing"}).description["samples"]["train"] == 12


def test_classes_may_be_called_as_parts_are(pets):
    (pets / "test").rename(pets / "plane")
    for image in (pets / "train").rglob("*.png"):
        image.rename(pets / "train" / f"{image.parent.name}-{image.name}")
    for name in ("cat", "dog"):
        (pets / "train" / name).rmdir()
    with pytest.raises(UsageError, match=r"train is a class itself: data\.splits={train: \.}"):
        of(pets)
    assert of(pets, splits={"train": "."}).description["classes"] == ["plane", "train"]
    (pets / "train").rename(pets / "test")
    with pytest.raises(UsageError, match=r"has test but no train folder; .* data\.splits={train: \.} if all folders"):
        of(pets)
    assert of(pets, splits={"train": "."}).description["classes"] == ["plane", "test"]


def test_folders_beside_the_parts_are_named(pets):
    shutil.copytree(pets / "test", pets / "dev")
    (pets / ".cache").mkdir()
    assert of(pets).notes == (f"left out: dev in {pets}, which data.splits does not name as parts",)
    task = of(pets, splits={"validation": "dev"})
    assert task.description["samples"] == {"train": 12, "validation": 12, "test": 12}
    assert [note.split(":")[0] for note in task.notes] == ["12 images of validation are in test, too"]


def test_links_in_circles_end(pets):
    (pets / "train/cat/all").symlink_to(pets / "train/cat")
    (pets / "train/cat/dogs").symlink_to(pets / "train/dog")
    assert of(pets).description["samples"]["train"] == 18


RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


def seen(image, tmp_path, name):
    image.save(tmp_path / name)
    return np.asarray(read_image(str(tmp_path / name)))


@pytest.mark.parametrize("name", ["ramp.png", "ramp.tif", "ramp.jp2", "ramp.ppm"])
def test_sixteen_bits_are_scaled_by_the_files_depth(tmp_path, name):
    expected = np.round(RAMP / 65535 * 255)
    assert np.abs(seen(Image.fromarray(RAMP), tmp_path, name) - expected).max() <= (name == "ramp.jp2")


def test_other_depths_are_scaled_or_refused(tmp_path):
    twelve = (RAMP >> 4).astype(np.uint16)  # packed, as microscopes and cameras write them
    pairs = twelve.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    data = packed.astype(np.uint8).tobytes()
    tags = [(256, 8), (257, 8), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, len(data))]
    table = b"".join(np.array([tag, 4, 1, 0, value, 0], "<u2").tobytes() for tag, value in tags)
    header = b"II*\0" + np.array([8 + len(data)], "<u4").tobytes()
    (tmp_path / "12.tif").write_bytes(header + data + np.array([len(tags)], "<u2").tobytes() + table + b"\0" * 4)
    assert np.array_equal(np.asarray(read_image(str(tmp_path / "12.tif"))), np.round(twelve / 4095 * 255))
    for name, image in (
        ("float.tif", Image.fromarray(np.float32(RAMP))),
        ("32.tif", Image.fromarray(np.int32(RAMP))),
    ):
        image.save(tmp_path / name)
        with pytest.raises(UsageError, match=f"{name}: .* no known range; convert it to 8 or 16 bits"):
            read_image(str(tmp_path / name))
        with (tmp_path / name).open("rb") as stream:
            assert "no known range" in look_at(stream).problem


def test_white_may_be_zero(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "grey.tif")
    data = bytearray((tmp_path / "grey.tif").read_bytes())
    place = data.index(np.array([262, 3, 1, 0], "<u2").tobytes())
    assert data[place + 8] == 1
    data[place + 8] = 0
    (tmp_path / "white.tif").write_bytes(data)
    assert np.array_equal(
        np.asarray(read_image(str(tmp_path / "white.tif"))), np.round((65535 - RAMP.astype(int)) / 257)
    )


def test_depths_and_transparency_are_noted(pets):
    Image.fromarray(RAMP).save(pets / "train/cat/00.png")
    Image.new("LA", (8, 8), (200, 0)).save(pets / "train/cat/01.png")
    Image.new("P", (8, 8)).save(pets / "train/cat/02.png", transparency=bytes([0, 100]))
    task = of(pets)
    assert task.notes == (
        "1 image has more than 8 bits a pixel, 23 have 8: each is scaled by the depth of its file",
        "2 images have transparency, which is dropped: the colours below are seen",
    )
    assert everything(task.train)["images"][1].unique().tolist() == [pytest.approx(200 / 255)]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_are_what_pillow_converts_them_to(tmp_path, mode):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (8, 8, 4), np.uint8), "RGBA").convert("RGB").convert(mode)
    name = "image.png" if mode in ("1", "L", "P", "LA", "RGBA") else "image.jpg"
    image.save(tmp_path / name)
    with Image.open(tmp_path / name) as stored:
        expected = np.asarray(stored.convert("RGB"))
    assert np.array_equal(np.asarray(read_image(str(tmp_path / name)).convert("RGB")), expected)


def test_the_first_frame_is_seen(tmp_path):
    frames = [Image.new("L", (8, 8), value) for value in (50, 200)]
    for name in ("film.gif", "film.tif", "film.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        image = read_image(str(tmp_path / name)).convert("L")
        assert np.abs(np.asarray(image).astype(int) - 50).max() <= 2, name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_exif_says(pets, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    corner = np.zeros((8, 16), np.uint8)
    corner[:4, :8] = 255
    for name in ("turned.jpg", "turned.png", "turned.webp"):
        Image.fromarray(corner).convert("RGB").save(tmp_path / name, exif=exif, quality=95)
        with Image.open(tmp_path / name) as stored:
            expected = np.asarray(ImageOps.exif_transpose(stored))
        found = np.asarray(read_image(str(tmp_path / name)))
        assert np.array_equal(found, expected), name
    # By the standard's own words, 6 is a quarter turn to the right.
    if orientation == 6:
        assert found.shape[:2] == (16, 8)
        assert found[:8, 4:].mean() > 250
        assert found[:, :4].mean() < 5


def damage(folder):
    """Broken in several ways, with what is said of each."""
    cat = folder / "train/cat"
    for name, size in (("a.png", 60), ("b.jpg", 300), ("c.gif", 90), ("d.webp", 100), ("e.bmp", 100), ("f.tif", 80)):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24), np.uint8)).save(cat / name)
        (cat / name).write_bytes((cat / name).read_bytes()[:size])
    (cat / "g.png").write_bytes(b"")
    (cat / "h.jpg").write_text("<html>404</html>")
    bomb = bytearray((cat.parent / "dog/00.png").read_bytes())
    bomb[16:24] = struct.pack(">II", 20000, 20000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (cat / "i.png").write_bytes(bomb)
    (cat / "j.png").symlink_to(cat / "gone.png")


def test_all_unreadable_files_are_named_before_training(pets):
    before = of(pets).description["identity"]
    damage(pets)
    with pytest.raises(UsageError) as caught:
        of(pets)
    lines = str(caught.value).splitlines()
    assert lines[0] == "10 images cannot be read; remove or replace them, or set data.skip_unreadable=true:"
    assert [line.split("/")[-1][0] for line in lines[1:]] == list("abcdefghij")
    assert any(line.endswith("i.png: 400 megapixels, more than the 179 that Pillow reads") for line in lines)
    assert any(line.endswith("g.png: the file is empty") for line in lines)
    assert any(line.endswith("h.jpg: not an image that Pillow can read") for line in lines)
    assert any(line.endswith("j.png: No such file or directory") for line in lines)
    task = of(pets, skip_unreadable=True)
    assert task.description["samples"]["train"] == 12
    assert task.description["identity"] == before
    assert len(task.notes) == 1
    assert task.notes[0].startswith("left out: 10 images that cannot be read (")


@pytest.mark.parametrize("end", ["png", "jpg", "gif", "webp", "bmp", "tif", "jp2", "avif"])
def test_a_look_sees_that_the_end_is_missing_and_decodes_nothing_else(tmp_path, monkeypatch, end):
    path = tmp_path / f"image.{end}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    data = path.read_bytes()
    assert look_at(io.BytesIO(data[:-40])).problem is not None
    assert look_at(io.BytesIO(data[: len(data) // 2])).problem is not None
    monkeypatch.setattr(image_files, "displayed", lambda image: pytest.fail("decoded"))
    assert look_at(io.BytesIO(data)).problem is None


def test_what_goes_bad_later_is_named(pets):
    task = of(pets)
    file = pets / "train/dog/03.png"
    data = bytearray(file.read_bytes())
    data[45:60] = bytes(15)
    file.write_bytes(data)  # a header and an end are there
    with pytest.raises(UsageError, match=r"dog/03.png: not a readable image \(.*\); remove or replace the file"):
        everything(task.train)
    file.unlink()
    with pytest.raises(UsageError, match=r"dog/03.png: not a readable image \(No such file or directory\)"):
        everything(task.train)


def test_a_jpeg_with_something_after_its_end_is_fine(pets):
    path = pets / "train/cat/00.jpg"
    Image.new("L", (8, 8), 90).save(path)
    path.write_bytes(path.read_bytes() + b"\r\n--boundary--")
    assert of(pets).description["samples"]["train"] == 13


def test_copies_in_two_parts_are_noted(pets):
    shutil.copy(pets / "train/cat/02.png", pets / "test/dog/zz.png")
    task = of(pets)
    first, second = pets / "train/cat/02.png", pets / "test/dog/zz.png"
    assert task.notes == (f"1 image of train is in test, too: {first} is {second}",)


def test_a_long_look_is_told(pets, capsys):
    told = []
    load_images(preset(source="image-folder", path=str(pets)).data, progress=lambda *now: told.append(now))
    assert told == [(24, 24)]
    show = looking(stderr_console(), after=0.0, every=60.0)
    show(512, 50_000)
    show(1024, 50_000)
    assert capsys.readouterr().err == "looked at 512 of 50,000 images\n"
