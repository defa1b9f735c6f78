"""Arguments of `fismo compare`, and what is refused before anything runs."""

import pytest

from fismo_cli.commands.compare import spread_out
from fismo_cli.comparison.target import parse_target
from fismo_cli.errors import UsageError
from tests.end_to_end.conftest import HereCli

B = "--baselines"


@pytest.fixture
def cli(tmp_path):
    return HereCli(tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        [B, "adam", "muon"],
        [B, "adam", B, "muon"],
        [B, "adam,muon"],
        [f"{B}=adam", "muon"],
        [f"{B}=adam,muon"],
    ],
)
def test_ways_to_name_baselines(given):
    assert spread_out(given) == [B, "adam", B, "muon"]
    assert spread_out(["digits-vit", "train.seed=1", *given, "--seeds", "3", "--json"]) == [
        *("digits-vit", "train.seed=1", B, "adam", B, "muon", "--seeds", "3", "--json")
    ]
    assert spread_out([*given, "train.seed=1"])[-1] == "train.seed=1"


def test_targets():
    target = parse_target("top1=0.9", "image-classification")
    assert target.reached({"top1": 0.9})
    assert not target.reached({"top1": 0.8})
    assert parse_target("0.3", "image-classification").reached({"loss": 0.3})
    assert not parse_target("perplexity=5", "language-modelling").reached({"perplexity": 5.1, "loss": 0.0})
    assert not parse_target("0.3", "image-classification").reached({})


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("-1", "image-classification"),
        ("0", "image-classification"),
        ("nan", "image-classification"),
        ("inf", "language-modelling"),
        ("top1=1.5", "image-classification"),
        ("top1=0", "image-classification"),
        ("top1=0.9", "language-modelling"),
        ("perplexity=1", "language-modelling"),
        ("accuracy", "image-classification"),
    ],
)
def test_targets_that_mean_nothing(text, task):
    with pytest.raises(UsageError, match="--target"):
        parse_target(text, task)


def test_every_wrong_argument_at_once_and_nothing_written(cli):
    done = cli.run(
        *("compare", "digits-vit", B, "addam", "muon", "muon", "fismo", "--seeds", 0, "--margin", 2),
        *("--tune-trials", -1, "--workers", 0),
    )
    assert done.code == 2
    for part in (
        "--baselines addam: no optimizer of this name, and no entry under compare. Did you mean adam",
        "--baselines muon: named twice",
        "--baselines fismo: that is the optimizer",
        "--seeds 0",
        "--margin 2",
        "--tune-trials -1",
        "--workers 0",
    ):
        assert part in done.err
    assert not (cli.folder / "comparisons").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare"], "--baselines: name at least one"),
        (["compare", "digits-vit", "compare.sgd.trust_radius=3", B, "sgd"], "Did you mean compare.sgd.lr?"),
        (["compare", "compare.mine.lr=0.1", B, "mine"], "compare.mine.name"),
        (["compare", B, "adam", "--target", "top1=2"], "--target top1=2"),
        (
            ["report", "nowhere"],
            "nowhere: not a directory of fismo train, fismo tune or fismo compare (there is no such",
        ),
    ],
)
def test_refusals(cli, arguments, message):
    done = cli.run(*arguments)
    assert done.code == 2
    assert message in done.err
    assert not (cli.folder / "comparisons").exists()
