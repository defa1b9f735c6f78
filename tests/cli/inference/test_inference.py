"""Trained models in use: `fismo predict` and `fismo generate`, against evaluation and against transformers alone."""

import csv
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional

from fismo_cli.app import main
from fismo_cli.inference.images import Predictor, image_files
from fismo_cli.inference.text import Generator, Sampling
from fismo_cli.models import load_model_dir
from fismo_cli.preset.loading import load_preset
from fismo_cli.runs.execution import execute
from fismo_cli.tasks import build_task
from fismo_cli.tasks.tokenizers import ByteTokenizer

SHORT = ["train.epochs=null", "train.steps=2", "evaluate.every=null", "train.noise_every=null"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Colour images of three classes in files of several kinds, sizes and modes."""
    root, source = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number, (name, mode) in enumerate((name, mode) for name in ("ant", "bee", "cat") for mode in ("RGB", "L", "P")):
        for index in range(4):
            height, width = source.integers(20, 40, 2)
            pixels = source.integers(0, 256, (height, width, 3), np.uint8)
            place = root / name / f"{number}-{index}.{'png' if mode == 'P' else 'jpg'}"
            place.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).convert(mode).save(place)
    return root


@pytest.fixture(scope="module")
def image_run(photos, tmp_path_factory):
    data = [f"data={{source: image-folder, path: '{photos}', image_size: 16, channels: 3, eval_crop_ratio: 0.9}}"]
    preset = ["model={library: timm, name: test_resnet}", "train.batch_size=8", "optimizer.lr=0.1"]
    loaded = load_preset("digits-vit", [*data, *preset, *SHORT])
    return execute(loaded, runs_dir=tmp_path_factory.mktemp("runs"))["run_dir"], loaded


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    model = "model.args={n_layer: 1, n_embd: 16, n_head: 1, n_positions: 24, initializer_range: 0.6}"
    loaded = load_preset("stdlib-gpt2", [*SHORT, model, "data.block_size=16"])
    return execute(loaded, runs_dir=tmp_path_factory.mktemp("runs"))["run_dir"]


def run_command(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main(list(map(str, arguments)))
    return leaving.value.code, *capsys.readouterr()


def test_predictions_are_those_of_evaluation(image_run, photos):
    run, loaded = image_run
    task = build_task(loaded.preset)
    model = load_model_dir(Path(run), loaded.preset, task)
    files = [file.path for file in task.test.images.files]
    batch = task.test.__getitems__([(0, index) for index in range(len(files))])
    with torch.no_grad():
        right = functional.softmax(model(batch["images"]), dim=1)
    predictions = list(Predictor(Path(run), "cpu").predict(files, top=3, batch_size=2))
    assert [prediction.file for prediction in predictions] == files
    for prediction, row in zip(predictions, right, strict=True):
        assert [name for name, _ in prediction.classes] == [task.classes[i] for i in row.argsort(descending=True)]
        for name, probability in prediction.classes:
            assert probability == pytest.approx(row[task.classes.index(name)].item(), rel=1e-4)


def test_predict_goes_through_folders_and_names_what_it_cannot_read(image_run, photos, tmp_path, capsys):
    run, _ = image_run
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    code, out, err = run_command(
        capsys, "predict", run, photos, tmp_path / "broken.png", "--json", "--csv", tmp_path / "o.csv", "--top", "2"
    )
    answer = json.loads(out)
    assert code == 1
    assert "broken.png: not a readable image" in err
    read = [entry for entry in answer["predictions"] if entry["problem"] is None]
    assert len(read) == 36 == len(answer["predictions"]) - 1
    rows = list(csv.DictReader((tmp_path / "o.csv").open(encoding="utf-8")))
    assert [(row["file"], row["class"], float(row["probability 2"])) for row in rows] == [
        (entry["file"], entry["classes"][0]["class"], entry["classes"][1]["probability"]) for entry in read
    ]
    code, out, _ = run_command(capsys, "predict", run, read[0]["file"])
    assert code == 0
    assert out.split()[-4:-2] == [read[0]["file"], read[0]["classes"][0]["class"]]


def test_nothing_of_the_users_is_overwritten(image_run, photos, tmp_path, capsys):
    run, _ = image_run
    image = tmp_path / "a.png"
    Image.new("RGB", (9, 9)).save(image)
    before, weights = image.read_bytes(), Path(run, "model.safetensors").read_bytes()
    code, _, err = run_command(capsys, "predict", run, image, "--csv", image)
    assert (code, "it is one of the images" in err) == (2, True)
    code, _, err = run_command(capsys, "export", run, f"{run}/model.safetensors")
    assert (code, "the run's own" in err) == (2, True)
    assert (image.read_bytes(), Path(run, "model.safetensors").read_bytes()) == (before, weights)
    strange = tmp_path / os.fsdecode(b"b\xff.png")
    image.rename(strange)
    code, _, _ = run_command(capsys, "predict", run, tmp_path, "--csv", tmp_path / "o.csv")
    assert code == 0
    assert b"b\xff.png" in (tmp_path / "o.csv").read_bytes()


def test_files_that_are_not_there_are_all_named_before_anything_is_loaded(image_run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    code, _, err = run_command(capsys, "predict", image_run[0], tmp_path / "no.png", tmp_path / "empty")
    assert code == 2
    assert "no.png: there is no such file" in err
    assert "empty: has no image in it" in err
    assert image_files([str(tmp_path)] if list(tmp_path.glob("*.png")) else []) == []


def test_a_run_of_another_task_is_refused_and_the_right_command_named(image_run, text_run, tmp_path, capsys):
    code, _, err = run_command(capsys, "generate", image_run[0], "text")
    assert (code, "fismo predict" in err) == (2, True)
    code, _, err = run_command(capsys, "predict", text_run, "image.png")
    assert (code, "fismo generate" in err) == (2, True)
    code, _, err = run_command(capsys, "predict", tmp_path / "none", "image.png")
    assert (code, "there is no such directory" in err) == (2, True)


def test_greedy_text_is_the_likeliest_of_each_step(text_run):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(f"{text_run}/model").eval()
    tokens = list(b"def f")
    with torch.no_grad():
        while len(tokens) < 24 and tokens[-1] != 256:
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    found = Generator(Path(text_run), "cpu").generate("def f", 19, Sampling(greedy=True))
    assert found.text == ByteTokenizer().decode(tokens)
    assert (found.prompt_tokens, found.left_out) == (5, 0)
    assert found.new_tokens == len(tokens) - 5


def test_text_goes_on_beyond_the_positions_of_the_model_and_is_the_same_by_the_same_seed(text_run, capsys):
    generator = Generator(Path(text_run), "cpu")
    long = generator.generate("x" * 100, 60, Sampling(seed=3, temperature=2.0))
    assert (long.prompt_tokens, long.left_out) == (12, 88)
    assert long.new_tokens == 60 or long.ended
    assert generator.generate("x" * 100, 60, Sampling(seed=3, temperature=2.0)) == long
    assert generator.generate("x" * 100, 60, Sampling(seed=4, temperature=2.0)) != long
    options = ("--max-new-tokens", "2", "--json", "--seed", "5")
    code, out, err = run_command(capsys, "generate", text_run, "y" * 30, *options)
    assert code == 0
    assert "no positions for the first 18 tokens" in err
    assert json.loads(out)["text"].startswith("y" * 30)
    assert run_command(capsys, "generate", text_run, "--temperature", "nan")[0] == 2
    assert run_command(capsys, "generate", text_run, "--seed", "9" * 30)[0] == 2
    code, _, err = run_command(capsys, "generate", text_run, "--temperature", "0", "--top-p", "2")
    assert (code, "--temperature" in err, "--top-p" in err) == (2, True, True)


def test_transformers_makes_the_same_bytes_of_any_text(tmp_path):
    from transformers import AutoTokenizer

    ByteTokenizer().save(tmp_path)
    tokenizer, source = AutoTokenizer.from_pretrained(str(tmp_path)), random.Random(0)
    ranges = [(0, 128), (0xA0, 0x2FFF), (0x1F300, 0x1F6FF)]
    drawn = ["".join(chr(source.randrange(*source.choice(ranges))) for _ in range(40)) for _ in range(99)]
    for text in ["", " a  b\n", *drawn]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == list(text.encode())
        assert tokenizer.decode(ids) == text
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.bos_token_id) == (257, 256, 256)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_the_card_says_what_the_model_is_and_its_lines_load_it(kind, image_run, text_run, monkeypatch):
    run = Path(image_run[0] if kind == "image" else text_run)
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---\n")[1])
    summary = json.loads((run / "summary.json").read_text())
    (test,) = [result for result in header["model-index"][0]["results"] if result["dataset"]["split"] == "test"]
    assert {metric["name"]: metric["value"] for metric in test["metrics"]} == summary["metrics"]["test"]
    names: dict = {}
    monkeypatch.chdir(run / "model")
    exec(card.split("```python\n")[1].split("```")[0], names)
    saved = sum(parameter.numel() for parameter in names["model"].parameters())
    assert saved > 1000
    preset = card.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(preset) == yaml.safe_load((run / "preset.yaml").read_text())
