"""Models of a preset: built, saved whole or not at all, and loaded again.

Dispatches to `timm_models` and `transformers_models`, so that neither library is imported for the other's presets.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from fismo_cli.errors import UsageError
from fismo_cli.files import whole_directory, whole_file
from fismo_cli.freezing import freeze
from fismo_cli.lora import add_adapters, merged, save_adapters
from fismo_cli.preset.loading import load_preset
from fismo_cli.preset.schema import ImagePreset, Preset
from fismo_cli.tasks.base import Task

__all__ = [
    "build_model",
    "build_untrained",
    "load_model_dir",
    "model_notes",
    "save_flat",
    "save_model",
    "saved_classes",
]

_NOTES = "fismo_notes"


def build_model(preset: Preset, task: Task) -> nn.Module:
    """The model of a preset: float32, on the CPU, in training mode. The caller has seeded torch.

    Where pretrained weights had to be adapted (a new head for other classes), or parts are frozen, `model_notes` says
    so.

    Raises:
        UsageError: The library does not know the model or an argument, its weights cannot be had or do not fit, or
            what is to be frozen is not there.
    """
    if preset.model.library == "timm":
        from fismo_cli import timm_models

        model, notes = timm_models.build(preset.model, task.model_args, _classes(task))
    else:
        from fismo_cli import transformers_models

        block_size = 1 if isinstance(preset, ImagePreset) else preset.data.block_size
        tokenizer = getattr(task, "tokenizer", None)
        model, notes = transformers_models.build(preset.model, task.model_args, block_size, tokenizer)
    model = model.float().train()
    notes = [*notes, *freeze(model, preset.model.freeze)]
    if preset.model.lora is not None:
        notes.append(add_adapters(model, preset.model.lora))
    setattr(model, _NOTES, notes)
    return model


def build_untrained(preset: Preset, task: Task) -> nn.Module:
    """The same model with random weights, for others to be loaded: of one that begins from a folder's, as that is."""
    changes: dict[str, object] = {"pretrained": False}
    if preset.model.library == "transformers" and isinstance(preset.model.pretrained, str):
        from fismo_cli.transformers_models import model_folder

        path = Path(preset.model.pretrained).expanduser()
        if path.is_dir():
            changes["name"] = str(model_folder(path, "model.pretrained"))
    return build_model(preset.model_copy(update={"model": preset.model.model_copy(update=changes)}), task)


def model_notes(model: nn.Module) -> list[str]:
    """What `build_model` had to adapt and what it froze, in sentences for the user; usually nothing."""
    return list(getattr(model, _NOTES, []))


def save_model(model: nn.Module, preset: Preset, task: Task, directory: Path) -> None:
    """Write a model to a folder in its library's own format; a folder that is there is replaced.

    transformers: `save_pretrained`, with the tokenizer; LoRA's adapters merged, and by themselves in `adapter`. timm:
    what its `local-dir:` names load.

    Args:
        model: As `build_model` returned it: not compiled, not wrapped for several processes.
        preset: Its preset.
        task: Its task.
        directory: The folder, `RUN_DIR/model` by convention.
    """
    with whole_directory(directory) as temporary:
        if isinstance(preset, ImagePreset):
            from fismo_cli import timm_models

            args = {**task.model_args, **preset.model.args}
            # How evaluation resizes and crops belongs to the weights, as mean and deviation do.
            resizing = {"interpolation": preset.data.interpolation, "crop_pct": preset.data.eval_crop_ratio}
            description = {**task.description, **resizing}
            timm_models.save_directory(model, temporary, args, preset.model.name, description, preset.data.image_size)
        else:
            from fismo_cli import transformers_models

            transformers_models.save_directory(merged(model), temporary, getattr(task, "tokenizer", None))
            if preset.model.lora is not None:
                save_adapters(model, temporary / "adapter", preset.model)


def save_flat(model: nn.Module, path: Path) -> None:
    """Write all weights, LoRA's adapters merged, to one safetensors file.

    Of tensors that are one and the same (tied weights) one is written; the metadata maps the other names to it, as
    `safetensors.torch.load_model` understands.
    """
    from safetensors.torch import save_model as save_safetensors

    with whole_file(path) as temporary:
        save_safetensors(merged(model), str(temporary))


def load_model_dir(run_or_model_dir: Path, preset: Preset, task: Task) -> nn.Module:
    """A saved model (a run directory or its `model/`), exactly as saved, in evaluation mode.

    Raises:
        UsageError: There is no complete model there, the preset's model section is not its run's, or it is for other
            classes, channels, statistics of pixels, or another tokenizer.
    """
    _refuse_other_model(run_or_model_dir, preset)
    if isinstance(preset, ImagePreset):
        from fismo_cli import timm_models

        left_open = [key for key in ("mean", "std") if getattr(preset.data, key) is None and key in task.description]
        statistics = {key: task.description[key] for key in left_open}
        network = timm_models.load_directory(run_or_model_dir, task.model_args, _classes(task), statistics)
        return network.float().eval()
    from fismo_cli import transformers_models

    tokenizer = getattr(task, "tokenizer", None)
    network = transformers_models.load_directory(run_or_model_dir, task.model_args, preset.data.block_size, tokenizer)
    return network.float().eval()


def saved_classes(run_or_model_dir: Path, preset: Preset) -> list[str] | None:
    """The names of a saved model's classes, in the order of its outputs; None if it has none.

    Raises:
        UsageError: Its configuration cannot be read.
    """
    if not isinstance(preset, ImagePreset):
        return None
    from fismo_cli import timm_models

    return timm_models.saved_classes(run_or_model_dir)


def _refuse_other_model(run_dir: Path, preset: Preset) -> None:
    """The saved model is loaded as it is: a model section that says otherwise (an override) would be ignored."""
    if not (run_dir / "preset.yaml").is_file():
        return
    trained, asked = load_preset(str(run_dir / "preset.yaml")).preset.model.model_dump(), preset.model.model_dump()
    for key in ("library", "name", "pretrained"):
        if trained[key] != asked[key]:
            raise UsageError(
                f"model.{key} is {asked[key]}, but {run_dir} was trained with {trained[key]}; leave it out"
            )
    for key in sorted({*trained["args"], *asked["args"]}):
        before, now = (args.get(key, "not set") for args in (trained["args"], asked["args"]))
        if before != now:
            raise UsageError(f"model.args.{key} is {now}, but {run_dir} was trained with {before}; leave it out")


def _classes(task: Task) -> Sequence[str] | None:
    return task.description.get("classes")
