"""docs/your-own-loop.md says what to say in place of other optimizers: the steps are then about as long."""

import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn

from fismo_core import FISMO, AdamW

PAGE = Path(__file__).parents[2] / "docs" / "your-own-loop.md"
OTHERS: dict[str, Any] = {
    "AdamW": torch.optim.AdamW,
    "Muon": torch.optim.Muon,
    "SOAP": pytorch_optimizer.SOAP,
    "Lion": pytorch_optimizer.Lion,
}
ROWS = re.findall(
    r"^\| `((\w+)\(([^`]*)\))` \| `FISMO\(model, ([^`]*)\)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE
)


def arguments(text: str) -> dict[str, Any]:
    return eval(f"dict({text})", {"AdamW": AdamW})


def lengths(make: Any, steps: int = 40) -> list[float]:
    """Root mean square of the change of each matrix in the last of some steps, of gradients that are mostly noise."""
    torch.manual_seed(0)
    sizes = ((64, 64), (64, 192), (192, 64))
    model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in sizes))
    parameters = list(model.parameters())
    optimizer = make(model, parameters)
    signal = [torch.randn_like(p) for p in parameters]
    before: list[Tensor] = []
    for _ in range(steps):
        before = [p.detach().clone() for p in parameters]
        for p, mean in zip(parameters, signal, strict=True):
            p.grad = 0.3 * mean + torch.randn_like(p)
        optimizer.step()
    return [(p - old).square().mean().sqrt().item() for p, old in zip(parameters, before, strict=True)]


def test_the_page_has_a_row_for_each() -> None:
    assert {name for _, name, _, _ in ROWS} == set(OTHERS)


@pytest.mark.parametrize(("whole", "name", "theirs", "ours"), ROWS)
def test_steps_are_about_as_long(whole: str, name: str, theirs: str, ours: str) -> None:
    given, options = arguments(theirs), arguments(ours)
    other = lengths(lambda model, parameters: OTHERS[name](parameters, **given))
    own = lengths(lambda model, parameters: FISMO(model, **options, rules={"": "matrix"}))
    for one, another in zip(own, other, strict=True):
        assert 0.5 < one / another < 2.0, (whole, own, other)
    decay = given["lr"] * given.get("weight_decay", 0.0)  # of every weight, in a step
    assert options["lr"] * options["weight_decay"] == pytest.approx(decay, rel=1e-9)
    if name != "Muon":  # beside which the AdamW is the user's own
        assert options["adamw"].lr * options["adamw"].weight_decay == pytest.approx(decay, rel=1e-9)
