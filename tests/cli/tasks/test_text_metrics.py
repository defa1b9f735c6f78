"""A text run's metrics are those that transformers alone computes from the run's model and the files."""

import math
from pathlib import Path

import pytest
import torch

from fismo_cli.preset.loading import load_preset
from fismo_cli.runs.directory import RunDirectory
from fismo_cli.runs.execution import execute
from fismo_cli.runs.measuring import measure
from fismo_cli.tasks.text_sources import load_text

PRESET = """task: language-modelling
model: {library: transformers, name: gpt2, args: {n_layer: 1, n_embd: 16, n_head: 2, n_positions: 16}}
data: {source: text-files, path: text, block_size: 16, validation_fraction: 0.2, test_fraction: 0.3}
optimizer: {name: adamw, lr: 0.01}
train: {steps: 3, batch_size: 4, threads: 1}
evaluate: {batch_size: 3}
"""


@pytest.mark.parametrize("kind", ["bytes", "tokenizer"])
def test_metrics_are_those_of_transformers_alone(kind, tmp_path, tokenizer_folder, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    Path("text").mkdir()
    for i in range(10):
        content = f"document {i} says héllo <eos> and more\r\n" * (3 + i)
        Path("text", f"{i}.txt").write_text(content, encoding="utf-8", newline="")
    Path("tiny.yaml").write_text(PRESET)
    chosen = [f"data.tokenizer={tokenizer_folder}", "data.cache_dir=cache"] if kind == "tokenizer" else []
    loaded = load_preset("tiny.yaml", chosen)
    summary = execute(loaded, runs_dir=Path("runs"))
    model_dir = RunDirectory(Path(summary["run_dir"])).model
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    if kind == "tokenizer":
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        assert model.config.eos_token_id == tokenizer.eos_token_id
        assert model.config.vocab_size == len(tokenizer)
    Path("other.txt").write_text("any other text, all of which is measured\n" * 20)
    run_dir = Path(summary["run_dir"])
    other = measure(run_dir, load_preset(str(run_dir / "preset.yaml"), ["data.path=other.txt"]))
    assert other["validation"] is None
    parts = load_text(loaded.preset.data).parts
    for part, measured in {**summary["metrics"], "other": other["test"].metrics}.items():
        if part == "train":
            continue
        files = [Path("other.txt")] if part == "other" else [span.path for span in parts[part].spans]
        assert len(files) == {"validation": 2, "test": 3, "other": 1}[part]
        tokens: list[int] = []
        for file in files:
            text = file.read_bytes().decode()
            if kind == "bytes":
                tokens += [*text.encode(), 256]
            else:
                tokens += [*tokenizer.encode(text, split_special_tokens=True), tokenizer.eos_token_id]
        count = (len(tokens) - 1) // 16
        inputs = torch.tensor(tokens[: 16 * count]).view(count, 16)
        targets = torch.tensor(tokens[1 : 16 * count + 1]).view(count, 16, 1)
        with torch.no_grad():
            nats = -model(input_ids=inputs).logits.double().log_softmax(-1).gather(-1, targets).sum().item()
        if kind == "bytes":
            text_bytes = (targets != 256).sum().item()
        else:  # of the part's bytes, the share that its blocks have of its tokens
            text_bytes = sum(file.stat().st_size for file in files) * targets.numel() / len(tokens)
        assert measured["loss"] == pytest.approx(nats / targets.numel(), rel=1e-6)
        assert measured["perplexity"] == pytest.approx(math.exp(nats / targets.numel()), rel=1e-6)
        assert measured["bits_per_byte"] == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-6)
