"""One, two and four ranks, by DDP and by FSDP2, follow one loss curve: as near as runs with noise in the last digit."""

import json
from pathlib import Path

import pytest

from fismo_cli.training.distributed.together import ELEMENTWISE
from tests.distributed.curves import curve
from tests.distributed.test_sharding import start

pytestmark = pytest.mark.slow

SAME = ("train.steps=30", "train.batch_size=8", "train.threads=1", "optimizer.compute_dtype=float32")
TINY = ("model.args.n_layer=2", "model.args.n_embd=48", "model.args.n_head=2", "data.block_size=32")
MODELS = {
    "text": ("stdlib-gpt2", *SAME, *TINY, "data.validation_fraction=0", "data.test_fraction=0"),
    "images": (str(Path(__file__).with_name("convnext.yaml")), *SAME),
}
FORMS = ("default", "paper")
ROUNDING = 5e-7
"""Of a loss that is summed up and divided in float32: four times its epsilon."""


def gap(one: list[float], other: list[float]) -> float:
    assert len(one) == len(other) == 30
    return max(abs(a - b) / a for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, str], tuple[list[float], float]]:
    """Of one process by model and form: its curve, and how far apart curves are of which the gradients have noise."""
    found = {}
    for model, settings in MODELS.items():
        for form in FORMS:
            plain, _ = curve(*settings, f"optimizer.form={form}")
            noisy = [curve(*settings, f"optimizer.form={form}", noise=seed)[0] for seed in (1, 2)]
            found[model, form] = plain, max(gap(plain, noisy[0]), gap(plain, noisy[1]), gap(*noisy))
    return found


def test_the_curves_are_of_training_and_noise_is_seen_in_them(alone):
    for plain, spread in alone.values():
        assert plain[-1] < 0.9 * plain[0]
        assert 0 < spread < 1e-4


def test_eight_micro_batches_follow_the_curve_of_one_batch(alone):
    for (model, form), (plain, spread) in alone.items():
        cut, _ = curve(*MODELS[model], f"optimizer.form={form}", "train.accumulate=8")
        assert gap(plain, cut) <= 2 * spread + ROUNDING


def test_every_other_optimizer_that_may_steps_rows_as_it_steps_all(tmp_path):
    path, *_ = MODELS["images"]
    runs = [
        [path, "train.steps=6", "train.threads=1", f"optimizer={{name: {name}, lr: 0.01, weight_decay: 0.1}}"]
        for name in ELEMENTWISE
        if name != "fismo"
    ]
    spread = json.dumps([[*run, "train.parallel=fsdp2"] for run in runs])
    for run, (losses, _) in zip(runs, json.loads(start("curves", tmp_path, 2, spread)), strict=True):
        assert losses == pytest.approx(curve(*run)[0], rel=ROUNDING), run[-1]


def test_activations_computed_again_give_the_same_losses_to_the_last_bit(tmp_path):
    """With dropout, of which the same must be dropped in the second forward pass."""
    short = ("train.steps=6", "train.ema_decay=0.9")
    settings = [
        [*MODELS["text"], *short, "model.args.resid_pdrop=0.2", "model.args.attn_pdrop=0.2"],
        [*MODELS["images"], *short, "model.args.drop_path_rate=0.2"],
    ]
    again = "train.activation_checkpointing=true"
    pairs = [(run, [*run, again]) for one in settings for run in ([*one, "train.parallel=fsdp2"], one)]
    found = [
        losses for losses, _ in json.loads(start("curves", tmp_path, 2, json.dumps([r for p in pairs for r in p])))
    ]
    for plain, recomputed in zip(found[::2], found[1::2], strict=True):
        assert recomputed == plain
    for one in settings:
        assert curve(*one, again)[0] == curve(*one)[0]


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_follow_the_curve_of_one_process(tmp_path, alone, ranks):
    wanted = [
        (model, form, parallel, accumulate)
        for model in MODELS
        for form in FORMS
        for parallel in ("ddp", "fsdp2")
        for accumulate in ((1, 8 // ranks) if (model, form) == ("text", "default") else (1,))
    ]
    runs = [
        [*MODELS[model], f"optimizer.form={form}", f"train.parallel={parallel}", f"train.accumulate={accumulate}"]
        for model, form, parallel, accumulate in wanted
    ]
    found = json.loads(start("curves", tmp_path, ranks, json.dumps(runs)))
    for key, (losses, summary) in zip(wanted, found, strict=True):
        model, form, parallel, accumulate = key
        plain, spread = alone[model, form]
        assert (summary["world_size"], summary["samples_per_rank"]) == (ranks, 30 * 8 // ranks)
        # The table of docs/scaling-out.md, by pytest -s.
        print(f"| {model}, {form} | {ranks} x {accumulate}, {parallel} | {gap(plain, losses):.1e} | {spread:.1e} |")
        assert gap(plain, losses) <= 2 * spread + ROUNDING, key
