"""Whole comparisons in this process: runs are stand-ins that end at once with a loss that their settings decide."""

import io
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from rich.console import Console

from fismo_cli.campaigns import pool
from fismo_cli.campaigns.executor import Failure
from fismo_cli.campaigns.pool import carry_out
from fismo_cli.comparison import beginning
from fismo_cli.comparison.plan import read_plan
from fismo_cli.comparison.results import Results, results_of_directories
from fismo_cli.comparison.studies import Studies, open_studies, site_of, stored_results
from fismo_cli.errors import DataError, ExitCode, FismoError, StoppedError, UsageError
from fismo_cli.reporting.comparison_progress import comparison_progress
from fismo_cli.runs.directory import RunDirectory, run_identity, write_json
from tests.cli.campaigns.stand_ins import RunStandIn
from tests.cli.comparison.test_comparison_beginning import RESULT, asked
from tests.postgresql import postgresql_server


class Run(RunStandIn):
    """Writes what a run would leave, with a loss that its settings decide."""

    at_step = 7

    def outcome(self) -> RunDirectory | Failure:
        return self.written(self.loss())

    def loss(self) -> float | None:
        optimizer, seed = self.loaded.preset.optimizer, self.loaded.preset.train.seed
        return optimizer.lr + 0.001 * optimizer.weight_decay + 0.01 * (seed % 7)

    def written(self, loss: float | None) -> RunDirectory:
        run, preset = RunDirectory.create(self.runs_dir, self.loaded), self.loaded.preset
        metrics = {"validation": None if loss is None else {"loss": loss}, "test": None, "train": {}}
        summary = {
            **{"status": "completed" if loss is not None else "diverged", "reason": None, "steps": 100, "seconds": 1.0},
            **{"identity": run_identity(preset), "metrics": metrics, "seed": preset.train.seed, "noise_scale": None},
            **{"peak_memory_bytes": 2**20, "optimizer_state_bytes": 8, "optimizer_seconds": 0.1},
        }
        event = {"event": "Evaluated", "split": "validation", "step": 100, "training_seconds": 1.0}
        run.metrics.write_text(json.dumps({**event, "metrics": {"loss": loss}}) + "\n")
        write_json(
            run.environment,
            {
                **{"initial_weights_sha256": "w", "sample_order_sha256": "o"},
                **{"cpu": {"model": "cpu"}, "versions": {"torch": "2"}, "data": {"identity": RESULT["data"]}},
            },
        )
        write_json(run.summary, summary)
        return run


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    Run.started, Run.polls = [], 1
    monkeypatch.setattr(pool, "RunProcess", Run)
    monkeypatch.setattr(pool, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(pool, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(beginning, "dry_run_elsewhere", lambda *_, **__: RESULT)


def compare(
    root: Path, *baselines: str, url: str | None = None, workers: int = 1, told: list[str] | None = None, **changes: Any
) -> Studies:
    told = [] if told is None else told
    plan, storage = beginning.begin(asked(root, *baselines, **changes), url=url, tried=lambda line: None)
    studies = open_studies(plan, storage)
    carry_out(
        site_of(plan, url), studies.stages(), workers=workers, tell=lambda status: told.append(status.finished or "")
    )
    return studies


def numbers(results: Results) -> dict[str, Any]:
    """What was found, but for when and where."""
    return {
        "tuned": {
            key: [(params, r.cost("loss")) for params, r in tuned.trials] for key, tuned in results.tuned.items()
        },
        "runs": {
            key: (record.cost("loss"), record.curve, record.initial_weights) for key, record in results.runs.items()
        },
    }


def check(studies: Studies, runs: int) -> Results:
    """Each trial and each judged run exists once, and judged runs have what their studies found."""
    plan, results = studies.plan, studies.results()
    assert len(Run.started) == runs
    assert set(results.runs) >= {(c.label, seed) for c in plan.contenders for seed in plan.seeds}
    for contender in plan.contenders:
        for seed in plan.seeds:
            trials = results.tuned[contender.label, plan.study_of(seed)].trials if plan.studies else ()
            assert len(trials) == plan.tune_trials
            chosen, _ = min(trials, key=lambda trial: trial[1].cost("loss"), default=({}, None))
            expected = contender.run(seed, chosen).preset.optimizer
            loss = expected.lr + 0.001 * expected.weight_decay + 0.01 * (seed % 7)
            assert results.runs[contender.label, seed].cost("loss") == loss
    return results


def test_a_comparison_is_read_from_its_studies_and_from_its_directories(tmp_path):
    told: list[str] = []
    studies = compare(tmp_path, "muon", tune_trials=2, workers=2, told=told)
    results = check(studies, runs=2 * (3 * 2 + 3))
    plan = studies.plan
    first = [line for line in told if line.startswith("tuning fismo, study 1, trial 1: loss ")]
    assert len(first) == 1
    assert "lr " in first[0]
    assert numbers(stored_results(plan, None)) == numbers(results)
    moved = plan.directory.rename(tmp_path / "elsewhere")
    found = stored_results(read_plan(moved), None)
    assert numbers(found) == numbers(results)
    assert all(Path(record.summary["run_dir"]).is_relative_to(moved) for record in found.runs.values())
    (moved / "journal.log").unlink()
    alone = results_of_directories(read_plan(moved))
    assert numbers(alone)["runs"] == numbers(results)["runs"]
    for key, trials in numbers(results)["tuned"].items():
        for (params, loss), (other, again) in zip(trials, numbers(alone)["tuned"][key], strict=True):
            assert loss == again
            assert other == pytest.approx(params)


def test_who_draws_and_how_many_at_a_time_changes_nothing(tmp_path):
    one = numbers(compare(tmp_path / "one", "muon", "adamw", tune_trials=3).results())
    four = numbers(compare(tmp_path / "four", "muon", "adamw", tune_trials=3, workers=4).results())
    assert one == four
    orders = [[(run.preset.optimizer.name, run.preset.train.seed) for run in Run.started[:36]]]
    assert orders[0] != sorted(orders[0])
    single = numbers(compare(tmp_path / "single", "muon", tune_trials=6, studies=1, workers=4).results())
    alone = numbers(compare(tmp_path / "alone", "muon", tune_trials=6, studies=1).results())
    assert single == alone
    start, _ = single["tuned"]["muon", 0][0]
    assert start["1 - optimizer.momentum"] == pytest.approx(0.15)  # where it starts


def test_more_seeds_and_other_baselines_go_on_with_what_there_is(tmp_path):
    check(compare(tmp_path, "muon", tune_trials=2), runs=18)
    more = compare(tmp_path, "muon", "adamw", seeds=4, tune_trials=2)
    results = check(more, runs=18 + 2 * 3 + 4 * 3)
    fewer = compare(tmp_path, "adamw", seeds=2, tune_trials=2)
    assert len(Run.started) == 36
    assert set(fewer.results().runs) == {(label, seed) for label in ("fismo", "adamw") for seed in (0, 1)}
    assert all(fewer.results().runs[key] == results.runs[key] for key in fewer.results().runs)


def test_two_processes_share_a_comparison(tmp_path):
    """Here two threads: each has a worker's lock, storage and pool of its own."""
    Run.polls = 4
    failed: list[BaseException] = []

    def work() -> None:
        try:
            compare(tmp_path, "muon", tune_trials=2)
        except BaseException as error:
            failed.append(error)

    # Python handles signals in the main thread alone; a pool in another one is as good.
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    check(compare(tmp_path, "muon", tune_trials=2), runs=18)


def test_a_run_that_fails_ends_the_comparison_and_counts_for_nothing(tmp_path, monkeypatch):
    class Failing(Run):
        def outcome(self):
            broken = self.loaded.preset.optimizer.name == "muon" and self.loaded.preset.train.seed == 1
            return Failure(1, "the disk was full") if broken else super().outcome()

    with monkeypatch.context() as patch:
        patch.setattr(pool, "RunProcess", Failing)
        with pytest.raises(
            FismoError, match=r"the run muon, seed 1 ended with exit code 1: the disk was full. It counts"
        ):
            compare(tmp_path, "muon", tune_trials=1, workers=2)
    before = len(Run.started)
    assert sum(r.preset.optimizer.name == "muon" and r.preset.train.seed == 1 for r in Run.started) == 2  # once again
    studies = compare(tmp_path, "muon", tune_trials=1)
    results = studies.results()
    assert len(results.runs) == 6
    assert len(Run.started) > before
    assert numbers(results) == numbers(compare(tmp_path / "undisturbed", "muon", tune_trials=1).results())


def test_where_all_tuning_diverges_the_starting_point_is_judged(tmp_path, monkeypatch):
    class Diverging(Run):
        def loss(self):
            tuning = self.loaded.preset.train.seed >= 10_000
            return None if tuning and self.loaded.preset.optimizer.name == "muon" else super().loss()

    monkeypatch.setattr(pool, "RunProcess", Diverging)
    studies = compare(tmp_path, "muon", tune_trials=2)
    results = studies.results()
    assert all(tuned.best is None for (label, _), tuned in results.tuned.items() if label == "muon")
    assert all(len(tuned.trials) == 2 for tuned in results.tuned.values())
    start = studies.plan.contenders[1].loaded.preset.optimizer
    assert [results.runs["muon", seed].cost("loss") - 0.01 * seed for seed in (0, 1, 2)] == pytest.approx(
        [start.lr] * 3
    )
    assert numbers(results_of_directories(studies.plan))["runs"] == numbers(results)["runs"]


def test_a_comparison_whose_data_has_changed_ends_as_wrong_usage(tmp_path, monkeypatch):
    class Refusing(Run):
        def outcome(self):
            return Failure(ExitCode.DATA, "the data has changed since comparisons/x was begun")

    with monkeypatch.context() as patch:
        patch.setattr(pool, "RunProcess", Refusing)
        with pytest.raises(DataError, match="the data has changed since") as caught:
            compare(tmp_path, "muon")
        assert caught.value.exit_code == ExitCode.USAGE
    Run.started = []
    check(compare(tmp_path, "muon"), runs=6)


def test_what_was_stopped_goes_on(tmp_path, monkeypatch):
    class Stopping(Run):
        def poll(self):
            if len(Run.started) > 7:
                raise StoppedError(2)
            return super().poll()

    with monkeypatch.context() as patch:
        patch.setattr(pool, "RunProcess", Stopping)
        with pytest.raises(StoppedError):
            compare(tmp_path, "muon", tune_trials=2)
    (directory,) = tmp_path.iterdir()
    shutil.rmtree(directory / "workers")  # as of a worker that was killed
    numbers_now = numbers(compare(tmp_path, "muon", tune_trials=2).results())
    assert len(Run.started) in (18, 19)
    assert numbers_now == numbers(compare(tmp_path / "undisturbed", "muon", tune_trials=2).results())


def test_a_trial_that_was_lost_while_it_was_given_up_is_queued_again(tmp_path):
    whole = numbers(compare(tmp_path / "whole", "muon", tune_trials=2).results())
    plan, storage = beginning.begin(asked(tmp_path / "cut", "muon", tune_trials=2), tried=lambda line: None)
    studies = open_studies(plan, storage)
    tuning, judged = studies.tuning["muon", 1], studies.judging["fismo", 0]
    for study, where in ((tuning, tuning.get_trials()[0].distributions), (judged, {})):
        trial = study.ask(where)
        study.tell(trial.number, state=TrialState.FAIL)  # and the process is killed before it is queued again
    before = len(Run.started)
    assert numbers(compare(tmp_path / "cut", "muon", tune_trials=2).results()) == whole
    assert len(Run.started) - before == 18


def test_of_a_comparison_that_was_cut_off_fewer_seeds_can_be_had(tmp_path, monkeypatch):
    class Stopping(Run):
        def poll(self):
            if len(Run.started) > 2 * 4 * 2 + 1:  # in the judged runs
                raise StoppedError(2)
            return super().poll()

    with monkeypatch.context() as patch:
        patch.setattr(pool, "RunProcess", Stopping)
        with pytest.raises(StoppedError):
            compare(tmp_path, "muon", seeds=4, tune_trials=2)
    fewer = compare(tmp_path, "muon", seeds=2, tune_trials=2)
    assert set(fewer.results().runs) == {(label, seed) for label in ("fismo", "muon") for seed in (0, 1)}
    assert {run.preset.train.seed for run in Run.started[18:]} <= {0, 1}
    undisturbed = compare(tmp_path / "undisturbed", "muon", seeds=2, tune_trials=2)
    assert numbers(fewer.results()) == numbers(undisturbed.results())


def test_a_comparison_stays_in_its_storage(tmp_path):
    compare(tmp_path, "muon")
    with pytest.raises(UsageError, match=r"has the trials of a study in .*journal\.log: leave out FISMO_STORAGE"):
        compare(tmp_path, "muon", url="postgresql+psycopg://me:hunter2@127.0.0.1:1/db")


def test_live_progress_draws_a_table(tmp_path):
    Run.polls = 200  # so that it is told of runs that go on
    plan, storage = beginning.begin(asked(tmp_path, "muon", tune_trials=2), tried=lambda line: None)
    studies, out = open_studies(plan, storage), io.StringIO()
    with comparison_progress(Console(file=out, width=200, force_terminal=True), studies, 2) as tell:
        carry_out(site_of(plan, None), studies.stages(), workers=2, tell=tell)
    text = " ".join(out.getvalue().split())
    assert "(2 at a time, 1 CPU thread a run)" in text
    assert "18 runs: 3 studies of 2 trials and 3 judged runs for each of 2 optimizers; about 2 min of training" in text
    for part in ("trial 1 at step 7/100", "0/6", "6/6", "of 18 runs", "muon, seed 1: loss"):
        assert part in text


@pytest.fixture(scope="module")
def postgresql():
    with postgresql_server() as (url, _):
        yield url


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_hosts_that_share_nothing_but_a_database_share_a_comparison(tmp_path, postgresql):
    alone = numbers(compare(tmp_path / "alone", "muon", tune_trials=2).results())
    Run.started = []
    Run.polls = 3
    failed: list[BaseException] = []

    def work(name: str) -> None:
        try:
            compare(tmp_path / name, "muon", tune_trials=2, url=postgresql, omp_threads=str(1 + len(name)))
        except BaseException as error:
            failed.append(error)

    hosts = [threading.Thread(target=work, args=(name,)) for name in ("a", "bb")]
    for host in hosts:
        host.start()
    for host in hosts:
        host.join()
    assert failed == []
    assert len({run.preset.train.threads for run in Run.started}) == 1  # one environment for all
    threads = Run.started[0].preset.train.threads
    here = compare(tmp_path / "c", "muon", tune_trials=2, url=postgresql, omp_threads="9")  # joins when all is done
    assert 18 <= len(Run.started) <= 20
    assert here.plan.environment["threads"] == threads
    assert numbers(here.results()) == alone
    assert numbers(stored_results(here.plan, postgresql)) == alone
    assert stored_results(here.plan, None).runs == {}  # nothing of it is on this host
