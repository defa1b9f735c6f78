"""`fismo compare` in real processes: verdicts, pairing, the page in a browser, kill and rerun."""

import contextlib
import json
import math
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fismo_cli.comparison.analysis import analyse
from fismo_cli.comparison.plan import read_plan
from fismo_cli.comparison.studies import stored_results
from fismo_cli.preset.settings import get_setting
from tests.end_to_end.conftest import Cli, HereCli, browser, open_page, wait_for, wait_until
from tests.postgresql import postgresql_server

pytestmark = pytest.mark.slow
SHORT = ["train.steps=10", "train.log_every=2"]
VARIANTS = [
    "compare.twin={name: fismo}",
    "compare.crippled={name: fismo, lr: 1e-6, adamw: {lr: 1e-6}}",
    "compare.wild={name: sgd, lr: 1e30}",
]
COMPARED = [*SHORT, *VARIANTS, "--baselines", "twin", "crippled", "wild", "--seeds", 7, "--workers", 2, "--json"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison with itself, with a crippled optimizer and with one that diverges."""
    cli = HereCli(tmp_path_factory.mktemp("compared"))
    done = cli.run("compare", *COMPARED)
    assert done.code == 0, done.err
    return cli, done


def verdicts(summary) -> dict:
    return {verdict["baseline"]: verdict for verdict in summary["verdicts"]}


def test_verdicts(compared):
    _, done = compared
    found = verdicts(done.json)
    twin, crippled, wild = found["twin"], found["crippled"], found["wild"]
    assert (twin["verdict"], twin["ci95"], twin["p_value"], twin["ties"]) == ("equivalent", [0.0, 0.0], 1.0, 7)
    assert twin["steps_speedup"]["median"] == 1.0
    assert (crippled["verdict"], crippled["wins"]) == ("better", 7)
    assert crippled["ci95"][1] < 0
    assert (wild["verdict"], wild["diverged"], wild["difference"]) == ("better", 7, None)
    assert "fismo is better than crippled" in done.err
    assert "nothing was tuned" in done.err
    assert "side by side" in done.err
    assert done.json["timing"] == "shared"


def test_equal_seeds_had_equal_weights_and_order(compared):
    cli, done = compared
    by_seed: dict[int, set] = {}
    for run in done.json["runs"]:
        environment = json.loads((cli.folder / run["run_dir"] / "environment.json").read_text())
        by_seed.setdefault(run["seed"], set()).add(
            (environment["initial_weights_sha256"], environment["sample_order_sha256"])
        )
    assert len(by_seed) == 7
    assert all(len(hashes) == 1 for hashes in by_seed.values())
    assert len(set().union(*by_seed.values())) == 7


def test_the_other_way_round_and_with_few_seeds(compared, monkeypatch):
    cli, done = compared
    monkeypatch.chdir(cli.folder)
    plan = read_plan(Path(done.json["comparison"]))
    results = stored_results(plan, None)
    turned = replace(plan, contenders=(plan.contenders[2], plan.contenders[0]))
    assert verdicts(analyse(turned, results))["fismo"]["verdict"] == "worse"
    few = analyse(replace(plan, seeds=plan.seeds[:3]), results)
    assert {verdict["verdict"] for verdict in few["verdicts"]} == {"underpowered"}


def test_rerun_and_report_give_the_same_numbers(compared, tmp_path):
    cli, done = compared
    report = cli.run("report", done.json["comparison"], "--json")
    assert report.code == 0, report.err
    assert report.json == done.json
    shutil.copytree(cli.folder / "comparisons", tmp_path / "comparisons")
    turned = [*SHORT, *VARIANTS, "--baselines", "wild", "twin", "crippled", "--seeds", 7, "--workers", 2, "--json"]
    again = HereCli(tmp_path).run("compare", *turned)
    assert again.code == 0, again.err
    assert "tried" not in again.err
    assert [verdict["baseline"] for verdict in again.json["verdicts"]] == ["wild", "twin", "crippled"]
    assert verdicts(again.json) == verdicts(done.json)
    differing = {key for key in done.json if again.json[key] != done.json[key]}
    assert differing == {"verdicts", "contenders", "runs", "curves"}  # of which the order is another
    for key in differing:
        assert sorted(map(repr, again.json[key])) == sorted(map(repr, done.json[key]))


def test_a_run_whose_directory_is_gone_is_known_from_its_study_alone(compared):
    cli, done = compared
    copy = cli.folder / "copy"
    shutil.copytree(cli.folder / done.json["comparison"], copy)
    lost = next((copy / "runs" / "twin").glob("*/*"))
    shutil.rmtree(lost)
    report = cli.run("report", copy, "--json")
    assert report.json["verdicts"] == done.json["verdicts"]
    assert f'">{lost.relative_to(copy)}<' not in (copy / "report.html").read_text()  # no link to what is not there
    (copy / "journal.log").unlink()
    report = cli.run("report", copy)
    assert report.code == 0
    assert "Not complete, so there is no verdict: runs are missing: 1 of twin" in report.out + report.err
    assert "equivalent" not in report.out + report.err


def test_the_page_in_a_browser(compared):
    cli, done = compared
    from selenium.webdriver import ActionChains

    with browser() as driver:
        # A mean and a band for three optimizers that did not diverge.
        before = open_page(driver, cli.folder / done.json["report"], 5, "#loss-by-steps", least=6)
        assert "fismo against" in driver.find_element("tag name", "h1").text
        assert "equivalent" in driver.find_element("css selector", ".verdict").text
        shown = "return document.querySelectorAll('#loss-by-steps .scatterlayer .trace').length"
        driver.execute_script("document.querySelector('#loss-by-steps').scrollIntoView()")
        toggle = driver.find_element("css selector", "#loss-by-steps .legend .traces .legendtoggle")
        ActionChains(driver).move_to_element(toggle).click().perform()
        wait_until(lambda: driver.execute_script(shown) < before)
        assert driver.execute_script(shown) == before - 2
        links = [link.get_attribute("href") for link in driver.find_elements("css selector", "td a")]
        assert len(links) == 28
        assert all(Path(link.removeprefix("file://")).is_dir() for link in links)
        driver.set_window_size(400, 800)
        fits = "return document.documentElement.scrollWidth <= window.innerWidth"
        wait_until(lambda: driver.execute_script(fits))  # figures are drawn anew
        colour = "return getComputedStyle(document.body).backgroundColor"
        colours = set()
        for scheme in ("light", "dark"):
            feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
            colours.add(driver.execute_script(colour))
        assert len(colours) == 2


def settings(trials: int = 2) -> list:
    return [
        *("compare", "train.steps=28", "train.log_every=2", "checkpoint.every=4", "--baselines", "muon"),
        *("--seeds", 2, "--tune-trials", trials, "--workers", 2, "--json"),
    ]


def final_numbers(summary) -> tuple:
    runs = sorted((run["label"], run["seed"], run["metrics"]["validation"]["loss"]) for run in summary["runs"])
    tuned = [
        [(trial["settings"], trial["value"]) for trial in study["trial_list"]]
        for tuning in summary["tuning"]
        for study in tuning["studies"]
    ]
    tests = [(v["difference"], v["p_value"], v["steps_speedup"]) for v in summary["verdicts"]]
    return runs, tuned, tests


def children_of(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command, place = entry.read_bytes(), (entry.parent / "cwd").readlink()
        except OSError:
            continue
        if b"fismo_cli" in command and place == folder:
            found.append(int(entry.parent.name))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The comparison of `settings()` that nothing disturbs."""
    cli = HereCli(tmp_path_factory.mktemp("whole"))
    done = cli.run(*settings())
    assert done.code == 0, done.err
    return cli, done


def test_kill_and_rerun_gives_the_same_numbers(tmp_path, whole):
    killed, (place, undisturbed) = Cli(tmp_path), whole
    process = killed.start(*settings())
    for wanted in ("tuning/*/*/*/*/*/checkpoints/step-*/complete.json", "runs/*/*/*/checkpoints/step-*/complete.json"):
        deadline = time.monotonic() + 240
        while not list(killed.folder.glob(f"comparisons/*/{wanted}")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        deadline = time.monotonic() + 60
        while children_of(killed.folder):  # asked to stop by the death of their parent
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process = killed.start(*settings())
    resumed = killed.finish(process)
    assert resumed.code == 0, resumed.err
    assert final_numbers(resumed.json) == final_numbers(undisturbed.json)
    assert "12 runs: 2 studies of 2 trials and 2 judged runs for each of 2 optimizers; about" in undisturbed.err
    assert any(run["resumed_from_step"] for run in resumed.json["runs"])
    with contextlib.chdir(place.folder):
        check_studies(undisturbed.json, 2)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_three_hosts_share_a_comparison_one_is_killed_and_one_is_stopped(tmp_path, whole):
    """As three hosts: nothing in common but the database."""
    with postgresql_server() as (url, _):
        hosts = []
        for name in ("one", "two", "three"):
            place = Cli(tmp_path / name)
            place.folder.mkdir()
            place.env["FISMO_STORAGE"] = url
            command = settings()
            command[command.index("--workers") + 1] = 1
            hosts.append((place, place.start(*command)))
        for (place, process), number in zip(hosts[1:], (signal.SIGKILL, signal.SIGTERM), strict=True):
            wait_for(lambda place=place: list(place.folder.rglob("checkpoints/step-*/complete.json")), process, 240)
            process.send_signal(number)
        hosts[1][1].communicate()
        stopped = hosts[2][0].finish(hosts[2][1])
        assert stopped.code == 128 + signal.SIGTERM
        place, process = hosts[0]
        done = place.finish(process)
        assert done.code == 0, done.err
        late = Cli(tmp_path / "late")
        late.folder.mkdir()
        late.env["FISMO_STORAGE"] = url
        joined = late.run(*settings())
        assert final_numbers(joined.json) == final_numbers(done.json)
        assert not list(late.folder.rglob("metrics.jsonl"))  # nothing was left to run
    assert final_numbers(done.json) == final_numbers(whole[1].json)


def check_studies(summary, studies: int) -> None:
    """Every study has draws of its own, and each seed is judged with what its own study found best."""
    assert summary["studies"] == studies
    for tuning in summary["tuning"]:
        assert len(tuning["studies"]) == studies
        drawn = [trial["settings"] for study in tuning["studies"] for trial in study["trial_list"]]
        assert len({json.dumps(settings, sort_keys=True) for settings in drawn}) == len(drawn)
        for study in tuning["studies"]:
            losses = [trial["value"] for trial in study["trial_list"]]
            assert study["best"]["value"] == min(losses)
            for seed in study["judged_with"]:
                (run,) = [r for r in summary["runs"] if (r["label"], r["seed"]) == (tuning["label"], seed)]
                preset = yaml.safe_load((Path(run["run_dir"]) / "preset.yaml").read_text())
                for name, value in study["best"]["params"].items():
                    assert get_setting(preset, name) == pytest.approx(value, rel=1e-12)
        assert sorted(seed for study in tuning["studies"] for seed in study["judged_with"]) == summary["seeds"]


def test_one_search_for_all_seeds(cli):
    given = [*settings(3), "--studies", 1]
    given[given.index("train.steps=28")] = "train.steps=4"
    done = cli.run(*given)
    assert done.code == 0, done.err
    with contextlib.chdir(cli.folder):
        check_studies(done.json, 1)
    assert "With the settings that one search found, fismo against muon is underpowered" in done.err.replace("\n", " ")
    assert "10 runs: 1 study of 3 trials and 2 judged runs for each of 2 optimizers; about" in done.err
    first = done.json["tuning"][0]["studies"][0]["trial_list"][0]["settings"]
    assert first["optimizer.lr"] == 0.04  # where it starts
    again = cli.run("report", done.json["comparison"], "--json")
    assert again.json["tuning"] == done.json["tuning"]


def test_ctrl_c_saves_and_leaves(cli):
    process = cli.start(*settings(0))
    while not list(cli.folder.glob("comparisons/*/runs/*/*/*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    done = cli.finish(process)
    assert done.code == 130
    assert "goes on from here" in done.err
    assert children_of(cli.folder) == []


def test_a_place_that_cannot_be_written_to(cli):
    done = cli.run("compare", *SHORT, "--baselines", "muon", "--seeds", 1, "--comparisons-dir", "/proc/nothing")
    assert done.code == 2
    assert "cannot write to /proc/nothing" in done.err


def test_no_validation_data(cli):
    done = cli.run("compare", *SHORT, "data.validation_fraction=0", "--baselines", "muon", "--seeds", 1)
    assert done.code == 2
    assert "no validation part" in done.err
    assert not (cli.folder / "comparisons").exists()


def test_a_target_that_was_asked_for_and_missed(cli):
    done = cli.run(
        *("compare", *SHORT, "--baselines", "muon", "--seeds", 1, "--target", "top1=0.999", "--workers", 2, "--json")
    )
    assert done.code == 3
    assert done.json["target"] == {"metric": "top1", "value": 0.999, "given": True}
    assert done.json["verdicts"][0]["verdict"] == "underpowered"
    assert math.isfinite(done.json["verdicts"][0]["difference"])


def test_two_tasks_by_top1(tmp_path):
    cli = Cli(tmp_path)
    short = ("train.epochs=null", "train.steps=20", "train.threads=1")
    done = cli.run(
        *("compare", "digits-vit", "digits-resnet", *short, "--baselines", "muon", "--seeds", 1, "--metric", "top1"),
        *("--workers", 2, "--json"),
    )
    assert done.code == 0, done.err
    assert "fismo against muon, of 2 tasks: underpowered on 2" in done.err
    assert [task["preset"] for task in done.json["tasks"]] == ["digits-vit", "digits-resnet"]
    for task in done.json["tasks"]:
        summary = json.loads((cli.folder / task["comparison"] / "summary.json").read_text())
        finals = {(run["label"], run["seed"]): run["metrics"]["validation"]["top1"] for run in summary["runs"]}
        (verdict,) = summary["verdicts"]
        own = finals["fismo", 0] - finals["muon", 0]
        assert verdict["differences"] == pytest.approx([own])
        assert task["verdicts"]["muon"]["difference"] == pytest.approx(own)
        assert "validation top-1" in (cli.folder / summary["report"]).read_text()
    report = cli.run("report", done.json["directory"], "--json")
    assert report.json == done.json
