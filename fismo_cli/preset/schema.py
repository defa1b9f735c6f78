"""The preset schema: every key that a YAML preset may have, its type, range, default and meaning.

Pure pydantic, so that `fismo validate` is instant. All models are frozen and refuse unknown keys.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from fismo_cli.preset.schema_base import Config, Fraction, KeyedError, NonNegative, Positive, PositiveInt, Seed, refuse
from fismo_cli.preset.schema_data import ImageDataConfig, TextDataConfig
from fismo_cli.preset.schema_logging import LoggingConfig
from fismo_cli.preset.schema_optimizer import (
    BaselineConfig,
    BaselineConfigs,
    FismoConfig,
    OptimizerConfig,
    fismo_options,
    plain,
)
from fismo_cli.preset.schema_tune import METRICS, TuneConfig

__all__ = [
    "ALL_BUT_HEAD",
    "BaselineConfig",
    "CheckpointConfig",
    "EvaluateConfig",
    "FismoConfig",
    "ImageDataConfig",
    "ImagePreset",
    "KeyedError",
    "LoggingConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Preset",
    "ScheduleConfig",
    "TextDataConfig",
    "TextPreset",
    "TrainConfig",
    "TuneConfig",
    "fismo_options",
    "plain",
    "preset_adapter",
]


ALL_BUT_HEAD = "all-but-head"


class LoraConfig(Config):
    """Low-rank adapters beside linear layers, which alone are trained (transformers, by peft)."""

    rank: PositiveInt = Field(default=8, description="Rank of the adapters.")
    alpha: PositiveInt = Field(default=16, description="What an adapter adds is multiplied by alpha / rank.")
    dropout: Fraction = Field(default=0.0, description="Dropout of what goes into an adapter.")
    target: Literal["all-linear"] | list[str] = Field(
        default="all-linear",
        description="Names of the layers that get one, such as [q_proj, v_proj]; all-linear: all but the head.",
        json_schema_extra={"expected": "all-linear or a list of texts"},
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
    freeze: Literal["all-but-head"] | list[str] = Field(
        default=[],
        description="What is not trained: patterns of parameters' names, such as [patch_embed.*, blocks.0.*]; or "
        "all-but-head. Frozen batch norm keeps its statistics.",
        json_schema_extra={"expected": "all-but-head or a list of texts"},
    )
    lora: LoraConfig | None = Field(
        default=None,
        description="transformers: train low-rank adapters alone. The saved model has them merged. null: none.",
    )

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        adapted = self.lora is not None
        refuse(
            (adapted and self.library == "timm", "lora", "is for models of transformers", ("library",)),
            (adapted and bool(self.freeze), "freeze", "model.lora freezes all but adapters; leave it out", ("lora",)),
        )
        return self


class ScheduleConfig(Config):
    """How the learning rates (of every group alike) change over a run."""

    name: Literal["constant", "linear", "cosine", "warmup-stable-decay"] = Field(
        default="cosine", description="Shape after the warm-up."
    )
    warmup: NonNegative = Field(
        default=0.0,
        description="Linear warm-up, as a share of all steps (below 1) or a number of steps.",
        json_schema_extra={"expected": "a share below 1, or a whole number of steps"},
    )
    decay: Positive = Field(
        default=0.2,
        description="warmup-stable-decay: the final linear decay, as a share of all steps (to 1) or a number of them.",
        json_schema_extra={"expected": "a share of at most 1, or a whole number of steps"},
    )
    final: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.0, description="Where the schedule ends, as a share of the peak."
    )

    @model_validator(mode="after")
    def _check(self) -> "ScheduleConfig":
        refuse(
            *(
                (length > 1 and length != int(length), key, f"must be whole where it counts steps, got {length:g}", ())
                for key, length in (("warmup", self.warmup), ("decay", self.decay))
            )
        )
        return self


class BatchGrowthConfig(Config):
    """A batch that doubles, by accumulation, when its gradient is more noise than signal (the norm test)."""

    max_batch_size: PositiveInt = Field(description="Samples that it grows to at most, in multiples of batch_size.")
    theta: Positive = Field(
        default=2.0, description="It doubles when the gradient's standard deviation exceeds this times its mean."
    )


DEVICES = r"^(auto|cpu|mps|cuda(:\d+)?)$"
"""Names of devices."""

MAX_LENGTH = 10**9
"""Steps or epochs: more than anyone trains, and few enough to be counted without overflow."""


class TrainConfig(Config):
    """The training loop."""

    epochs: Positive | None = Field(default=None, description="Passes over the training data; or steps.")
    steps: PositiveInt | None = Field(default=None, description="Optimizer steps; or epochs.")
    batch_size: PositiveInt = Field(default=64, description="Samples (images or blocks) of one optimizer step.")
    accumulate: PositiveInt = Field(default=1, description="Micro-batches that a batch is cut into, to save memory.")
    noise_every: PositiveInt | None = Field(
        default=50, description="Steps between measurements of the gradient's noise scale; null: none."
    )
    batch_growth: BatchGrowthConfig | None = Field(
        default=None,
        description="Let the batch grow; schedule, evaluation and checkpoints then go by samples. null: it stays.",
    )
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="Learning-rate schedule.")
    clip_grad_norm: Positive | None = Field(default=None, description="Largest global gradient norm; null: no limit.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="bfloat16, float16: automatic mixed precision; weights stay float32."
    )
    parallel: Literal["ddp", "fsdp2", "none"] = Field(
        default="ddp",
        description="How several processes train a model. ddp: each has all of it. fsdp2: weights, gradients and "
        "optimizer state are spread over them. none: several are refused.",
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="Compute each block's forward pass again in the backward pass, which saves memory for time.",
    )
    compile: bool = Field(default=False, description="Compile the model with torch.compile.")
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        default=None,
        description="Decay, after warm-up, of an average of the weights, then evaluated and saved instead; null: none.",
    )
    patience: PositiveInt | None = Field(
        default=None,
        description="Evaluations in a row without a better validation loss after which training ends; null: none.",
    )
    final_model: Literal["last", "best"] = Field(
        default="last",
        description="Which weights become the run's model and are tested: the last, or those with the best validation "
        "loss, of which a checkpoint is written whenever there is a better one.",
    )
    max_loss: Positive | None = Field(
        default=None, description="A training loss above it counts as divergence; a non-finite one always does."
    )
    seed: Seed = Field(default=0, description="Seed of initialisation, order and augmentation.")
    device: str = Field(
        default="auto",
        pattern=DEVICES,
        description="auto: cuda where there is one, then mps, then cpu.",
        json_schema_extra={"expected": "auto, cpu, mps, cuda or cuda:N"},
    )
    threads: PositiveInt | None = Field(default=None, description="CPU threads; null: torch's choice, recorded.")
    deterministic: bool = Field(default=False, description="Ask torch for deterministic kernels, where it has them.")
    log_every: PositiveInt = Field(default=10, description="Steps between progress records.")

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        neither, both = self.epochs is self.steps is None, None not in (self.epochs, self.steps)
        refuse(
            (neither, "epochs", "give train.epochs or train.steps", ("steps",)),
            *(
                (length is not None and length > MAX_LENGTH, key, f"must be at most {MAX_LENGTH:,}", ())
                for key, length in (("steps", self.steps), ("epochs", self.epochs))
            ),
            (both, "steps", "give either train.epochs or train.steps, not both", ("epochs",)),
            (
                self.batch_size % self.accumulate != 0,
                "accumulate",
                f"must divide train.batch_size ({self.batch_size}), got {self.accumulate}",
                ("batch_size",),
            ),
            (
                self.batch_growth is not None and self.noise_every is None,
                "noise_every",
                "must be a positive integer where train.batch_growth is set, which goes by the noise scale",
                ("batch_growth",),
            ),
            (
                self.batch_growth is not None and self.accumulate == 1 and (self.compile or self.batch_size % 2 == 1),
                "accumulate",
                "must be at least 2 where train.batch_growth is set with train.compile or an odd train.batch_size: no "
                "half of a batch is taken then, to tell signal from noise",
                ("batch_growth", "compile", "batch_size"),
            ),
            (
                self.batch_growth is not None and self.batch_growth.max_batch_size < 2 * self.batch_size,
                "batch_growth.max_batch_size",
                f"must be at least twice train.batch_size ({self.batch_size})",
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
    keep: PositiveInt = Field(
        default=3, description="How many of the last are kept, besides the best and the last one before a final decay."
    )


class _PresetBase(Config):
    model: ModelConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    compare: BaselineConfigs = Field(
        default={},
        description="Optimizer sections of the baselines of fismo compare, by name, or by a label of yours with "
        "`name` in it; what they leave out is as under optimizer.",
    )
    tune: TuneConfig = TuneConfig()


def _needs_evaluations(preset: _PresetBase) -> Iterator[tuple[bool, str, str, tuple[str, ...]]]:
    missing, train = preset.evaluate.every is None, preset.train
    for key, asked in (("patience", train.patience is not None), ("final_model", train.final_model == "best")):
        message = "needs evaluations on the way: give evaluate.every"
        yield missing and asked, f"train.{key}", message, ("evaluate.every",)


def _tuned_metric(task: str, tune: TuneConfig) -> tuple[bool, str, str, tuple[str, ...]]:
    known = METRICS[task]
    message = f"must be one of {', '.join(known)} for the task {task}, got {tune.metric}"
    return tune.metric not in known, "tune.metric", message, ("task",)


class ImagePreset(_PresetBase):
    """A preset of the task image-classification."""

    task: Literal["image-classification"]
    data: ImageDataConfig

    @model_validator(mode="after")
    def _check(self) -> "ImagePreset":
        wrong = self.model.library != "timm"
        refuse(
            (wrong, "model.library", "must be timm for the task image-classification", ("task",)),
            _tuned_metric(self.task, self.tune),
            *_needs_evaluations(self),
        )
        return self


class TextPreset(_PresetBase):
    """A preset of the task language-modelling."""

    task: Literal["language-modelling"]
    data: TextDataConfig

    @model_validator(mode="after")
    def _check(self) -> "TextPreset":
        wrong = self.model.library != "transformers"
        refuse(
            (wrong, "model.library", "must be transformers for the task language-modelling", ("task",)),
            _tuned_metric(self.task, self.tune),
            *_needs_evaluations(self),
        )
        return self


Preset = ImagePreset | TextPreset
preset_adapter: TypeAdapter[Preset] = TypeAdapter(Annotated[Preset, Field(discriminator="task")])
