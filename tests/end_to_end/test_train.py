"""`fismo train` and `fismo evaluate` as a user runs them."""

import json
import re
from pathlib import Path

import pytest

from fismo_cli.commands.evaluate import evaluate
from fismo_cli.errors import UsageError
from fismo_cli.preset.loading import load_preset
from fismo_cli.runs.directory import RunDirectory, write_json
from tests.end_to_end.conftest import SMALL

KEYS = {
    "run_dir", "preset", "optimizer", "seed", "status", "steps", "samples", "resumed_from_step", "world_size",
    "samples_per_rank", "metrics", "seconds", "optimizer_seconds", "samples_per_second", "optimizer_state_bytes",
    "peak_memory_bytes",
}  # fmt: skip


def test_train_fills_the_run_directory_and_evaluate_finds_the_same(cli):
    done = cli.finish(cli.start("train", "digits-vit", *SMALL, "evaluate.every=8", "checkpoint.every=8", "--json"))
    assert done.code == 0, done.err
    summary = done.json
    assert summary.keys() >= KEYS
    assert (summary["status"], summary["steps"], summary["samples"]) == ("completed", 24, 24 * 64)
    run = cli.folder / summary["run_dir"]
    assert json.loads((run / "summary.json").read_text()) == summary
    files = {path.name for path in run.iterdir()}
    assert files >= {"preset.yaml", "environment.json", "metrics.jsonl", "checkpoints", "model", "model.safetensors"}
    environment = json.loads((run / "environment.json").read_text())
    assert len(environment["initial_weights_sha256"]) == 64
    assert "digits-vit" in environment["command"]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["event"] == "StepLogged"] == [4, 8, 12, 16, 20, 24]
    assert records[-1] == {"event": "Finished", "summary": summary}
    assert done.err.startswith("preparing digits-vit ...\n")
    again = cli.run("evaluate", run, "--json")
    assert again.code == 0, again.err
    for split in ("validation", "test"):
        assert again.json["metrics"][split] == pytest.approx(summary["metrics"][split], rel=1e-6)


@pytest.mark.slow
def test_resolved_preset_repeats_the_run(cli):
    first = cli.run("train", "digits-vit", *SMALL, "--json").json
    again = cli.run("train", cli.folder / first["run_dir"] / "preset.yaml", "--json").json
    assert again["metrics"] == first["metrics"]
    paths = [cli.folder / run["run_dir"] / "model.safetensors" for run in (first, again)]
    assert paths[0] != paths[1]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_dry_run_writes_nothing(cli):
    done = cli.run("train", "digits-vit", "--dry-run", "--json")
    assert done.code == 0, done.err
    assert done.json["step_seconds"] > 0
    assert "matrix" in done.err
    assert list(cli.folder.iterdir()) == []


def test_divergence_has_its_exit_code_and_no_model(cli):
    done = cli.run("train", "digits-vit", *SMALL, "train.max_loss=0.001", "checkpoint.every=8", "--json")
    assert done.code == 4, done.err
    assert done.json["status"] == "diverged"
    assert "max_loss" in done.err
    run = cli.folder / done.json["run_dir"]
    assert not (run / "model").exists()
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.batch_size=5000"], ["5000", "1222"]),
        (["--resume", "nowhere"], ["nowhere", "not a run directory"]),
        (["train.device=cuda:99"], ["cuda:99", "train.device=auto"]),
    ],
)
def test_wrong_usage_writes_nothing(cli, arguments, words):
    done = cli.run("train", "digits-vit", *arguments)
    assert done.code == 2
    assert all(word in done.err for word in words), done.err
    assert list(cli.folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_stderr_that_cannot_be_written_ends_no_training(cli):
    with open("/dev/full", "w") as full:
        done = cli.finish(cli.start("train", "digits-vit", *SMALL, "--json", stderr=full))
    assert (done.code, done.json["status"]) == (0, "completed")


def test_evaluate_says_what_to_do_about_a_run_without_model(cli):
    run = RunDirectory.create(cli.folder, load_preset("digits-vit"))
    for make, words in (
        (lambda: None, f"start anew with: fismo train {run.preset}"),
        (lambda: (run.checkpoints / "step-3").mkdir(parents=True), run.resume_command),
        (lambda: write_json(run.summary, {"status": "diverged"}), "diverged, so it has no model"),
    ):
        make()
        with pytest.raises(UsageError, match=re.escape(words)):
            evaluate(run.path)


def test_evaluate_wants_a_finished_run(cli):
    done = cli.run("evaluate", cli.folder)
    assert done.code == 2
    assert "not a run directory" in done.err


@pytest.mark.slow
def test_the_default_preset_reaches_its_accuracy(cli):
    summary = cli.run("train", "digits-vit", "train.threads=1", "--json").json
    assert summary["metrics"]["test"]["top1"] >= 0.97
