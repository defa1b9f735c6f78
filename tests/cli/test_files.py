import os

import pytest

from fismo_cli.files import link_or_copy, sweep, whole_directory, whole_file


def leftovers(path):
    """What a process of this very number (in a container: number 1) leaves when it is killed while writing."""
    for end in ("tmp", "old"):
        folder = path.with_name(f".{path.name}.{os.getpid()}.{end}")
        folder.mkdir()
        (folder / "half").write_text("old")


def test_a_folder_is_written_over_the_leftovers_of_a_killed_process(tmp_path):
    leftovers(tmp_path / "model")
    with whole_directory(tmp_path / "model") as folder:
        (folder / "weights").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "weights"]


def test_a_file_is_written_over_the_leftovers_of_a_killed_process(tmp_path):
    leftovers(tmp_path / "file")
    with whole_file(tmp_path / "file") as file:
        file.write_text("new")
    assert (tmp_path / "file").read_text() == "new"


def test_sweeping_takes_temporary_names_only(tmp_path):
    leftovers(tmp_path / "model")
    (tmp_path / ".summary.json.17.tmp").write_text("")
    for name in (".lock", "model.tmp", "notes.1.tmp", ".hidden.tmp"):
        (tmp_path / name).write_text("")
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "model.tmp", "notes.1.tmp", ".hidden.tmp"}


@pytest.mark.parametrize("links", [True, False])
def test_a_linked_file_has_the_content_also_where_there_are_no_links(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_text("content")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "content"
    assert (tmp_path / "a").samefile(tmp_path / "b") == links


def refuse(*_):
    raise OSError("no links here")
