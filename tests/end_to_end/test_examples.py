"""Every example of docs/examples runs in a process of its own, and resumes to the same weights."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.end_to_end.conftest import ROOT

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "docs" / "examples"
NEEDS = {
    "accelerate_loop": "accelerate",
    "lightning_module": "lightning",
    "lora": "peft",
    "transformers_trainer": "accelerate",
}


def printed(*command: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "several_processes")
)
def test_an_example_resumes_to_the_same_weights(name):
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    said = printed(str(EXAMPLES / f"{name}.py"))
    assert "resumed: the same weights: True" in said
    if name == "timm_factory":
        assert said[-1] == "as FISMO(model): True"


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_the_example_of_several_processes(kind):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    said = printed(*torchrun, str(EXAMPLES / "several_processes.py"), kind)
    assert said[-1] == f"{kind}: resumed: the same weights: True"


def test_trainer_makes_the_optimizer_that_it_could_have_been_given(tmp_path):
    pytest.importorskip("accelerate")
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    from fismo_core import FISMO

    rows = torch.randint(64, (64, 17), generator=torch.Generator().manual_seed(0))
    dataset = [{"input_ids": row, "labels": row} for row in rows]
    weights = []
    for by_class in (True, False):
        torch.manual_seed(0)
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 64}
        model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
        options = {"lr": 0.02, "weight_decay": 0.1}
        given = (
            {"optimizer_cls_and_kwargs": (FISMO, {"model": model, **options})}
            if by_class
            else {"optimizers": (FISMO(model, **options), None)}
        )
        steps = {"max_steps": 20, "per_device_train_batch_size": 8, "save_strategy": "no"}
        arguments = TrainingArguments(str(tmp_path), **steps, report_to="none", use_cpu=True, disable_tqdm=True)
        Trainer(model, arguments, train_dataset=dataset, **given).train()
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *weights))
