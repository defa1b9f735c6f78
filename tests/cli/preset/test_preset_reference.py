"""The preset reference and the optimizer names are held against the schema and the libraries they speak of."""

from pathlib import Path

import pytest

from fismo_cli.preset.optimizer_names import (
    MATRIX_NAMES,
    TORCH_NAMES,
    is_optimizer_name,
    optimizer_names,
)
from fismo_cli.preset.reference import reference
from fismo_cli.preset.schema import FismoConfig, fismo_options, preset_adapter
from fismo_cli.preset.tables import fill
from fismo_core.config import FORMS

DOCUMENT = Path(__file__).parents[3] / "docs" / "presets.md"


def test_the_document_is_what_the_schema_makes_of_it():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == fill(text), "run: python -m fismo_cli.preset.tables docs/presets.md"


@pytest.mark.parametrize("task", ["image-classification", "language-modelling"])
def test_every_key_is_described(task):
    for kind in ("fismo", "baseline"):
        for path, key in reference(task, kind).items():
            if path not in (("task",), ("data",), ("model",), ("optimizer",), ("train",)):
                assert key.description.endswith("."), path
            assert key.expected, path


def test_every_default_is_what_the_schema_accepts_for_the_key():
    keys = reference("image-classification", "fismo")
    values = {key.path[1]: key.default for path, key in keys.items() if path[0] == "optimizer" and len(path) == 2}
    config = FismoConfig(**{**values, "name": "fismo", "form": "default"})
    assert config == FismoConfig(name="fismo")


@pytest.mark.parametrize("form", FORMS)
def test_a_form_expands_to_its_options(form):
    assert fismo_options(FismoConfig(name="fismo", form=form)) == FORMS[form].options


def test_a_preset_built_in_python_is_checked_as_strictly():
    with pytest.raises(ValueError, match="unknown optimizer"):
        preset_adapter.validate_python(
            {
                "task": "image-classification",
                "model": {"library": "timm", "name": "test_vit"},
                "data": {"source": "digits"},
                "optimizer": {"name": "nope"},
                "train": {"steps": 1},
            }
        )


def test_names():
    assert {"fismo", "adam", "adamw", "sgd", "muon", "soap", "shampoo", "lion"} <= set(optimizer_names())
    assert len(set(optimizer_names())) == len(optimizer_names())
    assert all(name == name.lower() for name in optimizer_names())
    assert is_optimizer_name("timm/adamuon")
    assert not is_optimizer_name("timm/")
    assert not is_optimizer_name("timm/nadamww")
    assert not is_optimizer_name("AdamW")
    assert set(MATRIX_NAMES) <= set(optimizer_names())


def test_torch_has_the_names_said_to_be_torch_s():
    import torch

    known = {name.lower() for name in torch.optim.__all__}
    assert set(TORCH_NAMES) <= known
