"""Writes what a study came to: `best.yaml`, `summary.json` and `tune.html`; and shows it on the terminal."""

import json
import shlex
import time
from pathlib import Path

from rich.console import Console

from fismo_cli.campaigns.storage import journal_file, storage_errors
from fismo_cli.errors import FismoError, UsageError
from fismo_cli.files import whole_file
from fismo_cli.preset.loading import resolved_yaml
from fismo_cli.reporting.console import print_rows, say
from fismo_cli.reporting.tuning_html import tuning_page
from fismo_cli.reporting.tuning_words import best_table, importance_table, notes, opening, result_sentence
from fismo_cli.runs.directory import found_again, json_safe, write_json
from fismo_cli.tuning.analysis import summarise_study
from fismo_cli.tuning.plan import StudyPlan
from fismo_cli.tuning.studies import read_study
from fismo_cli.tuning.summary import Best, StudySummary

__all__ = ["print_study", "rebuild_study_page", "write_study"]


def write_study(plan: StudyPlan, summary: StudySummary) -> StudySummary:
    """Write the files of a study and return its summary with their places."""
    directory = plan.directory
    best, file = summary["best"], None
    if best is not None:
        file = directory / "best.yaml"
        with whole_file(file) as temporary:
            temporary.write_text(
                _origin(summary, best) + resolved_yaml(plan.best_preset(best["params"])), encoding="utf-8"
            )
    report = directory / "tune.html"
    full: StudySummary = json_safe(
        {**summary, "best_preset": None if file is None else str(file), "report": str(report)}
    )
    write_json(directory / "summary.json", full)
    with whole_file(report) as temporary:
        temporary.write_text(tuning_page(full, directory), encoding="utf-8")
    return full


def rebuild_study_page(directory: Path, url: str | None = None) -> StudySummary:
    """Write the files of a study again, whether it has ended or not.

    Trials are read from its journal, or the database at a URL; without these, from the last `summary.json`, or else
    from the run directories on this host.

    Raises:
        FismoError: if nothing of this can be read.
    """
    found = read_study(directory, url)
    file, best = directory / "summary.json", directory / "best.yaml"
    if found is not None and (found.complete or not file.exists()):
        plan = found.plan
        with storage_errors(plan.url, directory):
            summary = summarise_study(plan, found.study())
            if not found.complete:
                storage = found.database or summary["storage"]
                summary["storage"] = storage
                summary["partial"] = f"only what was run on this host is shown: {storage} has all"
            return write_study(plan, summary)
    if not file.exists():
        raise UsageError(f"{directory}: it has neither a study.json nor a summary.json, so there is nothing to report")
    try:
        last: StudySummary = json.loads(file.read_text(encoding="utf-8"))
        for trial in last["trial_list"]:
            trial["run_dirs"] = [str(found_again(Path(run), directory)) for run in trial["run_dirs"] or ()] or None
        last["directory"], last["report"] = str(directory), str(directory / "tune.html")
        last["best_preset"] = str(best) if last["best"] is not None else None
        if "://" not in last["storage"]:
            last["storage"] = str(journal_file(directory))
        html = tuning_page(last, directory)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FismoError(f"{file}: cannot be read ({error}); run fismo tune again") from error
    with whole_file(directory / "tune.html") as temporary:
        temporary.write_text(html, encoding="utf-8")
    return last


def print_study(console: Console, summary: StudySummary) -> None:
    """The result in words, the best trials, what matters, and where everything is."""
    say(console, opening(summary))
    say(console, result_sentence(summary), style="bold")
    for headings, rows in (best_table(summary), importance_table(summary)):
        if rows:
            print_rows(console, headings, rows)
    for note in notes(summary):
        say(console, f"note: {note}")
    say(console, f"report: {summary['report']}")
    if summary["best_preset"] is not None:
        command = f"fismo train {shlex.quote(summary['best_preset'])}{_nproc(summary)}"
        say(console, f"best preset: {command}")
    say(console, f"live view: pip install optuna-dashboard && {_dashboard(summary)}")


def _nproc(summary: StudySummary) -> str:
    nproc = summary["plan"]["judging"]["nproc"]
    return f" --nproc {nproc}" if nproc > 1 else ""


def _dashboard(summary: StudySummary) -> str:
    storage = summary["storage"]
    return f"optuna-dashboard {shlex.quote(storage) if '://' not in storage else 'DATABASE_URL'}"


def _origin(summary: StudySummary, best: Best) -> str:
    judging, trials = summary["plan"]["judging"], summary["trials"]
    repeats = judging["repeats"]
    of = f"the mean of {repeats} seeds, of which this is the first" if repeats > 1 else "which this preset repeats"
    lines = [
        f"The best of {sum(trials.values())} trials of the study {summary['study']}, written by fismo tune on "
        f"{time.strftime('%Y-%m-%d %H:%M')}:",
        f"validation {judging['metric']} {best['value']!r} in trial {best['trial']} ({of}",
        f"on the same machine and versions, to the last digit{', with' + _nproc(summary) if _nproc(summary) else ''}).",
        *(f"  {name} = {value!r}" for name, value in best["params"].items()),
        "It was chosen by this seed and validation part: judge it on other seeds, such as by fismo compare.",
    ]
    return "".join(f"# {line}\n" for line in lines)
