"""Overrides win over the file, and the resolved preset reads back as the same preset."""

import re

import pytest
import yaml

from fismo_cli.errors import PresetError
from fismo_cli.preset.loading import identity, load_preset, resolved_yaml

FILE = """\
task: image-classification
model: {library: timm, name: test_vit}
data: {source: digits, channels: 1}
optimizer:
  name: fismo
  lr: 0.05
  momentum: 0.9
  weight_decay: 0.01
  adamw: {lr: 0.002}
  rules: {blocks: matrix}
train:
  epochs: 3
"""


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    return str(path)


def refused(preset, *overrides):
    with pytest.raises(PresetError) as caught:
        load_preset(preset, overrides)
    return caught.value.problems


def test_overrides_win_and_the_last_one_wins(preset):
    loaded = load_preset(preset, ["train.seed=1", "optimizer.lr=1e-3", "train.seed=2"])
    assert loaded.preset.train.seed == 2
    assert loaded.preset.optimizer.lr == 0.001
    assert loaded.preset.optimizer.momentum == 0.9
    assert loaded.notes == ()


def test_nested_keys_are_created_and_lists_and_sections_are_values(preset):
    overrides = [
        "train.schedule.name=linear",
        "optimizer.adamw.betas=[0.8, 0.9]",
        "model.args={img_size: 8, patch_size: 2}",
    ]
    found = load_preset(preset, overrides).preset
    assert found.train.schedule.name == "linear"
    assert found.optimizer.adamw.betas == (0.8, 0.9)
    assert found.optimizer.adamw.lr == 0.002
    assert found.model.args == {"img_size": 8, "patch_size": 2}


def test_yaml_1_2_words_stay_text_in_overrides(preset):
    assert load_preset(preset, ["data.auto_augment=off"]).preset.data.auto_augment == "off"
    (problem,) = refused(preset, "train.compile=yes")
    assert problem.startswith("preset error: command line: train.compile=yes  train.compile: must be true or false")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("foo", "must be KEY=VALUE"),
        ("=3", "must be KEY=VALUE"),
        ("train.=3", "must be KEY=VALUE"),
        (".seed=3", "must be KEY=VALUE"),
        ("train..seed=3", "must be KEY=VALUE"),
        ("train.epochs.x=3", "train.epochs is a plain value"),
        ("train.seed=[1", "not YAML"),
        ("train.seed=", "must be an integer"),
        ("train.sed=1", "Did you mean train.seed?"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_written(preset, override, words):
    (problem,) = refused(preset, override)
    assert problem.startswith(f"preset error: command line: {override}  ")
    assert words in problem


def test_a_list_is_overridden_as_a_whole(preset):
    problems = refused(preset, "optimizer.adamw.betas=[0.9, 0.9]", "optimizer.adamw.betas.0=0.5")
    assert len(problems) == 1
    assert "is a list, which is overridden as a whole" in problems[0]


def test_a_problem_inside_an_overridden_section_is_the_override_s(preset):
    (problem,) = refused(preset, "optimizer.adamw={lr: -1}")
    assert problem.startswith("preset error: command line: optimizer.adamw={lr: -1}  optimizer.adamw.lr: must be")


def test_another_optimizer_keeps_what_is_shared_and_says_what_is_left_out(preset):
    loaded = load_preset(preset, ["optimizer.name=muon", "optimizer.momentum=0.8"])
    found = loaded.preset.optimizer
    assert (found.name, found.lr, found.momentum, found.weight_decay) == ("muon", None, 0.8, 0.01)
    assert found.adamw.lr == 0.002
    assert found.rules == {"blocks": "matrix"}
    (note,) = loaded.notes
    assert "optimizer.lr" in note
    assert "momentum" not in note  # An override gives it anew.


def test_rules_are_for_matrix_optimizers_only(preset):
    loaded = load_preset(preset, ["optimizer.name=adamw"])
    assert loaded.preset.optimizer.rules == {}
    assert "optimizer.rules" in loaded.notes[0]


def test_naming_the_same_optimizer_leaves_out_nothing(preset):
    loaded = load_preset(preset, ["optimizer.name=fismo"])
    assert loaded.preset == load_preset(preset).preset
    assert loaded.notes == ()


def test_keys_of_the_old_optimizer_given_as_overrides_are_errors(preset):
    (problem,) = refused(preset, "optimizer.name=muon", "optimizer.metric.damping=0.3")
    assert "command line: optimizer.metric.damping=0.3" in problem
    assert "belongs to fismo" in problem


def test_a_resolved_preset_takes_another_optimizer_and_form_too(preset, tmp_path):
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(resolved_yaml(load_preset(preset)))
    assert load_preset(str(resolved), ["optimizer.name=sgd"]).preset == (
        load_preset(preset, ["optimizer.name=sgd"]).preset
    )
    paper = load_preset(str(resolved), ["optimizer.form=paper"])
    assert (paper.preset.optimizer.metric.power, paper.preset.optimizer.graft) == (0.5, False)
    assert paper.preset == load_preset(preset, ["optimizer.form=paper"]).preset
    resolved.write_text(resolved_yaml(paper))
    assert load_preset(str(resolved), ["optimizer.form=default"]).preset == load_preset(preset).preset


def test_the_dense_form_takes_the_place_of_the_file_s_choices(preset, tmp_path):
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(resolved_yaml(load_preset(preset)))
    dense = load_preset(str(resolved), ["optimizer.form=dense"]).preset
    assert (dense.optimizer.metric.max_ratio, dense.optimizer.metric.roots) == (None, "eigh")
    assert dense == load_preset(preset, ["optimizer.form=dense"]).preset


def test_steps_take_the_place_of_epochs(preset):
    loaded = load_preset(preset, ["train.steps=7"])
    assert (loaded.preset.train.steps, loaded.preset.train.epochs) == (7, None)
    assert "train.epochs" in loaded.notes[0]
    (problem,) = refused(preset, "train.steps=7", "train.epochs=1")
    assert "not both" in problem


TRICKY = [
    "optimizer.adamw.eps=1e-12",
    "optimizer.lr=0.1234567890123456789",
    "optimizer.adamw.lr=3.3333333333333335e-17",
    "train.max_loss=1e+300",
    'model.args={a: "1e-3", b: "on", c: "null", d: "0o7"}',
    'model.args={e: 1e16, f: [1, 1.0, "1"], g: {h: "2026-01-01"}, i: "a: b # c"}',
    'data.auto_augment="~"',
    'optimizer.rules={"^blocks\\\\.[0-9]+\\\\.": adamw, "no": matrix}',
    'data.auto_augment="zwölf\\n  Zeilen\\t"',
]


@pytest.mark.parametrize("overrides", [[], *([text] for text in TRICKY), TRICKY])
def test_the_resolved_preset_round_trips_exactly(preset, tmp_path, overrides):
    loaded = load_preset(preset, overrides)
    run = tmp_path / "run"
    run.mkdir()
    text = resolved_yaml(loaded)
    (run / "preset.yaml").write_text(text, encoding="utf-8")
    again = load_preset(str(run / "preset.yaml"))
    assert again.preset == loaded.preset
    assert repr(again.preset) == repr(loaded.preset)  # == holds between 1 and 1.0; this does not.
    assert identity(again.preset) == identity(loaded.preset)
    assert again.name == loaded.name == "mine"
    assert text.startswith("#")
    assert preset in text.splitlines()[0]


def test_other_yaml_readers_see_the_same_text_in_the_resolved_preset(preset):
    """PyYAML's own reader knows YAML 1.1, where on is a boolean and 12:30 a number."""
    loaded = load_preset(preset, ['model.args={a: "on", b: "12:30", c: "1e-3"}'])
    assert yaml.safe_load(resolved_yaml(loaded))["model"]["args"] == {"a": "on", "b": "12:30", "c": "1e-3"}


def test_the_identity_depends_on_the_values_only(preset, tmp_path):
    base = load_preset(preset)
    assert re.fullmatch("[0-9a-f]{16}", identity(base.preset))
    other = tmp_path / "other-name.yaml"
    other.write_text("# reordered and spelt otherwise\n" + FILE.replace("0.05", "5.0e-2") + "evaluate: {every: null}\n")
    assert identity(load_preset(str(other)).preset) == identity(base.preset)
    assert identity(load_preset(preset, ["train.seed=1"]).preset) != identity(base.preset)


def test_the_name_is_fit_for_a_directory(tmp_path):
    path = tmp_path / "my preset: v1 é.yaml"
    path.write_text(FILE)
    assert load_preset(str(path)).name == "my-preset-v1-é"


def test_presets_are_frozen(preset):
    loaded = load_preset(preset)
    with pytest.raises(ValueError, match="frozen"):
        loaded.preset.train.seed = 3


def test_another_source_leaves_out_what_it_does_not_use(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "task: image-classification\nmodel: {library: timm, name: test_vit}\noptimizer: {name: fismo}\n"
        "train: {steps: 1}\n"
        "data: {source: torchvision, name: MNIST, path: data, download: false, image_column: image}\n"
    )
    loaded = load_preset(str(path), ["data.source=npz"])
    assert (loaded.preset.data.path, loaded.preset.data.name, loaded.preset.data.download) == ("data", None, True)
    assert [note.split(": ", 1)[1] for note in loaded.notes] == [
        "data.name (not used by source npz)",
        "data.download (not used by source npz)",
    ]
    assert load_preset(str(path), ["data.source=digits"]).preset.data.path is None
    with pytest.raises(PresetError, match=r"command line: data.path=x  data.path: not used by source digits"):
        load_preset(str(path), ["data.source=digits", "data.path=x"])
