"""The ensembles by which the defaults were chosen take the steps of the library, and their records are of them."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import ensembles
from fismo_core import FISMO, FisherMetric, Polar
from tests.core.conftest import replayed_gradients

OF_THE_LIBRARY = {
    "none": {"economy": "none"},
    "some": {"economy": "some"},
    "most": {"economy": "most"},
    "muon": {"metric": FisherMetric(power=0.0), "polar": Polar("quintic", 5)},
}


@pytest.mark.parametrize("form", OF_THE_LIBRARY)
@pytest.mark.parametrize("shape", [(6, 6), (14, 6), (6, 14)])
def test_each_member_takes_the_steps_of_the_library(form: str, shape: tuple[int, int]) -> None:
    """Two members with rates, momenta and decays of their own, each in a layer of two matrices."""
    gradients = [G.view(2, 2, *shape) for G in replayed_gradients((4 * shape[0], shape[1]), 13, torch.float32)]
    settings = {
        "lr": torch.tensor([0.1, 0.2]),
        "momentum": torch.tensor([0.8, 0.95]),
        "decay": torch.tensor([0.95, 0.95]),
        "damping": torch.tensor([0.1, 0.1]),
        "weight_decay": torch.tensor([0.0, 0.5]),
        "cautious": torch.tensor([0.0, 0.0]),
        "falling": torch.tensor([0.0, 0.0]),
    }
    start = torch.randn(2, 2, *shape)  # layers, members
    W = start.clone().requires_grad_()
    ours = ensembles.Matrices(W, 1, ensembles.FORMS[form])
    for t, G in enumerate(gradients):
        W.grad = G.clone()
        with torch.no_grad():
            ours.step(t, 0.0, 1.0, settings)
    for member in range(2):
        own = {name: float(settings[name][member]) for name in ("lr", "momentum", "weight_decay")}
        expected = _by_the_library(form, [G[:, member] for G in gradients], start[:, member], own)
        found = W.detach()[:, member]
        assert (found - expected).norm() < 1e-4 * (expected - start[:, member]).norm()


def _by_the_library(form: str, gradients: list[Tensor], start: Tensor, own: dict[str, float]) -> Tensor:
    parameters = [nn.Parameter(matrix.clone()) for matrix in start]
    optimizer = FISMO(parameters, **own, compute_dtype="float32", **OF_THE_LIBRARY[form])  # type: ignore[arg-type]
    for G in gradients:
        for parameter, gradient in zip(parameters, G, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return torch.stack([parameter.detach() for parameter in parameters])


def test_the_records_are_of_the_sweeps() -> None:
    """Each was run at the settings that stand in the script today, on every seed; what is missing is said."""
    kept = json.loads(ensembles.RESULTS.read_text())["sweeps"]
    sweeps = {sweep.name: sweep for sweep in ensembles.sweeps()}
    assert set(kept) <= set(sweeps)
    assert set(sweeps) - set(kept) == {"llama, 8192 a step, 300 steps, muon: weight_decay, cautious, falling"}
    for name, record in kept.items():
        losses = [loss for row in record["settings"] for loss in row["losses"]]
        assert ensembles.summary(sweeps[name], losses) == {key: record[key] for key in ("name", "best", "settings")}


@pytest.mark.parametrize("task", ensembles.TASKS)
def test_an_ensemble_learns(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From text of its own, in a few steps, and members of one seed and setting stay alike."""
    monkeypatch.setattr(ensembles, "text_of", lambda *_: bytes(range(256)) * 5_000)
    sweep = ensembles.Sweep(task, "some", 256, 6, {"lr": (0.02, 0.02)}, (0,))
    data = ensembles.load(ensembles.TASKS[task], Path())
    first, second = ensembles.run(sweep, data, 6)
    assert first == pytest.approx(second, rel=1e-4)
    assert first < (2.32 if task == "vit" else 5.4)
