"""Plain values -> `Preset`, or every problem in them at once, in plain words.

Pydantic stops at a part's first kind of problem: checks across keys do not run while a key is wrong. So keys that were
found wrong are taken out and the rest is validated again, until nothing new is found.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from fismo_cli.preset.document import Path, dotted
from fismo_cli.preset.optimizer_names import is_optimizer_name, optimizer_names, why_refused
from fismo_cli.preset.reference import TASKS, OptimizerKind, reference, shown
from fismo_cli.preset.schema import KeyedError, Preset, preset_adapter
from fismo_cli.preset.schema_tune import SearchedConfig
from fismo_cli.preset.search_checks import changed_values, space_problems
from fismo_cli.preset.suggestions import did_you_mean, near, unknown_key
from fismo_core.checked import OptionError

__all__ = ["Finding", "validate"]


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes:
        path: where.
        message: what is wrong and what would be right.
        others: keys that the check looked at besides.
        meant: keys that an unknown key may have been meant as.
        follows: whether it may only follow from another key's being misspelt.
    """

    path: Path
    message: str
    others: tuple[Path, ...] = ()
    meant: tuple[Path, ...] = ()
    follows: bool = False


def validate(values: dict[str, Any]) -> tuple[Preset | None, list[Finding]]:
    """Validate the values of a preset: the preset, or None with every problem found."""
    findings: dict[Path, Finding] = {}
    work = dict(values)
    task = _settle_task(work, findings)
    kind = _settle_optimizer(work, findings)
    _fill_empty_sections(work, task, kind)
    while True:
        try:
            preset = preset_adapter.validate_python(work)
            findings.update((finding.path, finding) for finding in _search_findings(preset))
            return (None, list(findings.values())) if findings else (preset, [])
        except ValidationError as error:
            explained = list(_explain(error, work, task, kind))
        before = len(findings)
        # Unknown keys first: a key that is missing may stand there misspelt.
        for finding in sorted(explained, key=lambda finding: not finding.meant):
            if _is_news(finding, findings):
                findings[finding.path] = finding
                work = _without(work, _part(finding.path))
        if len(findings) == before:
            return None, list(findings.values())


def _search_findings(preset: Preset) -> Iterator[Finding]:
    """What is wrong with `tune.space`: its keys, and the values that a search could end at, tried in the preset."""
    wrong = dict(space_problems(preset))
    yield from (Finding(path, message) for path, message in wrong.items())
    for name, searched in preset.tune.space.items():
        if searched is None or any(path[2] == name for path in wrong):
            continue
        for end, value, values in changed_values(preset, name, searched):
            for finding in validate(values)[1]:
                where = dotted(finding.path)
                message = finding.message if where == name else f"{where}: {finding.message}"
                yield Finding(("tune", "space", name, *end), f"with {shown(value)}: {message}")


def _is_news(finding: Finding, findings: dict[Path, Finding]) -> bool:
    """False for what only follows from a key that is already known to be wrong."""
    wrong = set(findings)
    if finding.follows:
        wrong.update(path for known in findings.values() for path in known.meant)
    looked_at = (finding.path, *finding.others)
    return not any(path[:length] in wrong for path in looked_at for length in range(1, len(path) + 1))


def _settle_task(work: dict[str, Any], findings: dict[Path, Finding]) -> str:
    task = work.get("task")
    if isinstance(task, str) and task in TASKS:
        return task
    expected = " or ".join(TASKS)
    if "task" not in work:
        message = f"missing; must be {expected}"
    else:
        message = f"must be {expected}, got {shown(task)}"
    findings[("task",)] = Finding(("task",), message)
    model = work.get("model")
    library = model.get("library") if isinstance(model, dict) else None
    likely = near(task, TASKS) if isinstance(task, str) else []
    work["task"] = likely[0] if likely else list(TASKS)[1 if library == "transformers" else 0]
    return str(work["task"])


def _settle_optimizer(work: dict[str, Any], findings: dict[Path, Finding]) -> OptimizerKind:
    section = work.get("optimizer")
    if not isinstance(section, dict):
        return "fismo"
    name = section.get("name")
    if isinstance(name, str) and is_optimizer_name(name):
        return "fismo" if name == "fismo" else "baseline"
    path = ("optimizer", "name")
    likely = near(name, optimizer_names()) if isinstance(name, str) else []
    if "name" not in section:
        message = "missing; must be the name of an optimizer, such as fismo or adamw"
    elif not isinstance(name, str):
        message = f"must be the name of an optimizer, got {shown(name)}"
    elif (reason := why_refused(name)) is not None:
        message, likely = reason, []
    else:
        names = "; known are fismo, adam, adamw, sgd, muon, soap, shampoo, lion and those listed in docs/presets.md"
        message = f"unknown optimizer {shown(name)}{'.' + did_you_mean(likely) if likely else names}"
    findings[path] = Finding(path, message)
    only_fismo = {key[1] for key in reference("image-classification", "fismo") if key[0] == "optimizer" and key[1:]}
    only_fismo -= {key[1] for key in reference("image-classification", "baseline") if key[0] == "optimizer" and key[1:]}
    is_fismo = likely == ["fismo"] or (not likely and not only_fismo.isdisjoint(section))
    work["optimizer"] = {**section, "name": "fismo" if is_fismo else "adamw"}
    return "fismo" if is_fismo else "baseline"


def _fill_empty_sections(work: dict[str, Any], task: str, kind: OptimizerKind) -> None:
    """A section whose keys are all commented out is null in YAML; it means a section without keys."""
    for path, key in reference(task, kind).items():
        if key.kind == "value":
            continue
        parent: Any = work
        for part in path[:-1]:
            parent = parent.get(part) if isinstance(parent, dict) else None
        if isinstance(parent, dict) and path[-1] in parent and parent[path[-1]] is None:
            # `work` is a copy of the top level only, so nothing that the caller holds is changed.
            work.update(_with(work, path, {}))


def _part(path: Path) -> Path:
    """What to take out for a wrong key: all of an entry that would be wrong for another reason without it."""
    if path[:2] == ("tune", "space"):
        return path[:3]
    return path[:2] if path[0] == "compare" and path[2:] == ("name",) else path


def _with(values: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    head, *rest = path
    return {**values, head: _with(values[head], tuple(rest), value) if rest else value}


def _without(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The values less the key at a path; for a place in a list, less the key that holds the list."""
    head, *rest = path
    child = values.get(str(head))
    if rest and isinstance(child, dict):
        return {**values, str(head): _without(child, tuple(rest))}
    return {key: value for key, value in values.items() if key != head}


def _explain(error: ValidationError, work: dict[str, Any], task: str, kind: OptimizerKind) -> Iterator[Finding]:
    grouped: dict[Path, list[Any]] = defaultdict(list)
    for detail in error.errors(include_url=False):
        grouped[_real_path(detail["loc"], work)].append(detail)
    name = str(work["optimizer"].get("name", "fismo")) if isinstance(work.get("optimizer"), dict) else "fismo"
    for path, details in grouped.items():
        detail = details[0]
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, KeyedError):
            for key, message, others in cause.problems:
                looked_at = tuple((*path, *other.split(".")) for other in others)
                yield Finding((*path, *key.split(".")), message, looked_at, follows=True)
        elif isinstance(cause, OptionError):
            for key, message in cause.problems:
                yield Finding((*path, key), message, follows=True)
        elif detail["type"] == "extra_forbidden" and path[:2] == ("tune", "space"):
            known = tuple(SearchedConfig.model_fields)
            text = f"unknown key; must be one of {', '.join(known)}.{did_you_mean(near(str(path[-1]), known))}"
            yield Finding(path, text, meant=tuple((*path[:-1], key) for key in known))
        elif detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            alias, owner, owner_name = _owner(path, work, kind, name)
            text, meant = unknown_key(tuple(map(str, alias)), task, owner, owner_name)
            if alias != path:
                text = text.replace("optimizer.", f"{dotted(path[:2])}.")
            yield Finding(path, text, meant=() if alias != path else tuple(meant))
        elif detail["type"] == "missing":
            yield Finding(path, f"missing; must be {_expected(path, task, kind)}", follows=True)
        elif detail["type"] == "value_error":
            yield Finding(*_unknown_baseline(path, work) or (path, str(cause)))
        elif detail["loc"][-1] == "[key]":
            choices = reference(task, kind)[tuple(map(str, path[:-1]))].choices
            like = near(str(path[-1]), choices)
            suggestion = did_you_mean(dotted((*path[:-1], word)) for word in like)
            yield Finding(path, f"unknown key; must be one of {', '.join(choices)}.{suggestion}")
        else:
            alias, owner, _ = _owner(path, work, kind, name)
            value = detail["input"] if len(details) == 1 else _at(work, path)
            yield Finding(path, _must_be(alias, value, task, owner))


def _owner(path: Path, work: dict[str, Any], kind: OptimizerKind, name: str) -> tuple[Path, OptimizerKind, str]:
    """Where a key under `compare.LABEL` would stand under `optimizer`, with the optimizer's kind and name there."""
    if path[0] != "compare" or len(path) < 3:
        return path, kind, name
    entry_name = str(work["compare"][path[1]].get("name", path[1]))
    return ("optimizer", *path[2:]), "fismo" if entry_name == "fismo" else "baseline", entry_name


def _unknown_baseline(path: Path, work: dict[str, Any]) -> tuple[Path, str] | None:
    """What to say of a baseline that is no optimizer; None where that is not the problem."""
    if path[0] != "compare" or len(path) != 3 or path[2] != "name":
        return None
    entry = work["compare"][path[1]]
    given = entry.get("name", path[1])
    suggestion = did_you_mean(near(str(given), optimizer_names()))
    if (reason := why_refused(str(given))) is not None:
        return path[: 3 if "name" in entry else 2], reason
    if "name" in entry:
        return path, f"unknown optimizer {shown(given)}.{suggestion}"
    return path[:2], f"{shown(given)} is no optimizer: give its name under {dotted(path)}.{suggestion}"


def _must_be(path: Path, value: Any, task: str, kind: OptimizerKind) -> str:
    key = reference(task, kind).get(tuple(map(str, path)))
    like = near(value, key.choices) if key and isinstance(value, str) else []
    dot = "." if like else ""
    return f"must be {_expected(path, task, kind)}, got {shown(value)}{dot}{did_you_mean(like)}"


_OF_A_SPACE = {
    "low": "a finite number",
    "high": "a finite number",
    "log": "true or false",
    "choices": "a list of values",
}
"""What the keys of an entry under tune.space must be."""


def _expected(path: Path, task: str, kind: OptimizerKind) -> str:
    if path[:2] == ("tune", "space") and len(path) > 3:
        return _OF_A_SPACE.get(str(path[3]), "text") if len(path) == 4 else "a number, text, true, false or null"
    keys = reference(task, kind)
    key = keys.get(tuple(map(str, path)))
    if key:
        return key.expected
    holder = keys.get(tuple(map(str, path[:-1])))
    return holder.items if holder and holder.items else "text"


def _real_path(loc: tuple[int | str, ...], work: dict[str, Any]) -> Path:
    """Where a pydantic location stands in the values: without the tags that it adds for unions and keys."""
    parts = list(loc[1:-1] if loc[-1] == "[key]" else loc[1:])  # The first is the task.
    if parts[:1] == ["optimizer"] and len(parts) > 1:
        del parts[1]
    if parts[:1] == ["compare"] and len(parts) > 2:
        del parts[2]
    path: list[int | str] = []
    value: Any = work
    for index, part in enumerate(parts):
        if isinstance(value, dict):
            path.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            path.append(part)
            value = value[part] if part < len(value) else None
        elif not isinstance(value, list) or index == len(parts) - 1:
            break
    return tuple(path)


def _at(work: dict[str, Any], path: Path) -> Any:
    value: Any = work
    for part in path:
        value = value[part]
    return value
