"""The model card that a run leaves beside its model, and the lines of Python that load it. Never imports torch."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from fismo_cli.files import whole_file
from fismo_cli.metrics import shown
from fismo_cli.preset.loading import LoadedPreset, resolved_yaml
from fismo_cli.preset.schema import Preset

__all__ = ["loading_lines", "write_model_card"]

_TASKS = {"image-classification": "image-classification", "language-modelling": "text-generation"}
"""A task's name on the Hugging Face hub."""

_METRICS = {"top1": "accuracy", "perplexity": "perplexity"}
"""Metrics' names there; those that it does not know have their own."""


def loading_lines(task: str, folder: Path) -> list[str]:
    """Three lines of Python that load a model.

    Args:
        task: That it was trained for.
        folder: Where it is.
    """
    if task == "image-classification":
        return [
            "import timm",
            f'model = timm.create_model("local-dir:{folder}", pretrained=True).eval()',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        ]
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'model = AutoModelForCausalLM.from_pretrained("{folder}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
    ]


def write_model_card(
    folder: Path, loaded: LoadedPreset, data: Mapping[str, Any], metrics: Mapping[str, Mapping[str, float] | None]
) -> None:
    """Write `README.md` as the Hugging Face hub has it: what the model is, how it was trained, and how to load it.

    Args:
        folder: Of the model.
        loaded: The preset that it was trained by.
        data: The task's description of the data.
        metrics: Of each part, as far as they are known.
    """
    preset = loaded.preset
    measured = {part: values for part, values in metrics.items() if part != "train" and values}
    content = [
        "---",
        yaml.safe_dump(_header(loaded.name, preset, measured), sort_keys=False).rstrip(),
        "---",
        f"# {loaded.name}",
        "",
        f"{preset.model.name}, trained by `fismo train` {_version()}with the optimizer {preset.optimizer.name} "
        f"({_start(preset)}).",
        "",
        *_results(measured),
        "## Load it",
        "",
        "```python",
        *loading_lines(preset.task, Path()),
        "```",
        "",
        f"The dot is this folder. {_input(preset, data)}",
        "",
        "## How it was trained",
        "",
        "`fismo train preset.yaml` with this as `preset.yaml` trains it again:",
        "",
        "```yaml",
        resolved_yaml(loaded).rstrip(),
        "```",
        "",
    ]
    with whole_file(folder / "README.md") as file:
        file.write_text("\n".join(content), encoding="utf-8")


def _header(name: str, preset: Preset, measured: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    task = _TASKS[preset.task]
    data: dict[Any, Any] = {"name": preset.data.source, "type": preset.data.source}
    results: list[dict[str, Any]] = [
        {
            "task": {"type": task},
            "dataset": {**data, "split": part},
            "metrics": [
                {"type": _METRICS.get(metric, metric), "name": metric, "value": value}
                for metric, value in values.items()
            ],
        }
        for part, values in measured.items()
    ]
    index = {"model-index": [{"name": name, "results": results}]} if results else {}
    tags = list(dict.fromkeys(["fismo", preset.optimizer.name]))
    return {"library_name": preset.model.library, "pipeline_tag": task, "tags": tags, **index}


def _version() -> str:
    try:
        return f"{version('fismo')} "
    except PackageNotFoundError:
        return ""


def _start(preset: Preset) -> str:
    pretrained = preset.model.pretrained
    if pretrained is False:
        return "from random weights"
    return "from the library's own weights" if pretrained is True else f"from the weights in {pretrained}"


def _results(measured: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not measured:
        return []
    names = list(dict.fromkeys(name for values in measured.values() for name in values))
    rows = [
        f"| {part} | " + " | ".join(shown(name, values[name]) if name in values else "" for name in names) + " |"
        for part, values in measured.items()
    ]
    return [f"| | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}", *rows, ""]


def _input(preset: Preset, data: Mapping[str, Any]) -> str:
    if preset.task == "image-classification":
        classes = list(data.get("classes", []))
        text = f"It sees images of {preset.data.image_size} x {preset.data.image_size} pixels"
        grey = preset.data.channels == 1
        text += ", grey (transformers' pipelines give colour ones)." if grey else "."
        return f"{text} Classes: {', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''}."
    return f"It sees {preset.data.block_size} tokens, made by {data.get('tokenizer')}."
