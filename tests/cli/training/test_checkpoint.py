import errno
import json
import math
import random
import struct
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch

from fismo_cli.app import main
from fismo_cli.errors import FismoError
from fismo_cli.preset.loading import load_preset
from fismo_cli.runs.directory import RunDirectory
from fismo_cli.runs.execution import execute
from fismo_cli.training.checkpoints.state_tree import flatten, merge, rebuild
from fismo_cli.training.checkpoints.store import CheckpointStore
from fismo_cli.training.seeding import restore_rng_state, rng_state

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def exact_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def assert_same(left: object, right: object) -> None:
    """Equal to the last bit, with the same types, keys and order; NaN equals NaN."""
    assert type(left) is type(right), (left, right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert exact_bytes(left) == exact_bytes(right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        assert [type(key) for key in left] == [type(key) for key in right]
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    elif isinstance(left, float):
        assert struct.pack("d", left) == struct.pack("d", right) or (math.isnan(left) and math.isnan(right))
    else:
        assert left == right


def round_trip(tmp_path: Path, state: dict) -> dict:
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(1, state)
    loaded = CheckpointStore(tmp_path / "checkpoints").load()
    assert loaded is not None
    return loaded.state


def test_what_optimizers_keep_besides_tensors_and_the_order_in_memory(tmp_path):
    """The last digits of a product depend on whether a matrix lies by rows or by columns."""
    matrix = torch.randn(3, 5)
    state = {
        "queue": deque([torch.ones(2), torch.zeros(2)], maxlen=7),
        "dtype": torch.bfloat16,
        "columns": torch.linalg.qr(matrix.T)[0],
        "transposed": matrix.T,
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "gaps": torch.randn(4, 6)[:, ::2],
    }
    again = round_trip(tmp_path, state)
    assert again["dtype"] is torch.bfloat16
    assert isinstance(again["queue"], deque)
    assert again["queue"].maxlen == 7
    assert [value.tolist() for value in again["queue"]] == [[1.0, 1.0], [0.0, 0.0]]
    for key in ("columns", "transposed", "channels_last", "gaps"):
        assert torch.equal(again[key], state[key])
        assert key == "gaps" or again[key].stride() == state[key].stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_type_and_shape_survive_to_the_bit(tmp_path, dtype):
    values = torch.randn(5, 3) * 100
    base = values.to(dtype)
    state = {"full": base, "scalar": base[0, 0], "empty": base[:0], "transposed": base.t(), "strided": base[::2, 1:]}
    assert_same(round_trip(tmp_path, state), state)


def test_special_floats_survive_in_tensors_and_outside(tmp_path):
    state = {
        "tensor": torch.tensor([math.nan, -0.0, math.inf, 1e-45]),
        "list": [math.nan, math.inf, -math.inf, -0.0, 0.1, 1e-308, 1e308],
    }
    assert_same(round_trip(tmp_path, state), state)


def test_nested_state_keeps_key_types_order_tuples_and_none(tmp_path):
    state = {
        "state": {0: {"step": torch.tensor(3.0), "m": torch.ones(2)}, "0": {"m": torch.zeros(2)}, 10: None},
        "param_groups": [{"betas": (0.9, 0.95), "params": [0, 1], "flag": True, "foreach": None, "lr": 0.1}],
        "empty": {}, "nothing": [], "pair": (), "big": 2**70, "text": "naïve \n \x00",
        "like a document": {"tensor": "x", "dict": [], "float": "1"},
    }  # fmt: skip
    assert_same(round_trip(tmp_path, state), state)


def test_tensors_sharing_memory_are_saved_apart(tmp_path):
    base = torch.arange(10.0)
    state = {"tied": base, "again": base, "low": base[:6], "high": base[4:]}
    assert_same(round_trip(tmp_path, state), state)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.Adam([{"params": p[:1], "lr": 1e-3}, {"params": p[1:], "betas": (0.5, 0.9)}]),
    ],
)
def test_real_optimizer_state_survives(tmp_path, make):
    parameters = [torch.nn.Parameter(torch.randn(3, 3)), torch.nn.Parameter(torch.randn(3))]
    optimizer = make(parameters)
    for _ in range(3):
        sum(parameter.square().sum() for parameter in parameters).backward()
        optimizer.step()
    state = optimizer.state_dict()
    assert_same(round_trip(tmp_path, {"optimizer": state}), {"optimizer": state})


def test_random_generators_continue_where_they_were(tmp_path):
    random.gauss(0, 1), np.random.randn(), torch.randn(3)
    state = round_trip(tmp_path, {"rng": rng_state()})["rng"]

    def draws() -> tuple:
        return random.gauss(0, 1), random.random(), np.random.randn(3).tolist(), torch.randn(3).tolist()

    expected = draws()
    assert draws() != expected
    restore_rng_state(state)
    assert draws() == expected


def test_what_cannot_be_held_is_named_with_its_place():
    with pytest.raises(TypeError, match=r"optimizer\.hook.*object"):
        flatten({"optimizer": {"hook": object()}})


def test_no_pickle_is_on_disk(tmp_path):
    path = CheckpointStore(tmp_path).save(1, {"a": torch.ones(2), "b": (1, 2)})
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}


def test_last_ones_and_the_best_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step, loss in [(1, 0.9), (2, 0.1), (3, None), (4, 0.5), (5, 0.4)]:
        store.save(step, {"step": step}, validation_loss=loss)
    assert store.steps() == [2, 4, 5]
    assert store.load().state == {"step": 5}


def corrupt(path: Path, how: str) -> None:
    tensors = next(path.glob("*.safetensors"))
    match how:
        case "truncated":
            tensors.write_bytes(tensors.read_bytes()[:-3])
        case "flipped":
            content = bytearray(tensors.read_bytes())
            content[-1] ^= 1
            tensors.write_bytes(bytes(content))
        case "missing":
            tensors.unlink()
        case "unmarked":
            (path / "complete.json").unlink()
        case "marker":
            (path / "complete.json").write_text("{")
        case "state":
            (path / "state.json").write_text("{}")


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "unmarked", "marker", "state"])
def test_broken_checkpoint_is_passed_over_and_named(tmp_path, how):
    store = CheckpointStore(tmp_path)
    store.save(1, {"a": torch.ones(2)})
    corrupt(store.save(2, {"a": torch.zeros(2)}), how)
    loaded = store.load()
    assert loaded.step == 1
    assert loaded.state["a"].tolist() == [1.0, 1.0]
    assert len(loaded.problems) == 1
    assert "step-2" in loaded.problems[0]
    # The next save replaces it.
    store.save(2, {"a": torch.full((2,), 7.0)})
    assert store.load().state["a"].tolist() == [7.0, 7.0]


def test_only_broken_checkpoints_is_an_error_and_none_is_not(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.load() is None
    corrupt(store.save(1, {"a": torch.ones(2)}), "flipped")
    with pytest.raises(FismoError, match=r"step-1.*No whole checkpoint"):
        store.load()


def test_full_disk_leaves_earlier_checkpoints_and_nothing_partial(tmp_path, monkeypatch):
    import torch.distributed.checkpoint.filesystem as filesystem

    store = CheckpointStore(tmp_path)
    store.save(1, {"a": torch.ones(2)})

    class Full(filesystem.FileSystem):
        def create_stream(self, *_: object):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(filesystem, "FileSystem", Full)
    with pytest.raises(FismoError, match=r"step 2.*No space left on device"):
        store.save(2, {"a": torch.ones(2)})
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert store.load().step == 1


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    (tmp_path / ".step-9.123.tmp").mkdir(parents=True)
    store = CheckpointStore(tmp_path)
    assert store.steps() == []
    store.save(1, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_marker_names_every_file(tmp_path):
    path = CheckpointStore(tmp_path).save(1, {"a": torch.ones(2)})
    marker = json.loads((path / "complete.json").read_text())
    assert set(marker["files"]) == {file.name for file in path.iterdir()} - {"complete.json"}


def test_documents_of_several_processes_become_one():
    """All entries of dicts, however deep; of what several have, and of lists, the first one's."""
    states = [
        {"rank": 0, "owned": {0: {"a": 1}, 2: {}}, "list": [0, {"x": 0}], "kind": {}},
        {"rank": 1, "owned": {1: {"a": 2}, 0: {"b": (3,)}}, "list": [1, {"y": 0}], "kind": 5, "0": 7, 0: 8},
    ]
    merged = rebuild(merge([flatten(state)[1] for state in states]), {})
    assert merged == {
        "rank": 0, "owned": {0: {"a": 1, "b": (3,)}, 2: {}, 1: {"a": 2}}, "list": [0, {"x": 0}], "kind": {}, "0": 7,
        0: 8,
    }  # fmt: skip
    assert merge([flatten(states[0])[1]]) == flatten(states[0])[1]


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "preset.yaml").touch()
    return tmp_path / "run"


def export(capsys, *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as leaving:
        main(["export", *map(str, arguments)])
    captured = capsys.readouterr()
    return leaving.value.code, " ".join((captured.err + captured.out).split())


def test_export_takes_the_average_where_there_is_one_and_the_newest_whole_checkpoint(capsys, run_dir, tmp_path):
    from safetensors.torch import load_file

    store, file = CheckpointStore(run_dir / "checkpoints"), tmp_path / "new" / "w.safetensors"
    store.save(1, {"model": {"w": torch.ones(2)}, "average": None})
    assert export(capsys, run_dir, file)[0] == 0
    assert load_file(file)["w"].tolist() == [1, 1]
    store.save(2, {"model": {"w": torch.ones(2)}, "average": {"w": torch.full((2,), 3.0)}})
    assert export(capsys, run_dir, file) == (0, f"the weights, averaged (train.ema_decay), of step 2 are in {file}")
    assert load_file(file)["w"].tolist() == [3, 3]
    (store.path(2) / "state.json").unlink()
    code, said = export(capsys, run_dir, file)
    assert code == 0
    assert "state.json is missing" in said
    assert said.endswith(f"the weights of step 1 are in {file}")


def test_export_of_a_run_that_has_completed_is_its_final_model_unless_a_step_is_asked_for(capsys, tmp_path):
    from safetensors.torch import load_file

    steps = ["train.epochs=null", "train.steps=5", "checkpoint.every=2", "evaluate.every=2"]
    loaded = load_preset("digits-vit", [*steps, "train.ema_decay=0.5"])
    run = RunDirectory(Path(execute(loaded, runs_dir=tmp_path / "runs")["run_dir"]))
    file = tmp_path / "w.safetensors"
    said = f"the final weights, averaged (train.ema_decay), of step 5 are in {file}"
    assert export(capsys, run.path, file) == (0, said)
    final = load_file(file)
    for name, value in load_file(run.model / "model.safetensors").items():
        assert torch.equal(value, final[name]), name
    said = f"the weights, averaged (train.ema_decay), of step 2 are in {file}"
    assert export(capsys, run.path, file, "--step", "2") == (0, said)
    assert any(not torch.equal(value, final[name]) for name, value in load_file(file).items())
    records = map(json.loads, run.metrics.read_text().splitlines())
    losses = {record["step"]: record["metrics"]["loss"] for record in records if record["event"] == "Evaluated"}
    best = min((2, 4), key=losses.__getitem__)
    assert f"of step {best} are" in export(capsys, run.path, file, "--step", "best")[1]
    assert "of step 4 are" in export(capsys, run.path, file, "--step", "last")[1]
    code, said = export(capsys, run.path, file, "--step", "3")
    assert code == 2
    assert "no checkpoint of step 3; there are those of 2, 4" in said
    assert export(capsys, run.path, file, "--step", "-1")[0] == 2


def test_export_says_what_is_wrong(capsys, run_dir, tmp_path):
    assert export(capsys, tmp_path, "w.safetensors") == (
        2,
        f"error: {tmp_path}: not a run directory (it has no preset.yaml)",
    )
    assert export(capsys, run_dir, "w.bin") == (2, "error: w.bin: the file's name must end in .safetensors")
    code, said = export(capsys, run_dir, tmp_path / "w.safetensors")
    assert (code, said) == (2, f"error: {run_dir}: this run has no checkpoint (see checkpoint.every)")
    assert not (tmp_path / "w.safetensors").exists()
