"""What is installed is all that fismo needs: the wheel away from the checkout, and the library with torch alone."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WITH_TORCH_ALONE = """
import importlib.metadata as metadata
import re
import sys
from importlib import machinery


def with_requirements(name, found):
    found.add(name)
    for requirement in metadata.requires(name) or []:
        inner = re.match(r"[\\w.-]+", requirement)[0].lower().replace("_", "-")
        if "extra ==" not in requirement and inner not in found and inner in installed:
            with_requirements(inner, found)
    return found


owners = metadata.packages_distributions()
installed = {owner.lower().replace("_", "-") for names in owners.values() for owner in names}
allowed = with_requirements("torch", {"fismo"})
refused = {
    module for module, names in owners.items()
    if not any(owner.lower().replace("_", "-") in allowed for owner in names)
} - sys.stdlib_module_names | {"fismo_cli"}


class Others(machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in refused else super().find_spec(name, path, target)


assert {"numpy", "timm", "pydantic"} <= refused, refused
sys.meta_path[:] = [machinery.BuiltinImporter, machinery.FrozenImporter, Others]

import torch
from torch import nn

import fismo_core

model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
for optimizer in (fismo_core.FISMO(model), fismo_core.FISMO.of(model, fismo_core.DENSE), fismo_core.FISMO.paper(model)):
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(torch.ones(4, 6)).square().sum().backward()
    optimizer.step()
    assert all((old != new).any() for old, new in zip(before, model.parameters(), strict=True))
    optimizer.load_state_dict(optimizer.state_dict())
    print(optimizer.plan())
for name in fismo_core.__all__:
    getattr(fismo_core, name)
print(fismo_core.__file__)
"""


@pytest.fixture(scope="module")
def run_installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs Python in a folder away from the checkout, with the wheel's packages before all others."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "built", ROOT]
    subprocess.run([*pip, *build], check=True, cwd=folder)
    (wheel,) = (folder / "built").glob("fismo-*.whl")
    installed = folder / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--no-compile", "--target", installed, wheel], check=True)
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=folder, env=environment, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("-c", "import fismo_cli; print(fismo_cli.__file__)")
    assert Path(where.strip()).is_relative_to(installed)
    return run


@pytest.mark.slow
def test_the_wheel_has_the_presets_and_trains(run_installed: Callable[..., str]) -> None:
    listed = run_installed("-m", "fismo_cli", "presets", "list", "--json")
    for preset in (ROOT / "presets").glob("*.yaml"):
        assert f'"{preset.stem}"' in listed
    trained = run_installed("-m", "fismo_cli", "train", "digits-vit", "train.steps=3", "--json")
    assert '"completed"' in trained


@pytest.mark.slow
def test_the_library_needs_torch_alone(run_installed: Callable[..., str]) -> None:
    printed = run_installed("-c", WITH_TORCH_ALONE)
    assert "matrix" in printed
    assert "/installed/fismo_core/" in printed
