"""FISMO is put into another project's script in one place, or that is refused."""

import ast

import pytest

from benchmarks.modded_nanogpt import with_fismo

SCRIPT = """\
for _ in range(num_trials):
    train_steps = 3375
    optimizer2 = Muon([p for p in model.blocks.parameters() if p.ndim >= 2],
                      lr=0.025, weight_decay=0.025)
    optimizers = [optimizer1, optimizer2]
"""
OPTIONS = {"lr": 0.03, "momentum": 0.9, "weight_decay": 0.05, "economy": "none"}


def test_one_statement_changes_and_the_number_of_steps() -> None:
    changed = with_fismo(SCRIPT, **OPTIONS, steps=3000)
    ast.parse(changed)
    assert "Muon" not in changed
    assert (
        "FISMO([p for p in model.blocks.parameters() if p.ndim >= 2], lr=0.03, momentum=0.9, weight_decay=0.05,"
        in changed
    )
    assert "train_steps = 3000\n" in changed
    assert changed.endswith("    optimizers = [optimizer1, optimizer2]\n")


@pytest.mark.parametrize("script", ["", SCRIPT + SCRIPT, SCRIPT.replace("train_steps", "steps")])
def test_a_script_that_has_changed_is_refused(script: str) -> None:
    with pytest.raises(ValueError, match="it has changed"):
        with_fismo(script, **OPTIONS, steps=3000)
