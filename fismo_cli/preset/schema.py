"""The preset schema: every key that a YAML preset may have, its type, range, default and meaning.

Pure pydantic: never imports torch, so that `fismo validate` is instant. All models are frozen and refuse unknown keys.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    TypeAdapter,
    model_validator,
)

from fismo_cli.preset.optimizer_names import is_optimizer_name

__all__ = [
    "AdamWConfig",
    "BaselineConfig",
    "FismoConfig",
    "ImageDataConfig",
    "ImagePreset",
    "KeyedError",
    "ModelConfig",
    "OptimizerConfig",
    "Preset",
    "TextDataConfig",
    "TextPreset",
    "TrainConfig",
    "preset_adapter",
]

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
PositiveInt = Annotated[int, Field(ge=1)]
# Strict about their items, but YAML has lists only, so the tuples themselves accept one.
Betas = Annotated[tuple[Fraction, Fraction], Strict(False)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what numpy takes

Problem = tuple[str, str, tuple[str, ...]]
"""The key that a cross-field problem belongs to, what is wrong, and the other keys that were looked at."""


class KeyedError(ValueError):
    """Cross-field problems, each of which belongs to one key of the part being validated."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{key}: {message}" for key, message, _ in problems))
        self.problems = problems


def _refuse(*checks: tuple[bool, str, str, tuple[str, ...]]) -> None:
    """Raise one KeyedError with every `(wrong, key, message, other keys looked at)` that is wrong."""
    problems = [(key, message, others) for wrong, key, message, others in checks if wrong]
    if problems:
        raise KeyedError(problems)


class Config(BaseModel):
    """Base of every part of a preset: frozen, no unknown keys, no silent conversion of strings to numbers."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
    )


class ModelConfig(Config):
    """Which network to build."""

    library: Literal["timm", "transformers"] = Field(description="The library that builds the model.")
    name: str = Field(
        min_length=1,
        description="timm: a model name. transformers: an architecture (model_type), a local folder or a hub name.",
    )
    args: dict[str, Any] = Field(
        default={}, description="Passed to timm's builder, or set on the transformers configuration."
    )
    pretrained: bool | str = Field(
        default=False,
        description="false: random weights. true: the library's own. A path: a run directory, a model folder or a "
        "weights file.",
    )


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
    validation_fraction: Fraction = Field(
        default=0.15, description="Share of the training part used for validation, where the source has no such split."
    )
    test_fraction: Fraction = Field(default=0.2, description="Share of all data for the test, where there is no split.")
    split_seed: Seed = Field(default=0, description="Seed of these splits; apart from train.seed.")
    workers: Annotated[int, Field(ge=0)] = Field(default=0, description="Data loading processes; 0 loads in place.")

    @model_validator(mode="after")
    def _check(self) -> "ImageDataConfig":
        needs_path = self.source in ("npz", "image-folder", "torchvision")
        needs_name = self.source in ("torchvision", "huggingface")
        wrong_length = f"must have {self.channels} values, one a channel (data.channels)"
        low, high = self.crop_scale
        _refuse(
            (needs_path and self.path is None, "path", f"{self.source} needs a path", ("source",)),
            (needs_name and self.name is None, "name", f"{self.source} needs a name", ("source",)),
            (self.mean is not None and len(self.mean) != self.channels, "mean", wrong_length, ("channels",)),
            (self.std is not None and len(self.std) != self.channels, "std", wrong_length, ("channels",)),
            (not low <= high <= 1.0, "crop_scale", f"must be low <= high <= 1, got [{low:g}, {high:g}]", ()),
        )
        return self


class TextDataConfig(Config):
    """Text and how it becomes blocks of tokens."""

    source: Literal["stdlib-source", "text-files", "huggingface"] = Field(
        description="Where the text comes from. stdlib-source: Python's own standard library, embedded; no download."
    )
    path: str | list[str] | None = Field(
        default=None, description="text-files: a file, a folder (its *.txt files), a glob pattern, or a list of these."
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
    workers: Annotated[int, Field(ge=0)] = Field(default=0, description="Data loading processes; 0 loads in place.")

    @model_validator(mode="after")
    def _check(self) -> "TextDataConfig":
        needs_path, needs_name = self.source == "text-files", self.source == "huggingface"
        _refuse(
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


def _regular_expressions(rules: dict[str, Literal["matrix", "adamw"]]) -> dict[str, Literal["matrix", "adamw"]]:
    for pattern in rules:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f'"{pattern}" is not a regular expression: {error}') from error
    return rules


Rules = Annotated[dict[str, Literal["matrix", "adamw"]], AfterValidator(_regular_expressions)]


class AdamWConfig(Config):
    """AdamW for the parameters that a matrix optimizer does not treat: embeddings, heads, norms, biases."""

    lr: Positive = Field(default=3e-3, description="Learning rate.")
    betas: Betas = Field(default=(0.9, 0.95), description="Decay of the first and second moment.")
    eps: Positive = Field(default=1e-8, description="Added to the root of the second moment.")
    weight_decay: NonNegative = Field(default=0.0, description="Decoupled weight decay.")


PAPER_FORM: dict[str, Any] = {
    "power": 0.5,
    "damping_scale": "absolute",
    "momentum_space": "whitened",
    "nesterov": False,
    "refresh_interval": 1,
    "shape_scale": "none",
    "grafting": False,
}
"""What defines the paper's form; equal to `fismo_core.PAPER_FORM` (a test holds them together)."""

PAPER_DEFAULTS: dict[str, Any] = {"damping": 1e-3, "polar_steps": 5}
"""Defaults that are other ones in the paper's form, which leaves them open."""


class FismoConfig(Config):
    """The FISMO optimizer. Every key is an argument of `fismo_core.FISMO`, where it is explained in full."""

    name: Literal["fismo"] = Field(description="The optimizer.")
    form: Literal["default", "paper"] = Field(
        default="default", description="paper: the published algorithm to the letter; fixes the keys that define it."
    )
    trust_radius: Positive = Field(default=0.02, description="FISMO's learning rate: the length of a step.")
    momentum: Fraction = Field(default=0.95, description="Decay of the momentum.")
    nesterov: bool = Field(default=True, description="Look ahead by one momentum step.")
    momentum_space: Literal["raw", "whitened"] = Field(default="raw", description="Where the momentum is averaged.")
    power: Annotated[float, Field(ge=0.0, le=0.5)] = Field(
        default=0.25, description="Power of the inverse Fisher factors on each side; 1/2 is the paper's, 0 is Muon."
    )
    damping: NonNegative = Field(default=0.1, description="Added to the Fisher factors.")
    damping_scale: Literal["relative", "absolute"] = Field(
        default="relative", description="relative: to factors of scale-free statistics. absolute: as the paper has it."
    )
    fisher_decay: Fraction = Field(default=0.95, description="Decay of the Fisher factors.")
    refresh_interval: PositiveInt = Field(default=5, description="Steps between new roots of the factors.")
    polar: Literal["quintic", "polar-express", "exact"] = Field(
        default="quintic", description="How the polar factor is computed. exact is an SVD: slow, for reference."
    )
    polar_steps: PositiveInt = Field(default=3, description="Iterations of the polar factor.")
    shape_scale: Literal["spectral", "rms", "none"] = Field(
        default="spectral", description="How a matrix's shape scales its step. rms: AdamW's learning rates carry over."
    )
    grafting: bool = Field(default=True, description="Give the step the norm of the polar factor.")
    weight_decay: NonNegative = Field(default=0.0, description="Decoupled weight decay.")
    cautious_weight_decay: bool = Field(default=False, description="Decay only where the step points to zero too.")
    max_factor_dim: PositiveInt = Field(default=8192, description="A longer side keeps a diagonal factor.")
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Type of the large products. auto: bfloat16 where the hardware is fast at it."
    )
    adamw: AdamWConfig = Field(default=AdamWConfig(), description="For parameters that FISMO does not treat.")
    rules: Rules = Field(
        default={}, description="Regular expression on the parameter's name -> who treats it; the first match wins."
    )

    @model_validator(mode="before")
    @classmethod
    def _expand_paper_form(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("form") != "paper":
            return values
        contradicted = [(key, value) for key, value in PAPER_FORM.items() if values.get(key, value) != value]
        message = "must be {}, as optimizer.form: paper fixes it"
        _refuse(*((True, key, message.format(_yaml(value)), ("form",)) for key, value in contradicted))
        return {**PAPER_DEFAULTS, **values, **PAPER_FORM}


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _known_optimizer(name: str) -> str:
    if not is_optimizer_name(name):
        raise ValueError("unknown optimizer")
    return name


class BaselineConfig(Config):
    """Any other optimizer: adam, adamw, sgd, muon (torch), soap, shampoo, lion, ... (pytorch-optimizer), timm/NAME."""

    name: Annotated[str, AfterValidator(_known_optimizer)] = Field(
        description="The optimizer.", json_schema_extra={"expected": "the name of an optimizer"}
    )
    lr: Positive | None = Field(default=None, description="Learning rate; null: this tool's default for the optimizer.")
    weight_decay: NonNegative = Field(default=0.0, description="Weight decay, as the optimizer defines it.")
    momentum: Fraction | None = Field(default=None, description="Momentum, where the optimizer has it.")
    betas: Betas | None = Field(default=None, description="Decay rates, where the optimizer has two.")
    args: dict[str, Any] = Field(default={}, description="Any other argument of the optimizer's constructor.")
    adamw: AdamWConfig = Field(
        default=AdamWConfig(), description="muon, soap, shampoo: for the parameters that they do not treat."
    )
    rules: Rules = Field(default={}, description="muon, soap, shampoo: regular expression on a name -> who treats it.")


def _optimizer_tag(value: Any) -> str:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "fismo" if name == "fismo" else "baseline"


OptimizerConfig = Annotated[
    Annotated[FismoConfig, Tag("fismo")] | Annotated[BaselineConfig, Tag("baseline")], Discriminator(_optimizer_tag)
]


class ScheduleConfig(Config):
    """How the learning rates (of every group alike) change over a run."""

    name: Literal["constant", "linear", "cosine", "warmup-stable-decay"] = Field(
        default="cosine", description="Shape after the warm-up."
    )
    warmup: Fraction = Field(default=0.0, description="Linear warm-up, as a share of all steps.")
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.2, description="warmup-stable-decay: share of all steps in the final linear decay."
    )
    final: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.0, description="Where the schedule ends, as a share of the peak."
    )


class TrainConfig(Config):
    """The training loop."""

    epochs: Positive | None = Field(default=None, description="Passes over the training data; or steps.")
    steps: PositiveInt | None = Field(default=None, description="Optimizer steps; or epochs.")
    batch_size: PositiveInt = Field(default=64, description="Samples (images or blocks) of one optimizer step.")
    accumulate: PositiveInt = Field(default=1, description="Micro-batches that a batch is cut into, to save memory.")
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="Learning-rate schedule.")
    clip_grad_norm: Positive | None = Field(default=None, description="Largest global gradient norm; null: no limit.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="bfloat16, float16: automatic mixed precision; weights stay float32."
    )
    compile: bool = Field(default=False, description="Compile the model with torch.compile.")
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        default=None, description="Decay of an average of the weights, which is then evaluated and saved; null: none."
    )
    max_loss: Positive | None = Field(
        default=None, description="A training loss above it counts as divergence; a non-finite one always does."
    )
    seed: Seed = Field(default=0, description="Seed of initialisation, order and augmentation.")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto: cuda where there is one, then mps, then cpu.",
        json_schema_extra={"expected": "auto, cpu, mps, cuda or cuda:N"},
    )
    threads: PositiveInt | None = Field(default=None, description="CPU threads; null: torch's choice, recorded.")
    deterministic: bool = Field(default=False, description="Ask torch for deterministic kernels, where it has them.")
    log_every: PositiveInt = Field(default=10, description="Steps between progress records.")

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        neither, both = self.epochs is self.steps is None, None not in (self.epochs, self.steps)
        _refuse(
            (neither, "epochs", "give train.epochs or train.steps", ("steps",)),
            (both, "steps", "give either train.epochs or train.steps, not both", ("epochs",)),
            (
                self.batch_size % self.accumulate != 0,
                "accumulate",
                f"must divide train.batch_size ({self.batch_size}), got {self.accumulate}",
                ("batch_size",),
            ),
        )
        return self


class EvaluateConfig(Config):
    """Evaluation on the validation part while training; the test part is used once, at the end."""

    every: PositiveInt | None = Field(default=None, description="Steps between evaluations; null: only at the end.")
    batch_size: PositiveInt | None = Field(default=None, description="Samples a batch; null: the micro-batch's.")


class CheckpointConfig(Config):
    """Checkpoints to resume from."""

    every: PositiveInt | None = Field(
        default=None, description="Steps between checkpoints; null: only when interrupted."
    )
    keep: PositiveInt = Field(default=3, description="How many of the last are kept, besides the best.")


class LoggingConfig(Config):
    """Where measurements go besides metrics.jsonl."""

    tensorboard: bool = Field(default=False, description="Write TensorBoard event files into the run directory.")


class _PresetBase(Config):
    model: ModelConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()


class ImagePreset(_PresetBase):
    """A preset of the task image-classification."""

    task: Literal["image-classification"]
    data: ImageDataConfig

    @model_validator(mode="after")
    def _check(self) -> "ImagePreset":
        wrong = self.model.library != "timm"
        _refuse((wrong, "model.library", "must be timm for the task image-classification", ("task",)))
        return self


class TextPreset(_PresetBase):
    """A preset of the task language-modelling."""

    task: Literal["language-modelling"]
    data: TextDataConfig

    @model_validator(mode="after")
    def _check(self) -> "TextPreset":
        wrong = self.model.library != "transformers"
        _refuse((wrong, "model.library", "must be transformers for the task language-modelling", ("task",)))
        return self


Preset = ImagePreset | TextPreset
preset_adapter: TypeAdapter[Preset] = TypeAdapter(Annotated[Preset, Field(discriminator="task")])
