"""What a comparison says, in words, tables and on the page, from a summary made by hand."""

import io
from pathlib import Path

from rich.console import Console

from fismo_cli.reporting.comparison_figures import figures
from fismo_cli.reporting.comparison_html import page
from fismo_cli.reporting.comparison_tables import cost_table, print_comparison, quality_table
from fismo_cli.reporting.comparison_words import caveats, opening, verdict_sentence


def verdict(name: str = "muon", **changes) -> dict:
    return {
        "baseline": name,
        "verdict": "better",
        "difference": -0.1,
        "ci95": [-0.2, -0.05],
        "p_value": 0.01,
        "p_holm": 0.02,
        "t_p_value": 0.01,
        "effect_size": -1.0,
        "wins": 7,
        "ties": 0,
        "losses": 1,
        "diverged": 0,
        "margin": 0.005,
        "differences": [-0.1, -0.2],
        "steps_speedup": {"median": 1.25, "ci95": [1.0, "inf"]},
        "seconds_speedup": {"median": 1.5, "ci95": [1.1, 2.0]},
        **changes,
    }


def contender(label: str, **changes) -> dict:
    spread = {"mean": 0.25, "standard_deviation": 0.01}
    return {
        "label": label,
        "settings": {"name": label, "note": "<script>alert(1)</script>"},
        "same_adamw": True,
        "completed": 2,
        "diverged": 0,
        "value": spread,
        "metrics": {"validation": {"loss": spread, "top1": spread}, "test": {"loss": spread, "top1": spread}},
        "target_steps": [10, "inf"],
        "steps_to_target": 10,
        "seconds_to_target": "inf",
        "step_milliseconds": 20.0,
        "optimizer_share": 0.25,
        "peak_memory_bytes": 2**20,
        "optimizer_state_bytes": 800,
        **changes,
    }


def summary(**changes) -> dict:
    runs = [
        {
            **{
                "label": label,
                "seed": seed,
                "status": "completed",
                "seconds": 1.0,
                "run_dir": f"c/runs/{label}/{seed}",
            },
            "metrics": {"validation": {"loss": 0.25}},
        }
        for label in ("fismo", "muon")
        for seed in (0, 1)
    ]
    return {
        "comparison": "c",
        "preset": "digits<vit>",
        "candidate": "fismo",
        "seeds": [0, 1],
        "tune_trials": 0,
        "studies": 0,
        "metric": "loss",
        "margin": 0.005,
        "target": {"metric": "loss", "value": 0.25, "given": False},
        "timing": "alone",
        "cpus": ["cpu"],
        "versions": {},
        "mixed_versions": False,
        "environment": {"total_steps": 20, "parameters": 100, "threads": 1},
        "declarations": [{}],
        "verdicts": [verdict()],
        "contenders": [contender("fismo"), contender("muon")],
        "tuning": [],
        "runs": runs,
        "pairing": [],
        "curves": [
            {"label": run["label"], "seed": run["seed"], "step": [10, 20], "seconds": [0.5, 1.0], "value": [1.0, 0.25]}
            for run in runs
        ],
        "report": "c/report.html",
        **changes,
    }


def test_verdicts_in_words():
    text = verdict_sentence(summary(), verdict())
    assert "fismo is better than muon: difference in validation loss -0.1000 (95 % interval -0.2000 to -0.0500)" in text
    assert "muon takes 1.25 (1.00 to ∞) times as many steps and 1.50 (1.10 to 2.00) times as many seconds" in text
    few = verdict_sentence(summary(), verdict(verdict="underpowered", ci95=[None, None]))
    assert "2 seeds are too few for any decision, 6 would do" in few
    assert "too few seeds for an interval" in few
    missed = verdict(steps_speedup={"median": "inf", "ci95": [1.0, "inf"]})
    assert "muon does not reach loss 0.25 in half of the seeds or more" in verdict_sentence(summary(), missed)
    unknown = verdict(steps_speedup={"median": None, "ci95": [0.0, "inf"]})
    assert "too few runs" in verdict_sentence(summary(), unknown)
    assert "nothing was tuned" in opening(summary())
    assert "each tuned once, by 5 trials" in opening(summary(tune_trials=5, studies=1))
    anew = summary(tune_trials=5, studies=2)
    assert "for each seed every optimizer was tuned anew, by 5 trials at random" in opening(anew)
    assert verdict_sentence(anew, verdict()).startswith(
        "Tuned by 5 trials and then trained, fismo is better than muon:"
    )
    once = verdict_sentence(summary(tune_trials=1, studies=1), verdict())
    assert once.startswith("With the settings that one search found, fismo is better than muon:")
    assert "paired seeds of 20 steps with 1 CPU thread;" in opening(summary())
    grown = {"total_steps": 20, "total_samples": 1280, "batch_grows": True, "threads": 2}
    assert "paired seeds of 1,280 samples with 2 CPU threads;" in opening(summary(environment=grown))


def test_caveats_name_what_weakens_a_result():
    assert caveats(summary()) == []
    study = {"at_bound": ["lr"], "best": {"value": 1.0, "params": {}, "trial": 0}}
    tuning = {"label": "muon", "studies": [study]}
    weak = summary(
        timing="shared",
        cpus=["a", "b"],
        declarations=[{}, {}],
        target=None,
        studies=1,
        tune_trials=5,
        tuning=[tuning, {**tuning, "studies": [{"at_bound": [], "best": None}]}],
        contenders=[contender("fismo"), contender("muon", diverged=1, same_adamw=False)],
    )
    found = " ".join(caveats(weak))
    for part in (
        "side by side",
        "same machine",
        "changed 1 time after",
        "edge",
        "Every tuning trial",
        "One search",
        "1 of 2 seeds",
    ):
        assert part in found
    assert "other AdamW settings" in found
    assert "no speed-up" in found
    other = contender("adamw", settings={"name": "adamw", "weight_decay_on": "all"})
    (sentence,) = caveats(summary(contenders=[contender("fismo"), other]))
    assert sentence.startswith("adamw decays all parameters, the candidate matrices alone")


def test_who_learnt_nothing_or_was_not_done_is_marked():
    def curves(**values):
        return [
            {"label": label, "seed": seed, "step": list(range(20)), "seconds": list(range(20)), "value": own}
            for label, own in values.items()
            for seed in (0, 1)
        ]

    falling = [2.0 - 0.05 * step for step in range(20)]  # a tenth of all progress in the last tenth, and a bit more
    flat = [2.0 - 0.001 * step for step in range(20)]
    done = [2.0 - 1.0 * min(step, 10) / 10 for step in range(20)]
    assert caveats(summary(curves=curves(fismo=done, muon=done))) == []
    (nothing,) = caveats(summary(curves=curves(fismo=done, muon=flat)))
    assert nothing.startswith("muon learnt next to nothing (from 2.0000 to 1.9810)")
    (steep,) = caveats(summary(curves=curves(fismo=done, muon=falling)))
    assert steep.startswith("muon was still getting better quickly when training ended")
    up = {label: [1 - loss / 2 for loss in own] for label, own in {"fismo": done, "muon": falling}.items()}
    (steep,) = caveats(summary(metric="top1", curves=curves(**up)))
    assert steep.startswith("muon was still getting better")
    missing = [None] * 20
    assert caveats(summary(curves=curves(fismo=done, muon=missing))) == []


def test_tables():
    headings, rows = quality_table(summary())
    assert rows[1][headings.index("verdict")] == "fismo better"
    assert rows[0][headings.index("top-1")] == "25.00 %"
    headings, rows = cost_table(summary())
    assert rows[0][headings.index("state B/parameter")] == "8.0"
    assert rows[0][headings.index("s to target")] == "not reached"
    text = contender("gpt", metrics={"validation": {"loss": {"mean": 1.0, "standard_deviation": 0.1}}})
    assert "top-1" not in quality_table(summary(contenders=[text]))[0]
    by_hits = summary(metric="top1", contenders=[contender("fismo"), contender("muon")])
    assert quality_table(by_hits)[0][1:3] == ("validation top-1", "loss")
    assert quality_table(by_hits)[1][0][1:3] == ("25.00 ± 1.00 %", "0.2500")
    assert "difference in validation top-1 -0.1000" in verdict_sentence(by_hits, verdict())
    out = io.StringIO()
    print_comparison(Console(file=out, width=100), summary())
    assert "report: c/report.html" in out.getvalue()
    assert "fismo 50 %, muon 50 %" in out.getvalue()


def test_the_page_escapes_what_users_name():
    html = page(summary(), Path("c"))
    assert html.count('"showSendToCloud": false') == len(figures(summary()))  # nothing can be sent from a report
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "digits&lt;vit&gt;" in html
    assert "<td>runs/muon/1</td>" in html  # no link, as nothing is there
    for link in ('src="http', "src='http", '<link rel="stylesheet"'):
        assert link not in html


def many(count: int) -> dict:
    labels = [f"b{index}" for index in range(count)]
    verdicts = [verdict(label, verdict="better" if index % 2 else "worse") for index, label in enumerate(labels)]
    return summary(
        verdicts=verdicts,
        contenders=[contender("fismo"), *map(contender, labels)],
        runs=[{**run, "label": label} for label in ("fismo", *labels) for run in summary()["runs"][:2]],
        curves=[{**curve, "label": label} for label in ("fismo", *labels) for curve in summary()["curves"][:2]],
    )


def test_fifty_baselines_can_be_told_apart_and_read():
    drawn = figures(many(50))
    lines = [trace.line for trace in drawn["loss-by-steps"][0].data if trace.mode == "lines" and trace.name != "target"]
    assert len({(line.color, line.dash) for line in lines}) == 51
    assert drawn["loss-by-steps"][0].layout.legend.orientation == "v"
    for name in ("cost", "to-target"):
        assert drawn[name][0].layout.height > 51 * 18
        assert drawn[name][0].layout.yaxis.dtick == 1
    out = io.StringIO()
    print_comparison(Console(file=out, width=100), many(50))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) < 500
    assert "fismo against 50 baselines on" in text
    assert "fismo is better than 25 baselines: b1, b3," in text
    assert "fismo is worse than 25 baselines: b0, b2," in text
    assert text.count("difference in validation loss") == 0
    assert "<h1>fismo against 50 baselines</h1>" in page(many(50), Path("c"))


def test_a_few_baselines_look_as_they_did():
    drawn = figures(many(7))
    assert {trace.line.dash for trace in drawn["loss-by-steps"][0].data if trace.name in ("b0", "b6")} == {"solid"}
    assert drawn["cost"][0].layout.height is None
    assert "fismo against b0, b1, b2" in opening(many(7))
