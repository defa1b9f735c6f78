"""timm models: built from scratch, from timm's weights, from a file or a folder; saved so that timm loads them."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fismo_cli.errors import UsageError, first_line
from fismo_cli.hub import reachable
from fismo_cli.preset.schema import ModelConfig
from fismo_cli.weights_file import read_weights, without_prefix
from fismo_cli.words import listed

__all__ = [
    "build",
    "load_directory",
    "load_saved",
    "model_statistics",
    "save_directory",
    "saved_classes",
    "size_arguments",
]

_HUB_PREFIXES = ("hf-hub:", "hf_hub:")
_WEIGHTS_OPTIONS = {
    "cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_custom_load",
    "pretrained_filter_fn", "pretrained_strict", "state_dict",
}  # fmt: skip
_BUILDER_OPTIONS = {
    "exportable", "feature_cfg", "feature_cls", "features_only", "kwargs_filter", "model_cfg", "model_cls",
    "model_name", "no_jit", "out_indices", "pruned", "scriptable", "variant",
}  # fmt: skip
_REMEDY = "give a folder or a weights file as model.pretrained, or set it to false"


def _is_hub_name(name: str) -> bool:
    return name.startswith(_HUB_PREFIXES)


def _pretrained_config(name: str) -> Mapping[str, Any]:
    """timm's record of a model's weights and input, without building the model."""
    import timm
    from timm.models import get_pretrained_cfg

    if _is_hub_name(name):
        from timm.models import load_model_config_from_hf

        with reachable(f"the model {name}", "model.name", "give the name of a model that timm has"):
            return dict(load_model_config_from_hf(name.split(":", 1)[1])[0])
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        close = difflib.get_close_matches(base, timm.list_models(), n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() has their names"
        raise UsageError(f"model.name: timm has no model {name}; {hint}")
    known = timm.list_pretrained(f"{base}.*") if tag else []
    if tag and name not in known:
        raise UsageError(f"model.name: timm has no weights {tag} of {base}; it has {', '.join(known) or 'none'}")
    config: Any = get_pretrained_cfg(name, allow_unregistered=True)
    return config.to_dict() if config is not None else {}


def model_statistics(model: ModelConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pixels that a model expects: those it was trained with, else timm's for it.

    Raises:
        UsageError: timm does not know the model.
    """
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    config = _pretrained_config(model.name)
    if isinstance(model.pretrained, str) and (folder := _model_folder(Path(model.pretrained).expanduser())) is not None:
        config = {**config, **_read_config(folder).get("pretrained_cfg", {})}
    return tuple(config.get("mean") or IMAGENET_DEFAULT_MEAN), tuple(config.get("std") or IMAGENET_DEFAULT_STD)


def size_arguments(model: ModelConfig, image_size: int) -> dict[str, int]:
    """`img_size`, where the model's input size is fixed when it is built and `model.args` does not set it.

    Raises:
        UsageError: `model.args.img_size` contradicts `data.image_size`, or timm does not know the model.
    """
    config = _pretrained_config(model.name)
    given = model.args.get("img_size")
    if given is None:
        return {"img_size": image_size} if config.get("fixed_input_size") else {}
    sides = list(given) if isinstance(given, Sequence) else [given, given]
    if sides != [image_size, image_size] and not model.args.get("dynamic_img_size"):
        raise UsageError(f"model.args.img_size is {given}, but data.image_size is {image_size}; make them equal")
    return {}


def build(
    model: ModelConfig, data_args: Mapping[str, Any], classes: Sequence[str] | None
) -> tuple[nn.Module, list[str]]:
    """The model and notes on what had to be adapted.

    Args:
        model: The preset's model.
        data_args: What the data fixes (num_classes, in_chans, img_size); `model.args` wins over it.
        classes: The data's class names; a saved model with other names gets a new head.

    Raises:
        UsageError: timm does not know the model or an argument, or the weights are missing or do not fit.
    """
    _refuse_builder_options(model.args)
    args = {**data_args, **model.args}
    if model.pretrained is False:
        _pretrained_config(model.name)  # names the mistake where timm would not
        return _create(model.name, args), []
    if model.pretrained is True:
        config = _pretrained_config(model.name)
        with reachable(f"the weights of {model.name}", "model.pretrained", _REMEDY):
            network = _create(model.name, args, pretrained=True)
        notes = []
        if config.get("num_classes") not in (None, args["num_classes"]):
            notes.append(f"new head: the weights have {config['num_classes']} classes, the data {args['num_classes']}")
        return network, notes
    path = Path(str(model.pretrained)).expanduser()
    folder = _model_folder(path)
    if folder is None and not path.is_file():
        raise UsageError(f"model.pretrained: {path} is no weights file, run directory or model folder")
    record = _read_config(folder) if folder is not None else {}
    if record.get("architecture") not in (None, model.name.partition(".")[0]):
        raise UsageError(f"model.name is {model.name}, but {folder} holds {record['architecture']}")
    source = path if folder is None else folder / "model.safetensors"
    saved_classes = record.get("label_names")
    return _from_weights(model, args, source, classes if saved_classes else None, saved_classes)


def _refuse_builder_options(args: Mapping[str, Any]) -> None:
    """Refuse what is an option of timm's builder rather than of the model: it would contradict what is done here."""
    for key in args:
        if key in _WEIGHTS_OPTIONS:
            raise UsageError(f"model.args.{key}: which weights are loaded is said by model.pretrained; leave it out")
        if key in _BUILDER_OPTIONS:
            raise UsageError(f"model.args.{key}: an option of timm's builder, not an argument of the model")


def _from_weights(
    model: ModelConfig,
    args: dict[str, Any],
    source: Path,
    classes: Sequence[str] | None,
    saved_classes: Sequence[str] | None,
) -> tuple[nn.Module, list[str]]:
    """Load weights strictly into a model with the weights' own classes, then give it a new head where needed.

    timm's own way with another number of classes is a lenient load, which would let a wrong file pass unnoticed.
    """
    weights = _read_weights(source)
    heads = _heads(model.name)
    head_weight = weights.get(f"{heads[0]}.weight") if heads else None
    source_classes = len(head_weight) if head_weight is not None else args["num_classes"]
    try:
        network = _load_strictly(model.name, {**args, "num_classes": source_classes}, weights, source)
    except _DoesNotFit as error:
        if not error.lacks_only(heads):
            raise
        fresh = _create(model.name, args).state_dict()
        complete = {**weights, **{name: fresh[name] for name in error.missing}}
        return _load_strictly(model.name, args, complete, source), ["new head: the weights have none"]
    if source_classes == args["num_classes"] and (classes is None or list(classes) == list(saved_classes or ())):
        return network, []
    reset = getattr(network, "reset_classifier", None)
    if reset is None:
        raise UsageError(f"model.pretrained: {model.name} cannot get a new head, and {source} is for other classes")
    reset(args["num_classes"])
    pretrained_cfg: Any = network.pretrained_cfg
    pretrained_cfg["num_classes"] = args["num_classes"]
    reason = (
        f"the weights have {source_classes} classes, the data {args['num_classes']}"
        if source_classes != args["num_classes"]
        else "the weights were trained on classes of other names"
    )
    return network, [f"new head: {reason}"]


class _DoesNotFit(UsageError):
    """Weights are not those of the model.

    Args:
        what: the file and the model.
        error: what torch says.

    Attributes:
        missing: names that the file lacks, if that is all.
    """

    def __init__(self, what: str, error: RuntimeError) -> None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        problems = lines[1:] or lines
        self.missing = _quoted(problems[0]) if problems[0].startswith("Missing") and len(problems) == 1 else []
        super().__init__(f"{what}: {'; '.join(map(_in_words, problems[:2]))}")

    def lacks_only(self, modules: Sequence[str]) -> bool:
        """Whether nothing is wrong but that these modules are missing."""
        return bool(self.missing) and all(name.startswith(tuple(f"{m}." for m in modules)) for name in self.missing)


def _quoted(line: str) -> list[str]:
    return line.split('"')[1::2]


def _in_words(line: str) -> str:
    """A line of torch's `load_state_dict` without the thousand names that it may list."""
    if line.startswith("Missing"):
        return f"it lacks {listed(_quoted(line))}"
    if line.startswith("Unexpected"):
        return f"it has {listed(_quoted(line))}, which the model has not"
    return line


def _heads(name: str) -> list[str]:
    heads = _pretrained_config(name).get("classifier") or []
    return [heads] if isinstance(heads, str) else list(heads)


def _load_strictly(name: str, args: Mapping[str, Any], weights: dict[str, Tensor], source: Path) -> nn.Module:
    stem = _pretrained_config(name).get("first_conv")
    stem_weight = weights.get(f"{stem}.weight") if isinstance(stem, str) else None
    # timm adapts colour stems to grey and the reverse, and resizes position embeddings, when told what the file has.
    channels = stem_weight.shape[1] if stem_weight is not None and stem_weight.ndim == 4 else args["in_chans"]
    overlay: dict[str, Any] = {"state_dict": weights, "num_classes": args["num_classes"], "source": ""}
    if channels in (1, 3):
        size = _pretrained_config(name).get("input_size") or (3, 224, 224)
        overlay["input_size"] = (channels, *size[1:])
    try:
        network = _create(name, args, pretrained=True, pretrained_cfg_overlay=overlay)
    except RuntimeError as error:
        raise _DoesNotFit(f"model.pretrained: {source} does not fit {name} with these model.args", error) from error
    pretrained_cfg: Any = network.pretrained_cfg
    pretrained_cfg["state_dict"] = None  # else the weights stay in memory, and in a copy of the model, for good
    return network


def _create(name: str, args: Mapping[str, Any], **options: Any) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, **options, **args)
    except TypeError as error:
        text = str(error)
        if "unexpected keyword argument" in text:
            key = text.rsplit("'", 2)[-2]
            raise UsageError(f"model.args.{key}: {name} has no such argument") from error
        raise UsageError(f"model.args: timm cannot build {name} from them: {text}") from error
    except RuntimeError as error:
        if options.get("pretrained"):
            raise  # about the weights; the caller knows which
        raise UsageError(f"model.args: timm cannot build {name} from {dict(args)}: {first_line(error)}") from error
    except (AssertionError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise UsageError(f"model.args: timm cannot build {name} from {dict(args)}: {first_line(error)}") from error


def _model_folder(path: Path) -> Path | None:
    """The model folder that a path means: itself, or `model/` of a run directory."""
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    return None


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / 'config.json'}: not readable as JSON ({error})") from error
    if not isinstance(config, dict) or "architecture" not in config:
        raise UsageError(f"{folder / 'config.json'}: not the configuration of a timm model")
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    """As others wrap timm's models, too; no model of timm's has these prefixes itself."""
    return without_prefix(without_prefix(read_weights(path), "model."), "timm_model.")


def saved_classes(path: Path) -> list[str] | None:
    """The names of a saved model's classes; None if there is no model, or it does not say.

    Raises:
        UsageError: Its configuration cannot be read.
    """
    folder = _model_folder(path)
    names = _read_config(folder).get("label_names") if folder is not None else None
    return [str(name) for name in names] if names else None


def load_directory(
    path: Path,
    data_args: Mapping[str, Any],
    classes: Sequence[str] | None,
    statistics: Mapping[str, Sequence[float]],
) -> nn.Module:
    """A saved model as it was saved, for evaluation: nothing is adapted.

    Args:
        path: A run directory or its `model/`.
        data_args: What the data fixes, as for `build`.
        classes: The data's class names.
        statistics: `mean` and `std` of the data as far as the preset leaves them to the model.

    Raises:
        UsageError: There is no complete model, or it is for other classes, channels, size or statistics of pixels than
            the data has.
    """
    folder, record, args = _saved(path)
    keys = ("num_classes", "in_chans") if args.get("dynamic_img_size") else ("num_classes", "in_chans", "img_size")
    for key in keys:
        if key in args and data_args.get(key, args[key]) != args[key]:
            raise UsageError(f"{folder}: the model has {key} {args[key]}, but the data gives {data_args[key]}")
    for key, values in statistics.items():
        trained_with = record.get("pretrained_cfg", {}).get(key)
        if trained_with and list(trained_with) != list(values):
            raise UsageError(
                f"{folder}: the model was trained with the {key} {trained_with}, but model.name and model.pretrained "
                f"now give {list(values)}; set data.{key} to the former"
            )
    saved = record.get("label_names")
    if saved and classes and list(saved) != list(classes):
        raise UsageError(f"{folder}: the model was trained on other classes ({listed(saved, 5)}) than the data's")
    return _load_strictly(record["architecture"], args, _read_weights(folder / "model.safetensors"), folder)


def load_saved(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A saved model, and what is recorded of it: `label_names`, and what it sees in `pretrained_cfg`.

    Args:
        path: A run directory or its `model/`.

    Raises:
        UsageError: There is no complete model.
    """
    folder, record, args = _saved(path)
    return _load_strictly(record["architecture"], args, _read_weights(folder / "model.safetensors"), folder), record


def _saved(path: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The folder of a saved model, what is recorded of it, and the arguments that it is built with."""
    folder = _model_folder(path)
    if folder is None:
        raise UsageError(f"{path}: no trained timm model (config.json and model.safetensors) in it or in its model/")
    record = _read_config(folder)
    channels = record.get("pretrained_cfg", {}).get("input_size", [3])[0]
    classes = {"num_classes": record["num_classes"]} if "num_classes" in record else {}
    return folder, record, {**classes, "in_chans": channels, **record.get("model_args", {})}


def save_directory(
    network: nn.Module, directory: Path, args: Mapping[str, Any], name: str, description: Mapping[str, Any], size: int
) -> None:
    """Write weights and configuration in the form that timm's `local-dir:` and `hf-hub:` names load.

    Args:
        network: The model.
        directory: An existing, empty folder.
        args: The arguments that the model was built with.
        name: Its name in timm.
        description: The task's description (classes, mean, std), with interpolation and crop_pct of its evaluation
            transform.
        size: Height and width of its images.
    """
    from safetensors.torch import save_model

    save_model(network, str(directory / "model.safetensors"))
    own: Any = getattr(network, "pretrained_cfg", {})
    kept = ("fixed_input_size", "first_conv", "classifier", "pool_size")
    config = {
        "architecture": own.get("architecture") or name.partition(".")[0],
        "num_classes": args["num_classes"],
        "in_chans": args["in_chans"],
        "num_features": getattr(network, "num_features", None),
        # transformers gives the classes as well; a second value would be one too many.
        "model_args": {key: value for key, value in args.items() if key != "num_classes"},
        "label_names": list(description.get("classes", [])),
        "pretrained_cfg": {
            **{key: own[key] for key in kept if own.get(key) is not None},
            "input_size": [args["in_chans"], size, size],
            "num_classes": args["num_classes"],
            "mean": list(description.get("mean", [])),
            "std": list(description.get("std", [])),
            "interpolation": description.get("interpolation", "bicubic"),
            "crop_pct": description.get("crop_pct", 1.0),
            "crop_mode": "center",
            "custom_load": False,
        },
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
