"""Models: built by both libraries, saved whole, loaded elsewhere, and what wrong names and weights say."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_model

from fismo_cli.errors import UsageError
from fismo_cli.files import whole_directory, whole_file
from fismo_cli.models import build_model, load_model_dir, model_notes, save_flat, save_model
from fismo_cli.preset.schema import preset_adapter
from fismo_cli.tasks import build_task
from fismo_cli.tasks.tokenizers import HubTokenizer

VIT = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}


def image_preset(name="vit_tiny_patch16_224", args=None, pretrained=False, **data):
    return preset_adapter.validate_python(
        {
            "task": "image-classification",
            "model": {"library": "timm", "name": name, "args": VIT if args is None else args, "pretrained": pretrained},
            "data": {"source": "digits", "image_size": 8, "channels": 1, **data},
            "optimizer": {"name": "fismo"},
            "train": {"steps": 1},
        }
    )


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("some words to learn from\n" * 200)
    return str(path)


@pytest.fixture(scope="module")
def text_preset(text_file):
    def make(name="gpt2", args=None, pretrained=False, **data):
        return preset_adapter.validate_python(
            {
                "task": "language-modelling",
                "model": {
                    "library": "transformers", "name": name, "args": GPT2 if args is None else args,
                    "pretrained": pretrained,
                },
                "data": {"source": "text-files", "path": text_file, "block_size": 16, **data},
                "optimizer": {"name": "fismo"},
                "train": {"steps": 1},
            }
        )  # fmt: skip

    return make


def build(preset):
    task = build_task(preset)
    return build_model(preset, task), task


def same_weights(first, second):
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def three_classes(tmp_path):
    path = tmp_path / "three.npz"
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.integers(0, 256, (60, 8, 8), np.uint8), y=np.arange(60) % 3)
    return {"source": "npz", "path": str(path)}


def test_timm_model_fits_the_data_and_is_seeded():
    torch.manual_seed(0)
    model, task = build(image_preset())
    torch.manual_seed(0)
    again, _ = build(image_preset())
    assert model.training
    assert same_weights(model, again)
    batch = task.train.__getitems__([(0, 0), (0, 1)])
    assert model(batch["images"]).shape == (2, 10)
    assert model_notes(model) == []
    resnet, _ = build(image_preset("test_resnet", {}))
    assert resnet(batch["images"]).shape == (2, 10)


def test_timm_model_is_saved_so_that_timm_loads_it(tmp_path):
    import timm

    preset = image_preset(mean=[0.3], std=[0.2])
    model, task = build(preset)
    save_model(model, preset, task, tmp_path / "run" / "model")
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["label_names"] == [str(i) for i in range(10)]
    elsewhere = timm.create_model(f"local-dir:{tmp_path / 'run' / 'model'}", pretrained=True)
    assert same_weights(model, elsewhere)
    assert timm.data.resolve_model_data_config(elsewhere)["mean"] == [0.3]
    loaded = load_model_dir(tmp_path / "run", preset, task)
    assert same_weights(model, loaded)
    assert not loaded.training
    # Fine-tuning on the same classes starts from it as it is, with its mean and deviation.
    again = image_preset(pretrained=str(tmp_path / "run"))
    tuned, tuned_task = build(again)
    assert same_weights(model, tuned)
    assert model_notes(tuned) == []
    assert tuned_task.description["mean"] == [0.3]
    save_model(model, preset, task, tmp_path / "run" / "model")  # replaces it
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]


@pytest.mark.parametrize(("name", "args"), [("vit_tiny_patch16_224", None), ("test_resnet", {})])
def test_timm_fine_tuning_on_other_classes_gets_a_new_head(tmp_path, three_classes, name, args):
    preset = image_preset(name, args)
    model, task = build(preset)
    save_model(model, preset, task, tmp_path / "model")
    other = image_preset(name, args, str(tmp_path), **three_classes)
    tuned, other_task = build(other)
    assert "10 classes, the data 3" in model_notes(tuned)[0]
    before, after = model.state_dict(), tuned.state_dict()
    changed = {
        key for key in before if before[key].shape != after[key].shape or not torch.equal(before[key], after[key])
    }
    assert len(changed) == 2
    assert tuned(other_task.train.__getitems__([(0, 0), (0, 1)])["images"]).shape == (2, 3)
    save_model(tuned, other, other_task, tmp_path / "tuned")
    assert same_weights(load_model_dir(tmp_path / "tuned", other, other_task), tuned)
    with pytest.raises(UsageError, match="num_classes 10, but the data gives 3"):
        load_model_dir(tmp_path, other, other_task)


@pytest.mark.parametrize("form", ["safetensors", "pth", "checkpoint.pth"])
def test_timm_weights_file(tmp_path, form):
    from safetensors.torch import save_file

    model, _ = build(image_preset())
    path = tmp_path / f"weights.{form}"
    match form:
        case "safetensors":
            save_file(model.state_dict(), str(path))
        case "pth":
            torch.save(model.state_dict(), path)
        case _:
            torch.save({"state_dict": model.state_dict(), "epoch": 3}, path)
    loaded, _ = build(image_preset(pretrained=str(path)))
    assert same_weights(model, loaded)
    # A colour model takes grey weights; everything but the stem stays.
    colour, task = build(image_preset(pretrained=str(path), channels=3))
    assert colour(task.train.__getitems__([(0, 0)])["images"]).shape == (1, 10)
    assert torch.equal(colour.head.weight, model.head.weight)
    with pytest.raises(UsageError, match="does not fit vit_tiny_patch16_224"):
        build(image_preset(args={**VIT, "depth": 2}, pretrained=str(path)))


def test_a_pickle_that_runs_code_is_refused(tmp_path, text_preset):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    for preset in (
        image_preset(pretrained=str(tmp_path / "bomb.pth")),
        text_preset(pretrained=str(tmp_path / "bomb.pth")),
    ):
        with pytest.raises(UsageError, match=r"not a readable weights file: .* holds other Python objects") as caught:
            build(preset)
        assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("name", "content"), [("a.pth", b"i am no weights"), ("a.pth", b""), ("a.safetensors", b"x" * 99)]
)
@pytest.mark.parametrize("kind", ["image", "text"])
def test_what_a_broken_weights_file_says(tmp_path, text_preset, kind, name, content):
    (tmp_path / name).write_bytes(content)
    preset = (image_preset if kind == "image" else text_preset)(pretrained=str(tmp_path / name))
    with pytest.raises(UsageError) as caught:
        build(preset)
    says = str(caught.value).partition(f"{tmp_path / name} is not a readable weights file: it is broken, or ")[2]
    assert says.startswith(("no safetensors", "neither a safetensors", "holds other Python objects"))


def test_an_old_pickle_of_weights_is_read_without_a_warning(tmp_path, recwarn):
    model, _ = build(image_preset())
    torch.save(model.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same_weights(model, build(image_preset(pretrained=str(tmp_path / "old.pth")))[0])
    assert not [str(warning.message) for warning in recwarn if "pickle" in str(warning.message).lower()]


def test_timm_mistakes(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"did you mean .*vit_tiny_patch16_224"):
        build(image_preset("vit_tiny_patch16_24"))
    with pytest.raises(UsageError, match=r"timm has no weights nonsense of resnet18; it has resnet18.a1_in1k"):
        build(image_preset("resnet18.nonsense", {}))
    with pytest.raises(UsageError, match=r"model.args.patch_siz: vit_tiny_patch16_224 has no such argument"):
        build(image_preset(args={"patch_siz": 4}))
    with pytest.raises(UsageError, match="timm cannot build vit_tiny_patch16_224"):
        build(image_preset(args={**VIT, "num_heads": 3}))
    for args in ({"depth": -1}, {"embed_dim": -4}, {"patch_size": 0}, {"depth": "x"}):
        with pytest.raises(UsageError, match=r"model.args: timm cannot build vit_tiny_patch16_224") as caught:
            build(image_preset(args={**VIT, **args}))
        assert "\n" not in str(caught.value)
    for key in ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        with pytest.raises(UsageError, match=rf"model.args.{key}: .* model.pretrained; leave it out"):
            build(image_preset(args={**VIT, key: "x"}))
    for key in ("scriptable", "exportable", "no_jit", "features_only"):
        with pytest.raises(UsageError, match=rf"model.args.{key}: an option of timm's builder"):
            build(image_preset(args={**VIT, key: True}))
    with pytest.raises(UsageError, match="no weights file, run directory or model folder"):
        build(image_preset(pretrained=str(tmp_path)))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="cannot be reached") as caught:
        build(image_preset("resnet18", {}, pretrained=True))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("output", [lambda x: (x, x), lambda x: x[:, :, None], lambda x: {"logits": x}])
def test_a_model_with_more_outputs_than_one_is_refused(output):
    """Such as inception_v3 with aux_logits, whose second head nothing would train."""

    class Two(torch.nn.Linear):
        def forward(self, images):
            return output(super().forward(images.flatten(1)))

    task = build_task(image_preset())
    for use in (task.training_loss, task.measure):
        with pytest.raises(UsageError, match=r"instead of one row of class scores an image; leave out what adds heads"):
            use(Two(64, 10), task.train.__getitems__([(0, 0), (0, 1)]))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("gpt2", GPT2),
        ("llama", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}),
        ("gpt_neox", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}),
    ],
)
def test_transformers_model_from_an_architecture(text_preset, tmp_path, name, args):
    from transformers import AutoModelForCausalLM

    preset = text_preset(name, args)
    model, task = build(preset)
    assert model.training
    assert model.config.vocab_size == 257
    assert model.config.eos_token_id == model.config.bos_token_id == 256
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    loss = task.training_loss(model, task.train.__getitems__([(0, 0)])).item()
    assert loss == pytest.approx(np.log(257), abs=0.3)
    save_model(model, preset, task, tmp_path / "run" / "model")
    assert json.loads((tmp_path / "run/model/byte_tokenizer.json").read_text())["end_of_text_id"] == 256
    assert same_weights(model, AutoModelForCausalLM.from_pretrained(str(tmp_path / "run/model")))
    assert same_weights(model, load_model_dir(tmp_path / "run", preset, task))
    tuned, _ = build(text_preset(name, {}, str(tmp_path / "run")))
    assert same_weights(model, tuned)
    assert tuned.training
    # A local folder as the name: its configuration alone, or its weights.
    torch.manual_seed(1)
    fresh, _ = build(text_preset(str(tmp_path / "run/model"), {}))
    assert fresh.config.hidden_size == 16
    assert not same_weights(model, fresh)
    assert same_weights(model, build(text_preset(str(tmp_path / "run/model"), {}, True))[0])


def test_flat_file_holds_tied_weights_once(text_preset, tmp_path):
    model, _ = build(text_preset())
    assert model.lm_head.weight is model.transformer.wte.weight
    save_flat(model, tmp_path / "model.safetensors")
    other, _ = build(text_preset())
    assert not same_weights(model, other)
    load_model(other, str(tmp_path / "model.safetensors"))
    assert same_weights(model, other)
    loaded, _ = build(text_preset(pretrained=str(tmp_path / "model.safetensors")))
    assert same_weights(model, loaded)
    with pytest.raises(UsageError, match="does not fit the model"):
        build(text_preset(args={**GPT2, "n_layer": 2}, pretrained=str(tmp_path / "model.safetensors")))


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("gtp2", {}, "no architecture gtp2; did you mean gpt2"),
        ("gpt2", {"n_layr": 1}, "model.args.n_layr: the configuration of gpt2 has no such key; did you mean n_layer"),
        ("gpt2", {"n_positions": 8}, r"data.block_size is 16, but gpt2 has 8 positions \(model.args.n_positions\)"),
        ("gpt2", {**GPT2, "vocab_size": 100}, "model.args.vocab_size is 100, but data.tokenizer has 257 tokens"),
        ("gpt2", {"n_layer": "two"}, "gpt2 refuses them: .*n_layer"),
        ("gpt2", {**GPT2, "n_embd": 15}, "gpt2 cannot be built from them"),
        ("t5", {}, "not a causal language model"),
        (
            "bert",
            {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
            "looks at later tokens; set model.args.is_decoder",
        ),
    ],
)
def test_transformers_mistakes(text_preset, name, args, message):
    with pytest.raises(UsageError, match=message):
        build(text_preset(name, args))


def test_a_folder_of_something_else_hides_no_architecture(text_preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert build(text_preset())[0].config.model_type == "gpt2"


def test_transformers_weights_that_do_not_fit(text_preset, tmp_path, monkeypatch):
    preset = text_preset()
    model, task = build(preset)
    save_model(model, preset, task, tmp_path / "model")
    with pytest.raises(UsageError, match=r"block_size is 64, but .* has 32 positions"):
        build(text_preset(args={}, pretrained=str(tmp_path), block_size=64))
    with pytest.raises(UsageError, match=r"no fitting weights for transformer.h.1"):
        build(text_preset(args={"n_layer": 2}, pretrained=str(tmp_path)))
    with pytest.raises(UsageError, match="gpt2 is an architecture without weights"):
        build(text_preset(pretrained=True))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UsageError, match="cannot be loaded"):
        build(text_preset(args={}, pretrained=str(tmp_path)))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for pretrained in (True, False):
        with pytest.raises(UsageError, match="cannot be reached") as caught:
            build(text_preset("somebody/some-model", {}, pretrained))
        assert "\n" not in str(caught.value)


def test_a_name_that_contradicts_the_weights_is_refused(text_preset, tmp_path):
    preset = text_preset()
    model, task = build(preset)
    save_model(model, preset, task, tmp_path / "model")
    with pytest.raises(UsageError, match=r"model.name is llama, but .* holds a model of type gpt2"):
        build(text_preset("llama", {}, str(tmp_path)))


def test_a_larger_vocabulary_than_the_tokenizers_is_built(text_preset):
    assert build(text_preset(args={**GPT2, "vocab_size": 320}))[0].config.vocab_size == 320


def save_tokenizer(folder, words):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    return str(folder)


def test_weights_trained_on_other_tokens_are_refused(text_preset, tmp_path, monkeypatch):
    """Ids that mean something else give numbers without a meaning, both in evaluation and as a start."""
    words = ["<eos>", "<unk>", "some", "words", "to", "learn", "from"]
    mine = save_tokenizer(tmp_path / "mine", words)
    other = save_tokenizer(tmp_path / "other", [*words[:2], *words[:1:-1]])
    options = {"cache_dir": str(tmp_path / "cache")}
    presets = {
        "bytes": text_preset(),
        "mine": text_preset(tokenizer=mine, **options),
        "other": text_preset(tokenizer=other, **options),
    }
    for name in ("bytes", "mine"):
        model, task = build(presets[name])
        run = tmp_path / f"run-{name}"
        save_model(model, presets[name], task, run / "model")
        save_flat(model, run / "model.safetensors")
        assert same_weights(load_model_dir(run, presets[name], task), model)
        right = "bytes" if name == "bytes" else str(run / "model")
        for wrong in presets.keys() - {name}:
            message = rf"data.tokenizer is .*{wrong}, but the model in .* trained .*; write data.tokenizer: {right}, or"
            with pytest.raises(UsageError, match=message):
                load_model_dir(run, presets[wrong], build_task(presets[wrong]))
            data = presets[wrong].data.model_dump(include={"tokenizer", "cache_dir"})
            for start in (run, run / "model", run / "model.safetensors"):
                with pytest.raises(UsageError, match=message):
                    build(text_preset(pretrained=str(start), **data))
            with pytest.raises(UsageError, match=message):
                build(text_preset(str(run / "model"), {}, True, **data))
    # On the hub a model and its tokenizer share one name.
    monkeypatch.setattr("fismo_cli.transformers_models.HubTokenizer", lambda name: HubTokenizer(mine))
    with pytest.raises(UsageError, match=r"data.tokenizer is bytes, but the model in somebody/some-model was trained"):
        build(text_preset("somebody/some-model", {}, True))
    # The tokenizer saved beside the model is the one it was trained with, whatever its folder is called.
    build(
        text_preset(
            args={}, pretrained=str(tmp_path / "run-mine"), tokenizer=str(tmp_path / "run-mine/model"), **options
        )
    )


def test_evaluation_refuses_another_model_section(text_preset, tmp_path):
    """The saved model is loaded whatever the section says, so an override in it would be ignored or half obeyed."""
    preset = image_preset()
    model, task = build(preset)
    save_model(model, preset, task, tmp_path / "model")
    (tmp_path / "preset.yaml").write_text(json.dumps(preset.model_dump(mode="json")))
    for other, message in (
        (
            image_preset("resnet18"),
            "model.name is resnet18, but .* was trained with vit_tiny_patch16_224; leave it out",
        ),
        (image_preset(pretrained="x"), "model.pretrained is x, but"),
        (image_preset(args={**VIT, "depth": 2}), "model.args.depth is 2, but .* was trained with 1"),
        (image_preset(args={}), "model.args.depth is not set, but .* was trained with 1"),
    ):
        with pytest.raises(UsageError, match=message):
            load_model_dir(tmp_path, other, task)
    assert same_weights(load_model_dir(tmp_path, preset, task), model)
    larger = image_preset(image_size=16)
    with pytest.raises(UsageError, match="the model has img_size 8, but the data gives 16"):
        load_model_dir(tmp_path, larger, build_task(larger))


def test_evaluation_notices_that_the_pixels_statistics_are_no_longer_those_of_training(tmp_path):
    """Left to the model they come from the folder that it was started from, which may be gone by now."""
    first = image_preset(mean=[0.3], std=[0.2])
    model, task = build(first)
    save_model(model, first, task, tmp_path / "first" / "model")
    second = image_preset(pretrained=str(tmp_path / "first"))
    model, task = build(second)
    save_model(model, second, task, tmp_path / "second" / "model")
    assert same_weights(load_model_dir(tmp_path / "second", second, build_task(second)), model)
    (tmp_path / "first").rename(tmp_path / "moved")
    with pytest.raises(UsageError, match=r"trained with the mean \[0.3\], but .* set data.mean to the former"):
        load_model_dir(tmp_path / "second", second, build_task(second))
    explicit = image_preset(pretrained=str(tmp_path / "first"), mean=[0.3], std=[0.2])
    load_model_dir(tmp_path / "second", explicit, build_task(explicit))


def test_transformers_says_nothing_of_its_own_about_weights_that_do_not_fit(text_preset, tmp_path):
    preset = text_preset()
    model, task = build(preset)
    save_model(model, preset, task, tmp_path / "model")
    code = (
        "import sys; from fismo_cli.preset.schema import preset_adapter; from fismo_cli.tasks.base import Task;"
        "from fismo_cli.errors import UsageError; from fismo_cli.models import build_model\n"
        "try: build_model(preset_adapter.validate_json(sys.argv[1]), Task(None, None, None, {'vocab_size': 257}))\n"
        "except UsageError as error: print(error)"
    )
    more = text_preset(args={"n_layer": 4}, pretrained=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code, more.model_dump_json()], capture_output=True, text=True, check=True
    )
    assert "no fitting weights for transformer.h.1" in done.stdout
    assert done.stderr == ""


def test_an_unreachable_hub_is_noticed_at_once(text_preset, monkeypatch):
    """Without this the hub library retries for half a minute."""
    from fismo_cli import hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    hub._hub_answers.cache_clear()
    with pytest.raises(UsageError, match="cannot be reached"):
        build(text_preset("somebody/some-model", {}))
    hub._hub_answers.cache_clear()
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE is False


def test_failed_writes_leave_the_old_content(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "old").write_text("old")

    def fail_half_way(context, name):
        with context as temporary:
            (temporary / name).write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way(whole_directory(tmp_path / "kept"), "new")
    with pytest.raises(RuntimeError):
        fail_half_way(whole_file(tmp_path / "file"), "")
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["kept", "old"]


@pytest.mark.parametrize(("kind", "unwanted"), [("image", "transformers"), ("text", "timm")])
def test_only_the_library_in_use_is_imported(kind, unwanted, text_preset):
    preset = image_preset() if kind == "image" else text_preset()
    args = {"num_classes": 2, "in_chans": 1, "img_size": 8} if kind == "image" else {"vocab_size": 257}
    code = (
        "import sys; from fismo_cli.preset.schema import preset_adapter; from fismo_cli.tasks.base import Task;"
        "from fismo_cli.models import build_model; preset = preset_adapter.validate_json(sys.argv[1]);"
        f"build_model(preset, Task(train=None, validation=None, test=None, model_args={args}));"
        f"sys.exit({unwanted!r} in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, preset.model_dump_json()], check=True)
