"""Every problem of a preset at once: each on its line, with its key, and with what would be right."""

import re
import time

import pytest

from fismo_cli.errors import ExitCode, PresetError
from fismo_cli.preset.loading import load_preset
from fismo_cli.preset.reference import reference

GOOD = """\
task: image-classification
model:
  library: timm
  name: test_vit
data:
  source: digits
  channels: 1
optimizer:
  name: fismo
train:
  steps: 10
"""


@pytest.fixture
def write(tmp_path):
    def write_preset(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write_preset


def problems_of(source: str, *overrides: str) -> list[str]:
    """The problems of a preset, as `LINE  rest` where they are in the file."""
    with pytest.raises(PresetError) as caught:
        load_preset(source, overrides)
    assert caught.value.exit_code == ExitCode.USAGE
    return [problem.removeprefix("preset error: ").removeprefix(f"{source}:") for problem in caught.value.problems]


def test_the_good_preset_is_good(write):
    assert load_preset(write(GOOD)).preset.train.steps == 10


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("steps: 10", "steps: many", '11  train.steps: must be a positive integer or null, got "many"'),
        ("steps: 10", "steps: 1.5", "11  train.steps: must be a positive integer or null, got 1.5"),
        ("steps: 10", "steps: 0", "11  train.steps: must be a positive integer or null, got 0"),
        ("steps: 10", "steps: true", "11  train.steps: must be a positive integer or null, got true"),
        ("steps: 10", "steps: '10'", '11  train.steps: must be a positive integer or null, got "10"'),
        ("steps: 10", "steps: 10\n  seed: -1", "12  train.seed: must be an integer from 0 to 4294967295, got -1"),
        ("steps: 10", "steps: 10\n  compile: on", '12  train.compile: must be true or false, got "on"'),
        ("steps: 10", "steps: 10\n  max_loss: .inf", "12  train.max_loss: must be a positive number or null, got inf"),
        ("steps: 10", "epochs: 1e308", "11  train.epochs: must be at most 1,000,000,000"),
        ("steps: 10", "steps: 18446744073709551616", "11  train.steps: must be at most 1,000,000,000"),
        ("steps: 10", "stepz: 10", "11  train.stepz: unknown key. Did you mean train.steps?"),
        ("steps: 10", "steps: 10\n  lr: 1", "12  train.lr: unknown key. Did you mean optimizer.lr?"),
        (
            "steps: 10",
            "steps: 10\n  mixup_alpha: 1",
            "12  train.mixup_alpha: unknown key. Did you mean data.mixup_alpha?",
        ),
        ("steps: 10", "steps: 10\n  warmup: 1", "12  train.warmup: unknown key. Did you mean train.schedule.warmup?"),
        ("steps: 10", "steps: 10\n  num_workers: 1", "12  train.num_workers: unknown key. Did you mean data.workers?"),
        ("steps: 10", "steps: 10\nbatch_size: 1", "12  batch_size: unknown key. Did you mean train.batch_size or "),
        (
            "name: fismo",
            "name: fismo\n  dampng: 1",
            "10  optimizer.dampng: unknown key. Did you mean optimizer.metric.damping?",
        ),
        (
            "name: fismo",
            "name: fismo\n  learning_rate: 1",
            "10  optimizer.learning_rate: unknown key. Did you mean optimizer.lr?",
        ),
        (
            "name: fismo",
            "name: fismo\n  betas: [0, 0]",
            "10  optimizer.betas: unknown key. Did you mean optimizer.adamw.b",
        ),
        (
            "name: fismo",
            "name: adam\n  metric: {damping: 1}",
            "10  optimizer.metric: unknown key for adam: it belongs to fismo",
        ),
        (
            "name: fismo",
            "name: adam\n  trust_radius: 1",
            "10  optimizer.trust_radius: unknown key. Did you mean optimizer.lr?",
        ),
        (
            "name: fismo",
            "name: sgd\n  dampening: 0",
            "10  optimizer.dampening: unknown key for sgd: other arguments go un",
        ),
        (
            "name: fismo",
            "name: adam\n  rules: {qkv: adamw}",
            "10  optimizer.rules: adam treats all parameters alike; rules are for matrix optimizers",
        ),
        ("channels: 1", "path: x.npz", "7  data.path: not used by source digits"),
        ("channels: 1", "label_column: kind", "7  data.label_column: not used by source digits"),
        ("channels: 1", "download: false", "7  data.download: not used by source digits"),
        ("source: digits", "source: npz\n  path: x.npz\n  name: MNIST", "8  data.name: not used by source npz"),
        ("channels: 1", "workers: 257", "7  data.workers: must be an integer from 0 to 256, got 257"),
        ("name: fismo", "name: admw", '9  optimizer.name: unknown optimizer "admw". Did you mean adamw?'),
        ("name: fismo", "name: 3", "9  optimizer.name: must be the name of an optimizer, got 3"),
        ("name: fismo", "momentum: 0.9", "8  optimizer.name: missing; must be the name of an optimizer"),
        ("channels: 1", "channels: 2", "7  data.channels: must be 1 or 3, got 2"),
        ("channels: 1", "block_size: 8", "7  data.block_size: unknown key: it belongs to the task language-modelling"),
        (
            "channels: 1",
            "splits: {trian: a}",
            "7  data.splits.trian: unknown key; must be one of train, validation, test.",
        ),
        ("channels: 1", "splits: {train: 1}", "7  data.splits.train: must be text, got 1"),
        (
            "channels: 1",
            "channels: 1\ntune: {space: {optimizer.metric.damping: {low: .nan, high: 1}}}",
            '8  tune.space["optimizer.metric.damping"].low: must be a finite number, got nan',
        ),
        (
            "channels: 1",
            "channels: 1\n  mean: [0.1, 0.2]",
            "8  data.mean: must have 1 values, one a channel (data.chann",
        ),
        ("channels: 1", "channels: 1\n  std: [x]", '8  data.std[0]: must be a positive number, got "x"'),
        ("source: digits", "source: npz", "5  data.path: npz needs a path"),
        ("source: digits", "sorce: digits", "6  data.sorce: unknown key. Did you mean data.source?"),
        (
            "library: timm",
            "library: tim",
            '3  model.library: must be one of timm, transformers, got "tim". Did you mean timm?',
        ),
        ("library: timm", "library: transformers", "3  model.library: must be timm for the task image-classification"),
        (
            "task: image-classification",
            "task: images",
            '1  task: must be image-classification or language-modelling, got "i',
        ),
        ("task: image-classification", "", "task: missing; must be image-classification or language-modelling"),
        (
            "name: test_vit",
            "name: test_vit\n  pretrained: 3",
            "5  model.pretrained: must be true or false or text, got 3",
        ),
        ("name: fismo", "name: fismo\n  rules: {'a(': adamw}", '10  optimizer.rules: "a(" is not a regular expression'),
        ("name: fismo", "name: fismo\n  adamw: {betas: [0.9]}", "10  optimizer.adamw.betas"),
        ("train:\n  steps: 10", "", "train: missing; must be a section (keys and values)"),
        ("train:\n  steps: 10", "train: 10", "10  train: must be a section (keys and values), got 10"),
        ("train:\n  steps: 10", "train:\n  batch_size: 4", "10  train.epochs: give train.epochs or train.steps"),
    ],
)
def test_one_mistake_gives_one_problem_in_plain_words(write, old, new, problem):
    assert GOOD.count(old) == 1
    text = GOOD.replace(old, new)
    found = problems_of(write(text))
    assert len(found) == 1, found
    assert problem in found[0]
    assert not re.search(r"pydantic|discriminator|tagged|Input should|baseline|\[key\]", found[0])


def test_polynomial_roots_need_a_power_and_damping_they_can_do(write):
    text = GOOD.replace("name: fismo", "name: fismo\n  power: 0.3\n  damping: 0\n  damping_scale: absolute")
    assert problems_of(write(text)) == [
        "10  optimizer.metric.power: must be 0, 0.125, 0.25 or 0.5 where roots is polynomial (eigh takes any)",
        "11  optimizer.metric.damping: must be at least 0.0001 where roots is polynomial (eigh takes any)",
        "12  optimizer.metric.damping_scale: must be relative where roots is polynomial (eigh takes any)",
    ]
    load_preset(write(text), ["optimizer.metric.roots=eigh"])
    steps = write(GOOD.replace("name: fismo", "name: fismo\n  polar_steps: 5"))
    assert problems_of(steps) == ["10  optimizer.polar.steps: must be 2 where method is composite"]
    load_preset(steps, ["optimizer.polar=quintic"])
    load_preset(write(text.replace("0.3", "0")))  # Muon has no roots


def test_sections_in_the_place_of_values_and_nothing_in_that_of_sections(write):
    text = GOOD.replace("source: digits", "source: image-folder\n  path: .\n  splits: {foo: {}}")
    assert problems_of(write(text)) == ["8  data.splits.foo: unknown key; must be one of train, validation, test."]
    text = GOOD.replace("image-classification", "x").replace("optimizer:\n  name: fismo", "optimizer:")
    assert problems_of(write(text))[0].startswith("1  task: must be image-classification or")


def test_all_problems_come_at_once_and_in_the_order_of_the_file(write):
    text = """\
task: image-classification
model:
  library: timm
  nam: test_vit
data:
  source: npz
  channels: 3
  mean: [0.5]
  std: [0.5]
  image_size: big
optimizer:
  name: fismo
  form: paper
  power: 0.25
  nesterov: true
  dampng: 1
train:
  steps: 10
  epochs: 2
  batch_size: 10
  accumulate: 3
  compile: 7
evaluat: {}
"""
    found = problems_of(write(text), "train.seed=x", "oops", "train.steps.x=1")
    keys = [re.sub(r"^(\d+)  ([^:]+):.*", r"\1 \2", line) for line in found if line[0].isdigit()]
    assert keys == [
        "4 model.nam",
        "5 data.path",
        "8 data.mean",
        "9 data.std",
        "10 data.image_size",
        "14 optimizer.metric.power",
        "15 optimizer.nesterov",
        "16 optimizer.dampng",
        "18 train.steps",
        "21 train.accumulate",
        "22 train.compile",
        "23 evaluat",
    ]
    rest = [line for line in found if not line[0].isdigit()]
    assert [line.split("  ")[0] for line in rest] == [
        "command line: oops",
        "command line: train.steps.x=1",
        "command line: train.seed=x",
    ]


def test_a_wrong_key_gives_no_false_follow_up_problems(write):
    # steps is unusable, so whether steps or epochs are given cannot be judged; likewise batch_size and accumulate.
    text = GOOD.replace("steps: 10", "steps: many\n  batch_size: x\n  accumulate: 7")
    assert len(problems_of(write(text))) == 2


def test_sections_whose_keys_are_all_commented_out_are_empty_sections(write):
    text = (
        GOOD.replace("name: test_vit", "name: test_vit\n  args:\n  # a: 1") + "evaluate:\n  # every: 3\ncheckpoint:\n"
    )
    preset = load_preset(write(text)).preset
    assert preset.model.args == {}
    assert preset.evaluate.every is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- a\n- b\n", "must be keys and values, not a list"),
        (b"hello\n", "must be keys and values, not plain text"),
        (b"a: [\n", "not YAML"),
        (b"a: 1\nb: \xff\xfe\n", "not a text file in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not a text file in UTF-8"),
        (b"a: 1\na: 2\n", "given twice"),
    ],
)
def test_files_that_are_no_presets_give_one_clear_problem(tmp_path, content, words):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    (problem,) = problems_of(str(path))
    assert words in problem
    assert "\n" not in problem


def test_missing_files_and_folders(tmp_path):
    (problem,) = problems_of(str(tmp_path / "none.yaml"))
    assert "no such file" in problem
    (problem,) = problems_of(str(tmp_path))
    assert "is a folder" in problem
    (tmp_path / "preset.yaml").write_text(GOOD)
    (problem,) = problems_of(str(tmp_path))
    assert f"did you mean {tmp_path / 'preset.yaml'}" in problem
    (problem,) = problems_of("")
    assert "empty" in problem


def test_an_unknown_name_suggests_near_ones_and_lists_all():
    (problem,) = problems_of("digit-vit")
    assert "Did you mean digits-vit" in problem
    assert "stdlib-gpt2" in problem
    (problem,) = problems_of("digits-vitt.yaml")
    assert "digits-vit" in problem


def test_a_byte_order_mark_is_no_problem(tmp_path):
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_preset(str(path)).name == "bom"


def test_an_unreadable_file_is_named(tmp_path):
    path = tmp_path / "x.yaml"
    (problem,) = problems_of(f"{path}\0")
    assert "cannot be read" in problem


def test_text_keys_that_nothing_uses_are_refused(write):
    text = "task: language-modelling\nmodel: {library: transformers, name: gpt2}\ntrain: {steps: 1}\n"
    text += "optimizer: {name: fismo}\ndata:\n  source: stdlib-source\n"
    assert problems_of(write(text + "  text_column: body\n  cache_dir: x\n")) == [
        "7  data.text_column: not used by source stdlib-source",
        "8  data.cache_dir: not used by the tokenizer bytes",
    ]
    assert load_preset(write(text + "  path: null\n  text_column: text\n  tokenizer: gpt2\n  cache_dir: x\n"))


def test_an_override_of_many_lines_is_shown_on_one(write):
    found = problems_of(write(GOOD), "train.seed=a\n\n  b", "oo\nps\x1b[0m")
    assert found == [
        "command line: oo\\nps\\x1b[0m  must be KEY=VALUE, such as train.seed=3",
        'command line: train.seed=a\\n\\n  b  train.seed: must be an integer from 0 to 4294967295, got "a\\nb"',
    ]


def test_aliases_that_stand_for_millions_of_values_are_refused_quickly(write):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 8)]
    start = time.perf_counter()
    (problem,) = problems_of(write("\n".join(levels)))
    assert "more than 100,000 values, counting each alias in full" in problem
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("emonavi", "goes by the value of the loss"),
        ("schedulefreeadamw", "trains other weights than it evaluates"),
        ("lbfgs", "evaluates the loss several times"),
        ("scalableshampoo", "a checkpoint cannot hold; take shampoo"),
        ("timm/adahessian", "needs second derivatives"),
        ("timm/nadamww", "Did you mean timm/nadamw?"),
    ],
)
def test_an_optimizer_that_is_not_offered_is_refused_with_the_reason(write, name, reason):
    (problem,) = problems_of(write(GOOD), f"optimizer.name={name}")
    assert "optimizer.name: " in problem
    assert reason in problem
    (problem,) = problems_of(write(f"{GOOD}compare: {{other: {{name: {name}}}}}"))
    assert problem.startswith("12  compare.other.name: ")
    assert reason in problem


def test_arguments_that_the_tool_drives_are_refused(write):
    given = {"maximize": "true", "capturable": "true", "weight_decay": "0.1", "lr": "0.1", "betas": "[0.5, 0.5]"}
    args = ", ".join(f"{key}: {value}" for key, value in given.items())
    problems = problems_of(write(GOOD), "optimizer.name=adam", "optimizer.lr=1", f"optimizer.args={{{args}}}")
    assert len(problems) == 4
    assert "optimizer.args.lr: optimizer.lr is set too" in problems[0]
    (problem,) = problems_of(write(GOOD), "optimizer.name=adafactor", "optimizer.args.relative_step=true")
    assert "the rate is optimizer.lr and its course train.schedule" in problem


@pytest.mark.parametrize("task", ["image-classification", "language-modelling"])
@pytest.mark.parametrize("kind", ["fismo", "baseline"])
def test_a_value_of_any_type_for_any_key_is_a_problem_or_fine(task, kind):
    """Never another exception, such as of a list that is looked up in a table."""
    start = "digits-vit" if task == "image-classification" else "stdlib-gpt2"
    other = [] if kind == "fismo" else ["optimizer.name=adam"]
    refused = 0
    for path in reference(task, kind):
        for value in ("[1, a]", "{a: 1}"):
            try:
                load_preset(start, [*other, f"{'.'.join(path)}={value}"])
            except PresetError:
                refused += 1
    assert refused > 100
