"""Answers are on stdout, all else on stderr, and --quiet leaves the answers alone."""

import pytest

from tests.end_to_end.conftest import SMALL

TINY = ["digits-vit", *SMALL, "train.steps=4"]


@pytest.fixture
def trained(cli):
    return cli.run("train", *TINY, "--name", "one")


def test_an_answer_is_on_stdout_and_what_happens_meanwhile_on_stderr(cli, trained):
    assert "validation" in trained.out
    assert "load the model in Python:" in trained.out
    assert trained.err.startswith("preparing digits-vit ...\n")
    assert "step 4/4" in trained.err
    assert "step 4/4" not in trained.out
    for arguments in (["evaluate", "runs/latest"], ["train", *TINY, "--dry-run"], ["report", "runs/latest"], ["env"]):
        done = cli.run(*arguments)
        assert done.code == 0
        assert done.out.count("\n") > 2, arguments


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["train", *TINY],
        ["evaluate", "runs/latest"],
        ["tune", *TINY, "--trials", "3", "--workers", "1"],
        ["compare", *TINY, "--baselines", "muon", "--seeds", "2"],
    ],
)
def test_quiet_leaves_nothing_but_the_answer(cli, trained, arguments):
    done = cli.run(*arguments, "--quiet")
    assert (done.code, done.err) == (0, "")
    assert done.out
    done = cli.run(*arguments, "--quiet", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json


@pytest.mark.slow
def test_quiet_goes_to_all_processes(cli):
    done = cli.finish(cli.start("train", *TINY, "--nproc", "2", "--quiet"))
    assert done.code == 0
    assert "step" not in done.err
    assert "validation" in done.out
