"""Who is compared: the preset's optimizer and the baselines, alike in everything else (point 1 of the protocol)."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fismo_cli.preset.loading import LoadedPreset
from fismo_cli.preset.nested import without
from fismo_cli.preset.optimizer_names import (
    COUPLED_DECAY,
    NO_WEIGHT_DECAY,
    is_optimizer_name,
    optimizer_names,
    takes_matrices,
    why_refused,
)
from fismo_cli.preset.overrides import FORM_KEYS
from fismo_cli.preset.schema import FismoConfig, Preset, plain, preset_adapter
from fismo_cli.preset.settings import with_settings
from fismo_cli.preset.suggestions import did_you_mean, near
from fismo_cli.tuning.search_space import Space, compared_space

__all__ = ["Contender", "folder_name", "make_contenders"]

SECTIONS = {"metric", "polar", "adamw"}
"""Keys of an optimizer section that have keys of their own."""

_PLAIN = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,59}")
_HASHED = re.compile(r"(^|-)[0-9a-f]{8}$|[.]$")


@dataclass(frozen=True)
class Contender:
    """An optimizer with its settings, as the preset of its run with the first seed, and the name of its folders."""

    label: str
    loaded: LoadedPreset
    folder: str

    @property
    def space(self) -> Space:
        """Where its settings are tuned."""
        preset = self.loaded.preset
        return compared_space(preset.optimizer, preset.tune.range)

    def run(self, seed: int, settings: Mapping[str, Any] | None = None) -> LoadedPreset:
        """The preset of one run, with settings that were drawn from its space, where there are some."""
        values = self.loaded.preset.model_dump()
        values["train"]["seed"] = seed
        if settings is not None:
            values = with_settings(values, settings)
        return replace(self.loaded, preset=preset_adapter.validate_python(values))

    def tuning_problems(self) -> list[str]:
        """Why it cannot be tuned."""
        try:
            return [] if self.space else [f"--tune-trials: there is nothing to tune of {self.label}"]
        except ValueError as error:
            return [f"--tune-trials: {self.label}: {error}"]


def make_contenders(loaded: LoadedPreset, baselines: Sequence[str]) -> tuple[list[Contender], list[str]]:
    """The candidate and the baselines that could be made, and what is wrong with the others."""
    preset = loaded.preset
    problems: list[str] = []
    base = preset.model_copy(update={"compare": {}})
    own = preset.optimizer.name
    contenders = [Contender(own, replace(loaded, preset=base, notes=()), folder_name(own))]
    if not baselines:
        problems.append("--baselines: name at least one, such as --baselines adam muon")
    known = {*preset.compare, *optimizer_names()}
    for label in baselines:
        taken = {contender.label for contender in contenders}
        if label == contenders[0].label:
            problems.append(
                f"--baselines {label}: that is the optimizer the baselines are compared with; for other settings of it "
                f"name a variant: 'compare.other={{name: {label}, ...}}' --baselines other"
            )
        elif label in taken:
            problems.append(f"--baselines {label}: named twice")
        elif label not in preset.compare and (reason := why_refused(label)) is not None:
            problems.append(f"--baselines {label}: {reason}")
        elif label not in preset.compare and not is_optimizer_name(label):
            hint = did_you_mean(near(label, known, count=2))
            hint = hint or " (a preset goes before --baselines)" if label.endswith(".yaml") else hint
            problems.append(f"--baselines {label}: no optimizer of this name, and no entry under compare.{hint}")
        else:
            try:
                baseline = replace(loaded, preset=_baseline(preset, label), notes=())
                contenders.append(Contender(label, baseline, folder_name(label)))
            except ValueError as error:
                problems.append(f"--baselines {label}: {str(error).splitlines()[-1].strip()}")
    return contenders, problems


def folder_name(label: str) -> str:
    """A folder's name for a label: another one for every label, on any file system.

    A label that is a plain name in small letters is its own; any other has a part of its hash behind it.
    """
    if _PLAIN.fullmatch(label) and not _HASHED.search(label):
        return label
    plain = re.sub(r"[^a-z0-9._-]+", "-", label.lower()).strip("-.")[:40]
    return f"{plain}-{hashlib.sha256(label.encode()).hexdigest()[:8]}".lstrip("-")


def _baseline(preset: Preset, label: str) -> Preset:
    """The preset with a baseline in the candidate's place; what sets matrices apart is the same for all."""
    config = preset.compare.get(label)
    name = label if config is None else config.name
    given = {} if config is None else config.model_dump(exclude_unset=True)
    candidate = preset.optimizer
    shared: dict[str, Any] = {
        "adamw": plain(candidate.adamw),
        "weight_decay_on": candidate.weight_decay_on,
        "layer_decay": candidate.layer_decay,
        "variance_reduction": candidate.variance_reduction,
        "mars_gamma": candidate.mars_gamma,
    }
    if name not in COUPLED_DECAY | NO_WEIGHT_DECAY:
        shared["weight_decay"] = candidate.weight_decay
    if takes_matrices(name):
        shared["rules"] = dict(candidate.rules)
    if name == candidate.name:  # a variant: what it does not say is the candidate's
        shared = candidate.model_dump()
        form = given.get("form")
        if isinstance(candidate, FismoConfig) and form is not None and form != candidate.form:
            for key in FORM_KEYS:
                shared = without(shared, key)
    for section in SECTIONS & shared.keys() & given.keys():  # key by key: what it does not say is the candidate's
        given[section] = {**shared[section], **given[section]}
    values = {**preset.model_dump(), "optimizer": {**shared, **given, "name": name}, "compare": {}}
    return preset_adapter.validate_python(values)
