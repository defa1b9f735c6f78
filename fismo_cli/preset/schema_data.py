"""The data section of a preset, for each task."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator

from fismo_cli.preset.schema_base import Config, Fraction, NonNegative, Positive, PositiveInt, Seed, refuse

__all__ = ["ImageDataConfig", "TextDataConfig", "unused_keys"]

Workers = Annotated[int, Field(ge=0, le=256)]

_SOURCE_KEYS: dict[str, set[str]] = {
    "digits": set(),
    "npz": {"path"},
    "image-folder": {"path", "splits", "skip_unreadable"},
    "torchvision": {"path", "name", "splits", "download"},
    "stdlib-source": set(),
    "text-files": {"path"},
    "huggingface": {
        *("path", "name", "config_name", "splits", "image_column", "label_column", "text_column"),
        "skip_unreadable",
    },
}
"""Which of the keys that not every source uses each source does use."""

_SOME_SOURCES = (
    *("path", "name", "config_name", "splits", "image_column", "label_column", "text_column", "download"),
    "skip_unreadable",
)


def unused_keys(values: Mapping[str, Any]) -> dict[str, str]:
    """The keys of a data section that are set although its source or its tokenizer ignores them, each with why."""
    source = values.get("source")
    found: dict[str, str] = {}
    if isinstance(source, str) and source in _SOURCE_KEYS:
        folder = source == "torchvision" and values.get("name") == "ImageFolder"  # read as the source image-folder
        used = _SOURCE_KEYS[source] | ({"skip_unreadable"} if folder else set())
        ignored = [key for key in _SOME_SOURCES if key in values and key not in used]
        found = {key: f"not used by source {source}" for key in ignored if values[key] != _default(key)}
    if values.get("cache_dir") is not None and values.get("tokenizer", "bytes") == "bytes":
        found["cache_dir"] = "not used by the tokenizer bytes"
    return found


def _default(key: str) -> Any:
    fields = {**TextDataConfig.model_fields, **ImageDataConfig.model_fields}
    return fields[key].default


def _named_classes(weights: Any) -> Any:
    """YAML reads a class called 3 as a number."""
    return {str(name): weight for name, weight in weights.items()} if isinstance(weights, dict) else weights


ClassWeights = Annotated[Literal["balanced"] | dict[str, Positive] | None, BeforeValidator(_named_classes)]


class ImageDataConfig(Config):
    """Images and how they reach the model."""

    source: Literal["digits", "npz", "image-folder", "torchvision", "huggingface"] = Field(
        description="Where the images come from. digits: scikit-learn's, embedded; no download."
    )
    path: str | None = Field(default=None, description="npz: the file. image-folder, torchvision: the folder.")
    name: str | None = Field(
        default=None, description="torchvision: the data set's class, such as CIFAR10. huggingface: the hub name."
    )
    config_name: str | None = Field(default=None, description="huggingface: the configuration of the data set.")
    splits: dict[Literal["train", "validation", "test"], str] = Field(
        default={}, description="huggingface, image-folder: names of the splits where they are not the usual ones."
    )
    skip_unreadable: bool = Field(
        default=False,
        description="image-folder, huggingface: leave out images that cannot be read, with a note; else refuse.",
    )
    image_column: str = Field(default="image", description="huggingface: the column that holds the images.")
    label_column: str = Field(default="label", description="huggingface: the column that holds the labels.")
    download: bool = Field(default=True, description="torchvision: download the data set when it is not there.")
    image_size: PositiveInt = Field(default=224, description="Height and width that the model sees, in pixels.")
    channels: Literal[1, 3] = Field(default=3, description="Channels that the model sees; grey and colour convert.")
    mean: Annotated[tuple[float, ...], Strict(False)] | None = Field(
        default=None, description="Per-channel mean of pixels in 0..1; null: the model's."
    )
    std: Annotated[tuple[Positive, ...], Strict(False)] | None = Field(
        default=None, description="Per-channel deviation; null: the model's."
    )
    interpolation: Literal["nearest", "bilinear", "bicubic"] = Field(
        default="bilinear", description="How images are resized."
    )
    crop: Literal["none", "pad", "random-resized"] = Field(
        default="none",
        description="Training crop. none: resize only. pad: resize, pad by an eighth, random crop. random-resized: "
        "Inception's.",
    )
    crop_scale: Annotated[tuple[Positive, Positive], Strict(False)] = Field(
        default=(0.08, 1.0), description="random-resized: range of the cropped area, as a share of the image's."
    )
    horizontal_flip: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.0, description="Probability of a horizontal flip in training."
    )
    auto_augment: str | None = Field(
        default=None, description="timm's policy string, such as rand-m9-mstd0.5-inc1 or original."
    )
    random_erasing: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.0, description="Probability of erasing a random rectangle in training."
    )
    eval_crop_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=1.0, description="Evaluation: the image is resized to image_size / ratio, then centre-cropped."
    )
    mixup_alpha: NonNegative = Field(default=0.0, description="Mixup's Beta parameter; 0 is off.")
    cutmix_alpha: NonNegative = Field(default=0.0, description="CutMix's Beta parameter; 0 is off.")
    mix_probability: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=1.0, description="Probability that a batch is mixed, when mixup or cutmix is on."
    )
    label_smoothing: Fraction = Field(default=0.0, description="Label smoothing of the training loss.")
    class_weights: ClassWeights = Field(
        default=None,
        description="Weights of classes in the training loss. balanced: in inverse proportion to their training "
        "samples, 1 on average. Names and weights: those left out weigh 1. Evaluation's loss has none.",
        json_schema_extra={"expected": "balanced, or class: weight, or null"},
    )
    balanced_sampling: bool = Field(
        default=False,
        description="Draw each class equally often in training: in an epoch, which is as long as ever, samples of rare "
        "classes come several times, and some of frequent ones not at all.",
    )
    validation_fraction: Fraction = Field(
        default=0.15, description="Share of the training part used for validation, where the source has no such split."
    )
    test_fraction: Fraction = Field(default=0.2, description="Share of all data for the test, where there is no split.")
    split_seed: Seed = Field(default=0, description="Seed of these splits; apart from train.seed.")
    workers: Workers = Field(default=0, description="Data loading processes; 0 loads in place.")

    @model_validator(mode="after")
    def _check(self) -> "ImageDataConfig":
        needs_path = self.source in ("npz", "image-folder", "torchvision")
        needs_name = self.source in ("torchvision", "huggingface")
        wrong_length = f"must have {self.channels} values, one a channel (data.channels)"
        low, high = self.crop_scale
        refuse(
            *_unused(self),
            (needs_path and self.path is None, "path", f"{self.source} needs a path", ("source",)),
            (needs_name and self.name is None, "name", f"{self.source} needs a name", ("source",)),
            (self.mean is not None and len(self.mean) != self.channels, "mean", wrong_length, ("channels",)),
            (self.std is not None and len(self.std) != self.channels, "std", wrong_length, ("channels",)),
            (
                self.balanced_sampling and self.class_weights == "balanced",
                "balanced_sampling",
                "evens out the classes, as data.class_weights: balanced does; choose one of them",
                ("class_weights",),
            ),
            (not low <= high <= 1.0, "crop_scale", f"must be low <= high <= 1, got [{low:g}, {high:g}]", ()),
        )
        return self


class TextDataConfig(Config):
    """Text and how it becomes blocks of tokens."""

    source: Literal["stdlib-source", "text-files", "huggingface"] = Field(
        description="Where the text comes from. stdlib-source: Python's own standard library, embedded; no download."
    )
    path: str | list[str] | None = Field(
        default=None,
        description="text-files: a file, a folder (its *.txt, not hidden ones), a glob pattern, or a list of these.",
    )
    name: str | None = Field(default=None, description="huggingface: the hub name of the data set.")
    config_name: str | None = Field(default=None, description="huggingface: the configuration of the data set.")
    splits: dict[Literal["train", "validation", "test"], str] = Field(
        default={}, description="huggingface: names of the splits where they are not the usual ones."
    )
    text_column: str = Field(default="text", description="huggingface: the column that holds the text.")
    tokenizer: str = Field(
        default="bytes", description="bytes (embedded, 256 tokens and an end-of-text), or a folder or hub name."
    )
    block_size: Annotated[int, Field(ge=2)] = Field(default=256, description="Tokens a training sample predicts.")
    cache_dir: str | None = Field(
        default=None, description="Where tokenised text is kept; null: ~/.cache/fismo. Unused by the byte tokenizer."
    )
    validation_fraction: Fraction = Field(
        default=0.05, description="Share of the documents used for validation, where the source has no such split."
    )
    test_fraction: Fraction = Field(default=0.05, description="Share for the test, where the source has no such split.")
    split_seed: Seed = Field(default=0, description="Seed of these splits; apart from train.seed.")
    workers: Workers = Field(default=0, description="Data loading processes; 0 loads in place.")

    @model_validator(mode="after")
    def _check(self) -> "TextDataConfig":
        needs_path, needs_name = self.source == "text-files", self.source == "huggingface"
        refuse(
            *_unused(self),
            (needs_path and self.path in (None, []), "path", "text-files needs a path", ("source",)),
            (needs_name and self.name is None, "name", "huggingface needs a name", ("source",)),
            (
                self.validation_fraction + self.test_fraction >= 1.0,
                "test_fraction",
                "data.validation_fraction and data.test_fraction must add up to less than 1",
                ("validation_fraction",),
            ),
        )
        return self


def _unused(config: ImageDataConfig | TextDataConfig) -> list[tuple[bool, str, str, tuple[str, ...]]]:
    unused = unused_keys(config.model_dump())
    return [(True, key, why, ("tokenizer" if key == "cache_dir" else "source",)) for key, why in unused.items()]
