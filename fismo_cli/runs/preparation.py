"""From a preset to everything a run needs in memory, with what can be known to go wrong found before any work is done.

Writes nothing to disk.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fismo_cli.errors import FismoError, UsageError, first_line
from fismo_cli.files import nearest_existing
from fismo_cli.models import build_model, model_notes
from fismo_cli.optimizers import build_mars, build_optimizer
from fismo_cli.preset.loading import LoadedPreset
from fismo_cli.runs.environment import weights_hash
from fismo_cli.runs.trackers import check_trackers
from fismo_cli.tasks import build_task
from fismo_cli.tasks.base import Progress, Task
from fismo_cli.training.data.loading import read_batch
from fismo_cli.training.device import autocast, choose_device, explain_memory, move
from fismo_cli.training.distributed.sharding import shard_model
from fismo_cli.training.distributed.together import check_parallel
from fismo_cli.training.distributed.world import World
from fismo_cli.training.evaluation import evaluation_mode
from fismo_cli.training.seeding import configure_torch, seed_everything
from fismo_cli.training.step_start import untouched
from fismo_cli.training.trainer import RunName, Trainer

__all__ = ["Prepared", "check_space", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start: nothing is on disk yet.

    `initial_weights` is `weights_hash` of the model before the first step.
    """

    loaded: LoadedPreset
    task: Task
    trainer: Trainer
    notes: tuple[str, ...]
    initial_weights: str


def prepare(loaded: LoadedPreset, world: World = World(), progress: Progress = lambda done, total: None) -> Prepared:
    """Build task, model, optimizer and trainer of a preset, with torch's threads and determinism as it asks.

    Args:
        loaded: the preset.
        world: the processes that train together.
        progress: told how much of the data has been looked at.

    Raises:
        UsageError: for whatever of the preset cannot be had on this machine.
        FismoError: if memory runs out.
    """
    preset = loaded.preset
    if world.main:
        check_trackers(preset.logging)
    configure_torch(threads=preset.train.threads, deterministic=preset.train.deterministic)
    sharded = check_parallel(preset, world.size)
    device = choose_device(preset.train.device, world.local_rank if world.size > 1 else None)
    with explain_memory(device, lambda: "while preparing. Make the model or the samples smaller (model.*, data.*)"):
        task = build_task(preset, progress=progress)
        seed_everything(preset.train.seed)
        model = build_model(preset, task)
        notes = (*loaded.notes, *task.notes, *model_notes(model))
        initial_weights = weights_hash(model)
        if not sharded:  # which may not find room on one device
            model.to(device)
        tried_on = torch.device("cpu") if sharded else device
        flops = _try_forward(loaded, task, model, tried_on)
        _try_single_samples(loaded, task, model, tried_on, world)
        sharded_model = shard_model(model, preset.train, world, device) if sharded else None
        optimizer = build_optimizer(
            preset.optimizer,
            model,
            process_group=None if sharded else world.group,
            forward_flops=flops * preset.train.batch_size,
        )
        trainer = Trainer(
            task=task,
            model=model,
            optimizer=optimizer,
            train=preset.train,
            evaluate=preset.evaluate,
            checkpoint=preset.checkpoint,
            device=device,
            workers=preset.data.workers,
            name=RunName(loaded.name, preset.optimizer.name),
            world=world,
            sharded_model=sharded_model,
            adapt_radius=getattr(preset.optimizer, "adapt_radius", None),
            mars=build_mars(preset.optimizer, optimizer),
        )
    decay = preset.train.ema_decay
    if decay is not None and 1 / (1 - decay) > trainer.total:
        notes += (
            f"train.ema_decay={decay:g} averages {1 / (1 - decay):,.0f} steps, more than the {trainer.total} of this "
            f"run: it is still warming up at the end, and is over about the last {trainer.total ** (2 / 3):.0f}",
        )
    return Prepared(loaded, task, trainer, notes, initial_weights)


def _try_forward(loaded: LoadedPreset, task: Task, model: nn.Module, device: torch.device) -> int:
    """Make sure that the model can take the data at all, in evaluation by one sample and in training by two, which
    batch norm needs; leaves model and generators as they are.

    Returns:
        The floating-point operations of the one sample.
    """
    with untouched(model), evaluation_mode(model), autocast(device, loaded.preset.train.precision):
        batch = move(read_batch(task.train, [(0, index) for index in range(min(2, len(task.train)))]), device)
        try:
            with explain_memory(device, lambda: "with two samples. Make the model or the samples smaller"):
                with FlopCounterMode(display=False) as counter:
                    task.measure(model, {name: value[:1] for name, value in batch.items()})
                task.training_loss(model.train(), batch)
        except FismoError:
            raise
        except Exception as error:  # whatever a library's model does with shapes it was not made for
            shapes = ", ".join(f"{name} of shape {tuple(value.shape)}" for name, value in batch.items())
            raise UsageError(
                f"{loaded.preset.model.name} with these model.args cannot take this preset's data ({shapes}): "
                f"{first_line(error)}"
            ) from error
    return int(counter.get_total_flops())


def _try_single_samples(loaded: LoadedPreset, task: Task, model: nn.Module, device: torch.device, world: World) -> None:
    """Where training gives the model one sample at a time, make sure that it can train on one: batch norm may not."""
    train = loaded.preset.train
    if train.batch_size // train.accumulate // world.size > 1:
        return
    with evaluation_mode(model), untouched(model), autocast(device, train.precision):
        batch = move(read_batch(task.train, [(0, 0)]), device)
        model.train()
        try:
            task.measure(model, batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UsageError(
                f"train.batch_size={train.batch_size} with train.accumulate={train.accumulate} in {world.size} "
                f"process(es) gives the model one sample at a time, of which {loaded.preset.model.name}'s batch norm "
                "can take no statistics: make it two at least"
            ) from error


def check_space(directory: Path, model: nn.Module) -> None:
    """Refuse a run whose model would have no room on the disk, before any work is put into it.

    Raises:
        UsageError: if the disk that holds the directory has less left than the weights alone take.
    """
    needed = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    free = shutil.disk_usage(nearest_existing(directory)).free
    if free < needed:
        raise UsageError(
            f"the disk of {directory} has {free / 2**20:.1f} MiB left, but the trained model alone needs "
            f"{needed / 2**20:.1f} MiB: free some space, or use another --runs-dir"
        )
