"""Keys that once had other names: accepted wherever they may stand, with a word about the new ones, on their lines."""

import pytest

from fismo_cli.errors import PresetError
from fismo_cli.preset.loading import load_preset
from fismo_cli.preset.renamed import RENAMED
from fismo_cli.preset.schema import FismoConfig, fismo_options
from fismo_core.checked import leaves
from fismo_core.config import FisherMetric, FismoOptions, Polar

OLD = """task: image-classification
model: {library: timm, name: test_vit}
data: {source: digits}
optimizer:
  name: fismo
  trust_radius: 0.05
  damping: 0.3
  damping_scale: relative
  fisher_decay: 0.9
  power: 0.125
  statistics: both
  refresh_interval: 7
  roots: eigh
  max_factor_dim: 64
  max_factor_ratio: null
  momentum_space: whitened
  polar: quintic
  polar_steps: 4
  shape_scale: rms
  grafting: false
  cautious_weight_decay: true
train: {epochs: 1}
tune:
  space:
    optimizer.refresh_interval: {low: 1, high: 20}
compare:
  fismo: {trust_radius: 0.1}
  a.b: {name: fismo, polar: exact}
  muon: {lr: 0.1}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "old.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_every_old_name_has_a_new_one():
    names = {name for name, _ in leaves(FismoOptions())}
    assert set(RENAMED.values()) <= names


def test_a_preset_with_old_names_means_the_same(write):
    loaded = load_preset(write(OLD))
    assert fismo_options(loaded.preset.optimizer) == FismoOptions(
        lr=0.05,
        metric=FisherMetric(0.125, 0.3, "relative", 0.9, "both", 7, "eigh", 64, None, "whitened"),
        polar=Polar("quintic", 4),
        scale="rms",
        graft=False,
        cautious=True,
    )
    assert list(loaded.preset.tune.space) == ["optimizer.metric.refresh_every"]
    assert loaded.preset.compare["fismo"].lr == 0.1
    assert loaded.preset.compare["a.b"].polar.method == "exact"
    (note,) = loaded.notes
    for words in (
        "optimizer.trust_radius is optimizer.lr,",
        "optimizer.refresh_interval is optimizer.metric.refresh_every,",
        "tune.space: optimizer.refresh_interval is optimizer.metric.refresh_every",
        "compare.fismo.trust_radius is compare.fismo.lr",
    ):
        assert words in note
    assert "muon" not in note


def test_overrides_with_old_names(write):
    text = OLD[: OLD.index("  trust_radius")] + OLD[OLD.index("train:") :]
    overrides = ["optimizer.damping=0.5", "optimizer.polar=quintic", "optimizer.polar_steps=3"]
    space = "tune.space.optimizer.damping={low: 0.1, high: 1}"
    loaded = load_preset(write(text), [*overrides, space])
    assert (loaded.preset.optimizer.metric.damping, loaded.preset.optimizer.polar.steps) == (0.5, 3)
    assert "optimizer.metric.damping" in loaded.preset.tune.space
    assert "optimizer.damping is optimizer.metric.damping" in loaded.notes[-1]


def test_problems_are_on_the_old_line_under_the_new_name(write):
    text = OLD.replace("damping: 0.3", "damping: -1").replace("trust_radius: 0.05", "trust_radius: x")
    with pytest.raises(PresetError) as caught:
        load_preset(write(text))
    problems = [problem.split("old.yaml:")[1] for problem in caught.value.problems]
    assert problems == [
        '6  optimizer.lr: must be a positive number, got "x"',
        "7  optimizer.metric.damping: must be a number of at least 0, got -1",
    ]


def test_both_names_at_once_are_a_problem(write):
    with pytest.raises(PresetError, match=r"optimizer\.trust_radius: unknown key\. Did you mean optimizer\.lr\?"):
        load_preset(write(OLD.replace("  trust_radius: 0.05", "  trust_radius: 0.05\n  lr: 0.1")))


def test_old_names_in_another_optimizer_s_section_stay_unknown(write):
    with pytest.raises(PresetError, match=r"optimizer\.trust_radius: unknown key"):
        load_preset(write(OLD), ["optimizer.name=adamw", "optimizer.trust_radius=1"])


def test_a_section_in_python_takes_the_library_s_own_values():
    config = FismoConfig(name="fismo", metric=FisherMetric(damping=0.3), polar="exact")
    assert fismo_options(config) == FismoOptions(metric=FisherMetric(damping=0.3), polar=Polar("exact"))
