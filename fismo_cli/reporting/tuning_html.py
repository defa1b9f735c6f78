"""`tune.html`: a study as one page without any network, from its summary alone. The best settings come first."""

import json
import warnings
from collections.abc import Callable, Iterator
from html import escape, unescape
from pathlib import Path
from typing import Any

from fismo_cli.metrics import higher_is_better
from fismo_cli.reporting.page import document, figure, link, literal, styled, table
from fismo_cli.reporting.tuning_words import best_table, importance_table, notes, opening, result_sentence
from fismo_cli.tuning.plan import space_from_plain
from fismo_cli.tuning.search_space import Choice, Range, short_name
from fismo_cli.tuning.summary import StudySummary

__all__ = ["figures", "tuning_page"]

LEAST_TRIALS = 2
"""Finished trials below which there is nothing to draw."""


SCALE = ((0.0, "#8a929a"), (0.5, "#2f7ed8"), (1.0, "#e07b00"))
"""Of colours, from what matters least to what matters most."""


def tuning_page(summary: StudySummary, directory: Path) -> str:
    """The whole page.

    Args:
        summary: what `summarise_study` returned.
        directory: where the page will be, to which links are relative.
    """
    body = (*_result(summary), *_figures(summary), *_trials(summary, directory), *_settings(summary))
    return document(f"fismo tune: {summary['study']}", body)


def _result(summary: StudySummary) -> Iterator[str]:
    yield f"<h1>{escape(summary['study'])}</h1><p>{escape(opening(summary))}</p>"
    where = summary["plan"]["environment"]
    yield f'<p class="soft">CPU threads of a process: {where["threads"]}; device: {escape(where["device"])}.</p>'
    yield f'<p class="verdict better">{escape(result_sentence(summary))}</p>'
    found = notes(summary)
    if found:
        yield f'<ul class="soft">{"".join(f"<li>{escape(note)}</li>" for note in found)}</ul>'
    for title, (headings, rows) in (
        ("Best trials", best_table(summary, 10)),
        ("Importance", importance_table(summary)),
    ):
        if rows:
            yield f"<h2>{title}</h2>"
            yield table([escape(heading) for heading in headings], [[escape(cell) for cell in row] for row in rows])
    yield '<p class="soft">Importance: share of a setting in what sets the better trials apart (PED-ANOVA).</p>'


def _figures(summary: StudySummary) -> Iterator[str]:
    if summary["trials"]["finished"] < LEAST_TRIALS:
        return
    yield "<h2>Figures</h2>"
    for name, (drawing, caption, height) in figures(summary).items():
        yield figure(name, drawing, caption, height)


def figures(summary: StudySummary) -> dict[str, tuple[Any, str, str]]:
    """Name -> plotly figure, caption and height, drawn by Optuna."""
    import optuna
    from optuna import visualization

    from fismo_cli.campaigns.storage import quiet_optuna
    from fismo_cli.tuning.samplers import frozen

    quiet_optuna()
    metric = summary["plan"]["judging"]["metric"]
    space = {_label(name): _shown(where) for name, where in space_from_plain(summary["plan"]["space"]).items()}
    study = optuna.create_study(direction="maximize" if higher_is_better(metric) else "minimize")
    for trial in summary["trial_list"]:
        if all(value <= 0 for value in trial["limits"].values()):
            params = {_label(name): literal(value) for name, value in trial["params"].items()}
            study.add_trial(frozen(space, {**trial, "params": params}))
    most = [_label(name) for name in summary["importances"]][:3] or list(space)[:3]
    drawn: dict[str, tuple[Callable[[], Any], str, str]] = {
        "history": (
            lambda: visualization.plot_optimization_history(study, target_name=metric),
            "Every finished trial, and the best so far.",
            "420px",
        ),
        "importance": (
            lambda: visualization.plot_param_importances(study, target_name=metric),
            "Share of a setting in what sets the better trials apart.",
            "320px",
        ),
        "slice": (
            lambda: visualization.plot_slice(study, target_name=metric),
            "The metric against each setting alone; orange points are the latest trials.",
            "420px",
        ),
        "contour": (
            lambda: visualization.plot_contour(study, params=most, target_name=metric),
            f"The metric over two settings at a time: {', '.join(map(unescape, most))}. Points are trials; what is "
            "between them is drawn, not measured.",
            "620px",
        ),
        "parallel": (
            lambda: visualization.plot_parallel_coordinate(study, target_name=metric),
            "One line a trial, through all its settings; an axis can be dragged over to choose lines.",
            "460px",
        ),
    }
    if len(most) < 2:
        del drawn["contour"]
    made = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (draw, caption, height) in drawn.items():
            drawing = draw().update_layout(title=None, width=None, height=None)
            _make_visible(drawing, metric)
            made[name] = (styled(drawing, literal=True), caption, height)
    return made


def _make_visible(drawing: Any, metric: str) -> None:
    """Optuna's dark blues for what matters most cannot be seen on dark ground."""
    from plotly.colors import sample_colorscale

    scale = [list(pair) for pair in SCALE]
    for trace in drawing.data:
        if trace.type != "scatter":
            continue
        if trace.marker.colorscale is not None:
            trace.marker.colorscale = scale
        if trace.mode == "lines" and trace.customdata is not None:  # a trial; its metric comes first, from 0 to 1
            best = trace.y[0] if higher_is_better(metric) else 1.0 - trace.y[0]
            trace.line.color = sample_colorscale(scale, [min(max(best, 0.0), 1.0)])[0]
            trace.line.width = 3 if best == 1.0 else 1.2


def _label(name: str) -> str:
    return str(literal(short_name(name)))


def _shown(where: Range | Choice) -> Range | Choice:
    if isinstance(where, Range):
        return where
    return Choice(tuple(map(literal, where.values)), literal(where.start))


def _trials(summary: StudySummary, directory: Path) -> Iterator[str]:
    space = summary["plan"]["space"]
    yield "<h2>Trials</h2><details><summary>all of them, with their run directories</summary>"
    rows = []
    for trial in summary["trial_list"]:
        links = [link(Path(run), directory, str(index)) for index, run in enumerate(trial["run_dirs"] or (), start=1)]
        outcome = trial["failure"]["reason"] if trial["failure"] else trial["state"]
        if trial.get("same_as") is not None:
            outcome = f"as trial {trial['same_as']}: {outcome}"
        rows.append(
            [
                str(trial["number"]),
                escape(outcome),
                "" if trial["value"] is None else f"{trial['value']:.5g}",
                *(escape(_cell(trial["params"].get(name))) for name in space),
                " ".join(links),
            ]
        )
    headings = ("trial", "outcome", summary["plan"]["judging"]["metric"], *map(short_name, space), "runs")
    yield table([escape(heading) for heading in headings], rows)
    yield "</details>"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _settings(summary: StudySummary) -> Iterator[str]:
    plan = json.dumps({"storage": summary["storage"], **summary["plan"]}, indent=1)
    yield f"<details><summary>what was searched, and how it was judged</summary><pre>{escape(plan)}</pre></details>"
