"""Whether several processes can train together as a preset says: what can be known before anything is imported."""

from fismo_cli.errors import UsageError
from fismo_cli.preset.optimizer_names import RANDOM_NAMES
from fismo_cli.preset.schema import Preset

__all__ = ["check_parallel", "check_shares"]

ELEMENTWISE = ("fismo", "adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "nadam", "radam", "rmsprop", "sgd")
"""Optimizers that can step rows of parameters: FISMO, and those of torch.optim that treat every entry by itself."""


def check_parallel(preset: Preset, processes: int) -> bool:
    """Whether FSDP2 spreads the model of a preset over several processes.

    Raises:
        UsageError: if several processes cannot train together as the preset says.
    """
    parallel = preset.train.parallel
    if processes == 1:
        return False
    if parallel == "none":
        raise UsageError(f"train.parallel=none, but there are {processes} processes; choose ddp or fsdp2, or start one")
    if parallel == "ddp":
        if preset.optimizer.name in RANDOM_NAMES:
            raise UsageError(
                f"optimizer.name={preset.optimizer.name} draws random numbers, which would be others in each process; "
                "train in one"
            )
        return False
    if preset.train.precision == "float16":
        raise UsageError("train.precision=float16 does not go with train.parallel=fsdp2; use bfloat16 or float32")
    if preset.train.batch_growth is not None:
        raise UsageError(
            "train.batch_growth goes by the noise scale, which is not measured with train.parallel=fsdp2; use ddp"
        )
    if preset.optimizer.name not in ELEMENTWISE:
        raise UsageError(
            f"optimizer.name={preset.optimizer.name} needs whole parameters, which train.parallel=fsdp2 spreads over "
            f"the processes; use train.parallel=ddp, or one of {', '.join(ELEMENTWISE)}"
        )
    return True


def check_shares(batch_size: int, accumulate: int, processes: int) -> None:
    """Make sure that each micro-batch can be shared out evenly.

    Raises:
        UsageError: if it cannot.
    """
    if batch_size // accumulate % processes:
        raise UsageError(
            f"train.batch_size={batch_size} in train.accumulate={accumulate} micro-batches cannot be shared evenly by "
            f"{processes} processes: make it a multiple of {accumulate * processes}"
        )
