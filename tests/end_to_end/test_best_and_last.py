"""The best model and the last one of a run, by the command line."""

import pytest

from tests.end_to_end.conftest import SMALL

# With these the loss jumps up and down.
SETTINGS = ["digits-vit", *SMALL, "train.schedule={name: constant}", "evaluate.every=4"]
SETTINGS += ["optimizer.name=sgd", "optimizer.lr=0.3", "optimizer.momentum=0.9"]


def test_the_best_and_the_last_model_can_be_kept_measured_and_exported(cli):
    last = cli.run("train", *SETTINGS, "checkpoint.every=4", "checkpoint.keep=99", "--json").json
    best = cli.run("train", *SETTINGS, "train.final_model=best", "checkpoint.every=null", "--json").json
    assert best["model_step"] == best["best_step"] == last["best_step"] < last["steps"] == last["model_step"] == 24
    at_best = cli.run("evaluate", last["run_dir"], "--step", "best", "--json")
    assert f"measured with the weights of step {best['best_step']}" in at_best.err
    for metrics in (at_best.json["metrics"], cli.run("evaluate", best["run_dir"], "--json").json["metrics"]):
        for part in ("validation", "test"):
            assert metrics[part] == pytest.approx(best["metrics"][part])
    assert cli.run("export", last["run_dir"], "best.safetensors", "--step", "best").code == 0
    weights = (cli.folder / best["run_dir"] / "model.safetensors").read_bytes()
    assert (cli.folder / "best.safetensors").read_bytes()[-1000:] == weights[-1000:]
    unknown = cli.run("evaluate", last["run_dir"], "--step", "5")
    assert unknown.code == 2
    assert "there is no checkpoint of step 5; there are those of 4, 8" in unknown.err


@pytest.mark.parametrize("command", [("tune", "--trials", "3"), ("compare", "--baselines", "muon")])
def test_where_runs_are_judged_they_all_have_the_same_length(cli, command):
    name, *options = command
    refused = cli.run(name, *SETTINGS, "train.patience=2", "train.final_model=best", *options)
    assert refused.code == 2
    assert "train.patience" in refused.err
    assert "train.final_model" in refused.err
    assert not list(cli.folder.iterdir())
