"""Several comparisons taken together: profiles and shares against numbers worked out by other means."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from fismo_cli.app import main
from fismo_cli.comparison.over_tasks import over_tasks
from fismo_cli.comparison.summary import COMPARISON_VERSION
from fismo_cli.errors import ExitCode, PresetError
from fismo_cli.preset.arguments import load_all
from fismo_cli.reporting.tasks_report import print_tasks, rebuild_tasks, write_tasks

STEPS = list(range(10, 101, 10))


def summary(preset, losses, **verdict):
    """A comparison in which losses fall evenly from 2 at the start to `losses` at the end; infinite ones diverge."""
    runs = [
        {
            "label": label,
            "seed": seed,
            "status": "completed" if np.isfinite(loss) else "diverged",
            "metrics": {"validation": {"loss": loss if np.isfinite(loss) else None}},
        }
        for label, finals in losses.items()
        for seed, loss in enumerate(finals)
    ]
    curves = [
        {
            "label": run["label"],
            "seed": run["seed"],
            "step": STEPS,
            "value": [None if final is None else 2 - (2 - final) * step / 100 for step in STEPS],
        }
        for run in runs
        for final in [run["metrics"]["validation"]["loss"]]
    ]
    first = {"verdict": "better", "difference": -0.1, "p_holm": 0.01, "wins": 3, "losses": 0, **verdict}
    return {
        "version": COMPARISON_VERSION,
        "preset": preset,
        "comparison": f"comparisons/{preset}-1",
        "report": f"comparisons/{preset}-1/report.html",
        "seeds": [0, 1, 2],
        "metric": "loss",
        "tune_trials": 0,
        "studies": 0,
        "contenders": [
            {"label": label, "value": {"mean": float(np.mean(finals)), "standard_deviation": 0.0}}
            if np.isfinite(finals).all()
            else {"label": label, "value": None}
            for label, finals in losses.items()
        ],
        "verdicts": [
            {"baseline": label, **(first if index == 0 else {**first, "verdict": "inconclusive", "difference": 0.1})}
            for index, label in enumerate(list(losses)[1:])
        ],
        "runs": runs,
        "curves": curves,
    }


THREE = [
    summary("a", {"fismo": [1.0, 1.0, 1.0], "muon": [1.5, 1.5, 1.5], "sgd": [1.25, 1.25, 1.25]}),
    summary("b", {"fismo": [1.5, 1.5, 1.5], "muon": [1.0, 1.0, 1.0], "sgd": [np.inf] * 3}, difference=0.5),
    summary("c", {"fismo": [1.0, 1.0, np.inf], "muon": [1.0, 1.0, 1.0], "sgd": [1.0, 1.0, 1.0]}, difference=None),
]


def test_ratios_are_those_of_the_steps_to_a_loss_that_all_reach():
    tasks = over_tasks(THREE)["tasks"]
    # a: all are at 1.5 after 50, 100 and 70 steps; b: at 1.5 after 100 and 50, sgd never
    assert tasks[0]["target"] == 1.5
    assert tasks[0]["ratios"] == {"fismo": 1.0, "muon": 2.0, "sgd": 1.4}
    assert tasks[1]["ratios"] == {"fismo": 2.0, "muon": 1.0, "sgd": "inf"}
    assert tasks[2]["ratios"] == {"fismo": 1.0, "muon": 1.0, "sgd": 1.0}


def test_a_profiles_score_is_its_mean_height():
    together = over_tasks(THREE)
    taus = np.linspace(1, 4, 300_001)
    for profile in together["profiles"]:
        ratios = np.array([float(task["ratios"][profile["label"]]) for task in together["tasks"]])
        height = (ratios[:, None] <= taus).mean(axis=0)
        assert profile["score"] == pytest.approx(float(np.trapezoid(height, taus)) / 3, abs=1e-4)
        assert [share for _, share in profile["points"]] == [
            pytest.approx(float((ratios <= ratio).mean())) if place == last else share
            for place, (ratio, share) in enumerate(profile["points"])
            for last in [max(i for i, (other, _) in enumerate(profile["points"]) if other == ratio)]
        ]


@pytest.mark.parametrize("won", range(4))
def test_the_share_of_tasks_won_has_the_exact_interval(won):
    tasks = [
        summary(str(n), {"fismo": [1.0] * 3, "muon": [1.5] * 3}, difference=-0.1 if n < won else 0.1) for n in range(3)
    ]
    (against,) = over_tasks(tasks)["against"]
    assert (against["won"], against["tasks"]) == (won, 3)
    low = 0.0 if won == 0 else stats.beta.ppf(0.025, won, 3 - won + 1)
    high = 1.0 if won == 3 else stats.beta.ppf(0.975, won + 1, 3 - won)
    assert against["ci95"] == pytest.approx([low, high])


def test_page_and_words_are_made_of_the_comparisons_and_made_again_where_they_were_moved(tmp_path, capsys):
    for each in THREE:
        place = tmp_path / each["comparison"]
        place.mkdir(parents=True)
        (place / "summary.json").write_text(json.dumps(each, default=str))
    written = write_tasks(THREE, tmp_path / "comparisons")
    page = Path(written["report"]).read_text()
    assert "<title>fismo compare: 3 tasks</title>" in page
    assert "inf" not in page.partition("</script>")[2].partition("<script")[0]
    console = Console(width=200)
    with console.capture() as said:
        print_tasks(console, written)
    assert "fismo against muon, of 3 tasks: better on 3; its mean loss was better on 2" in said.get()
    assert "sgd" in said.get()
    (tmp_path / "comparisons").rename(tmp_path / "moved")
    place = tmp_path / "moved" / Path(written["directory"]).name
    again = rebuild_tasks(place)
    assert again["profiles"] == written["profiles"]
    main_ = pytest.raises(SystemExit)
    with main_ as left:
        main(["report", str(place), "--json"])
    assert left.value.code == 0
    assert json.loads(capsys.readouterr().out)["against"] == written["against"]
    (tmp_path / "moved" / "a-1" / "summary.json").write_text(json.dumps({**THREE[0], "version": 0}))
    with pytest.raises(SystemExit) as left:
        main(["report", str(place)])
    assert left.value.code == ExitCode.USAGE
    assert "a-1: its summary.json is of another version of fismo; run fismo report" in capsys.readouterr().err
    (tmp_path / "moved" / "a-1" / "summary.json").unlink()
    with pytest.raises(SystemExit) as left:
        main(["report", str(place)])
    assert left.value.code == ExitCode.USAGE
    assert "a-1, which has no summary.json" in capsys.readouterr().err


def test_presets_come_before_overrides_which_are_for_all_of_them(tmp_path):
    loaded, by_default = load_all(["digits-vit", "stdlib-gpt2", "train.steps=7", "train.epochs=null"])
    assert [(each.name, each.preset.train.steps) for each in loaded] == [("digits-vit", 7), ("stdlib-gpt2", 7)]
    assert not by_default
    (only,), by_default = load_all(["train.epochs=1"])
    assert (only.name, by_default) == ("digits-vit", True)
    assert [each.name for each in load_all(["stdlib-gpt2"])[0]] == ["stdlib-gpt2"]
    with pytest.raises(PresetError) as caught:
        load_all(["digits-vit", "digits-vit", "no-such", "stdlib-gpt2", "train.batch_size=x"])
    text = str(caught.value)
    assert "digits-vit: given twice" not in text  # of presets that can be read at all
    assert "no-such" in text
    assert text.count("must be a positive integer") == 1
    with pytest.raises(PresetError, match="digits-vit: given twice"):
        load_all(["digits-vit", "digits-vit"])


def test_what_is_wrong_with_each_comparison_is_said_at_once(capsys):
    with pytest.raises(SystemExit) as left:
        main(
            ["compare", "digits-vit", "stdlib-gpt2", "--baselines", "muon", "--target", "perplexity=3", "--margin", "2"]
        )
    assert left.value.code == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "digits-vit: --target perplexity=3" in said
    assert "stdlib-gpt2: --margin 2" in said
    with pytest.raises(SystemExit) as left:
        main(["compare", "digits-vit", "stdlib-gpt2", "--baselines", "muon", "--metric", "top1"])
    assert left.value.code == ExitCode.USAGE
    assert (
        "stdlib-gpt2: --metric top1: the metrics of language-modelling are loss, perplexity" in capsys.readouterr().err
    )
