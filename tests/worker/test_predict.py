"""Predictions over files: those of the model on every window, however the rows are cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from app.datasets.errors import DataError
from tests.worker.best import save_best
from worker.models import CorruptCheckpoint, SequenceModel
from worker.predict import Predicted, main, predict, split_path

torch.set_num_threads(1)

MLP = {"name": "mlp", "d_model": 6, "hidden": 7}
LSTM = {"name": "lstm", "d_model": 5, "hidden": 6}
SHAPE, WINDOW = (2, 6), 4


def make_rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)


def make_table(
    rows_RF: NDArray[np.float32], times_s: Any, groups: list[str] | None = None, **extra: Any
) -> pa.Table:
    flat = pa.array(rows_RF.ravel())
    columns: dict[str, Any] = {
        "timestamp": pa.array(np.asarray(times_s, np.int64) * 1_000_000).cast(pa.timestamp("us", "UTC")),
        "features": pa.FixedSizeListArray.from_arrays(flat, 12),
        **extra,
    }
    if groups is not None:
        columns["symbol"] = pa.array(groups)
    return pa.table(columns)


def expected(net: SequenceModel, rows_RF: NDArray[np.float32], ends: list[int]) -> NDArray[np.float32]:
    x_BTF = torch.stack([torch.from_numpy(rows_RF[end - WINDOW + 1 : end + 1]) for end in ends])
    found: NDArray[np.float32] = net(x_BTF).double().softmax(-1).detach().float().numpy()
    return found


def probabilities(table: pa.Table) -> NDArray[np.float32]:
    return np.stack([table[f"prob_{name}"].to_numpy() for name in "abc"], axis=1)


@pytest.mark.parametrize("model", [MLP, LSTM], ids=["mlp", "lstm"])
@pytest.mark.parametrize("stride", [1, 3, 6])
@pytest.mark.parametrize("piece_rows", [1, 3, 7, 8192])
def test_every_window_gets_the_models_probabilities(
    model: dict[str, Any], stride: int, piece_rows: int, tmp_path: Path
) -> None:
    checkpoint, net = save_best(tmp_path, model, data={"stride": stride})
    rows_RF = make_rows(30)
    data = tmp_path / "d"
    data.mkdir()
    # Names against the order of time; no label column.
    pq.write_table(make_table(rows_RF[:11], range(11)), data / "z.parquet", row_group_size=5)
    pq.write_table(make_table(rows_RF[11:], range(11, 30)), data / "a.parquet")
    out = tmp_path / "preds.parquet"
    ends = list(range(WINDOW - 1, 30, stride))
    assert predict(checkpoint, data, out, piece_rows=piece_rows) == Predicted(out, len(ends), None, 0)
    found = pq.read_table(out)
    np.testing.assert_allclose(probabilities(found), expected(net, rows_RF, ends), rtol=1e-5, atol=1e-6)
    assert found["timestamp"].cast(pa.int64()).to_pylist() == [end * 1_000_000 for end in ends]
    assert found["prediction"].to_pylist() == probabilities(found).argmax(1).tolist()
    assert found["class"].to_pylist() == ["abc"[k] for k in found["prediction"].to_pylist()]
    assert found.schema.field("timestamp").type == pa.timestamp("us", "UTC")
    about = json.loads(found.schema.metadata[b"saimp"])
    assert (about["job_id"], about["classes"]) == ("JOB", ["a", "b", "c"])


@pytest.mark.parametrize("piece_rows", [1, 5, 8192])
def test_a_window_is_of_one_group(piece_rows: int, tmp_path: Path) -> None:
    checkpoint, net = save_best(tmp_path, MLP, data={"group": "symbol"})
    rows_RF = make_rows(40)
    groups = np.random.default_rng(1).choice(["x", "y"], 40).tolist()
    data = tmp_path / "d.parquet"
    pq.write_table(make_table(rows_RF, [n // 2 for n in range(40)], groups), data)
    predict(checkpoint, str(data), tmp_path / "p.parquet", piece_rows=piece_rows)
    found = pq.read_table(tmp_path / "p.parquet")
    for group in "xy":
        own = rows_RF[[g == group for g in groups]]
        of_group = np.array([g == group for g in found["symbol"].to_pylist()])
        ends = list(range(WINDOW - 1, len(own)))
        np.testing.assert_allclose(
            probabilities(found)[of_group], expected(net, own, ends), rtol=1e-5, atol=1e-6
        )
    assert found["timestamp"].to_pylist() == sorted(found["timestamp"].to_pylist())


@pytest.mark.parametrize("piece_rows", [1, 4, 8192])
def test_a_gap_is_in_no_window(piece_rows: int, tmp_path: Path) -> None:
    checkpoint, net = save_best(tmp_path, MLP, data={"max_gap_s": 1.0})
    rows_RF = make_rows(20)
    times = [n if n < 9 else n + 5 for n in range(20)]
    pq.write_table(make_table(rows_RF, times), tmp_path / "d.parquet")
    predict(checkpoint, str(tmp_path / "d.parquet"), tmp_path / "p.parquet", piece_rows=piece_rows)
    ends = [*range(3, 9), *range(12, 20)]
    found = pq.read_table(tmp_path / "p.parquet")
    np.testing.assert_allclose(probabilities(found), expected(net, rows_RF, ends), rtol=1e-5, atol=1e-6)


def test_a_row_that_is_not_finite_is_named(tmp_path: Path) -> None:
    checkpoint, _ = save_best(tmp_path, MLP)
    rows_RF = make_rows(20)
    rows_RF[13, 1, 2] = np.nan
    pq.write_table(make_table(rows_RF, range(20)), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d\.parquet, row 13"):
        predict(checkpoint, str(tmp_path / "d.parquet"), tmp_path / "p.parquet", piece_rows=5)
    assert not (tmp_path / "p.parquet").exists()
    assert not (tmp_path / ".p.parquet.tmp").exists()


def test_time_that_goes_back_is_named(tmp_path: Path) -> None:
    checkpoint, _ = save_best(tmp_path, MLP)
    pq.write_table(make_table(make_rows(9), [0, 1, 2, 3, 4, 2, 6, 7, 8]), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="row 5"):
        predict(checkpoint, str(tmp_path / "d.parquet"), tmp_path / "p.parquet", piece_rows=5)


@pytest.mark.parametrize("missing", ["timestamp", "features"])
def test_data_without_a_column_of_training_are_refused(missing: str, tmp_path: Path) -> None:
    checkpoint, _ = save_best(tmp_path, MLP)
    table = make_table(make_rows(9), range(9), other=pa.array([0.0] * 9)).drop_columns([missing])
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(DataError, match=missing):
        predict(checkpoint, str(tmp_path / "d.parquet"), tmp_path / "p.parquet")


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    checkpoint, _ = save_best(tmp_path, MLP, shape=(2, 5))
    pq.write_table(make_table(make_rows(9), range(9)), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="12 elements"):
        predict(checkpoint, str(tmp_path / "d.parquet"), tmp_path / "p.parquet")


def test_fewer_rows_than_a_window_give_an_empty_table(tmp_path: Path) -> None:
    checkpoint, _ = save_best(tmp_path, MLP)
    pq.write_table(make_table(make_rows(3), range(3)), tmp_path / "d.parquet")
    assert predict(checkpoint, tmp_path / "d.parquet", tmp_path / "p.parquet").windows == 0
    assert pq.read_table(tmp_path / "p.parquet").num_rows == 0


def test_predictions_beside_the_data_are_not_data(tmp_path: Path) -> None:
    checkpoint, _ = save_best(tmp_path, MLP)
    data = tmp_path / "d"
    data.mkdir()
    pq.write_table(make_table(make_rows(9), range(9)), data / "d.parquet")
    for _ in range(2):
        assert predict(checkpoint, data, data / "preds.parquet").windows == 6


def test_columns_of_ours_make_way_for_those_of_the_data(tmp_path: Path) -> None:
    checkpoint, _ = save_best(tmp_path, MLP, data={"group": "class", "label": "prob_a"})
    keys = {"class": pa.array(["x"] * 9).dictionary_encode(), "prob_a": pa.array([0] * 9)}
    table = make_table(make_rows(9), range(9), **keys)
    pq.write_table(table, tmp_path / "d.parquet")
    predict(checkpoint, str(tmp_path / "d.parquet"), tmp_path / "p.parquet")
    names = pq.read_table(tmp_path / "p.parquet").column_names
    assert names == ["timestamp", "class", "prob_a", "prediction", "class_", "prob_a_", "prob_b", "prob_c"]


@pytest.mark.parametrize("piece_rows", [1, 5, 8192])
def test_labels_are_written_and_scored_with_the_jobs_loss(piece_rows: int, tmp_path: Path) -> None:
    checkpoint, net = save_best(tmp_path, MLP, loss={"class_weights": [1.0, 5.0, 2.0]})
    rows_RF = make_rows(20) * 40  # sure of itself: some probabilities are 0 as float32
    labels: list[int | None] = [*np.random.default_rng(2).integers(0, 3, 20).tolist()]
    labels[10] = None
    pq.write_table(make_table(rows_RF, range(20), label=pa.array(labels, pa.int8())), tmp_path / "d.parquet")
    found = predict(checkpoint, tmp_path / "d.parquet", tmp_path / "p.parquet", piece_rows=piece_rows)
    table = pq.read_table(tmp_path / "p.parquet")
    assert table["label"].to_pylist() == labels[WINDOW - 1 :]
    known = [end for end in range(WINDOW - 1, 20) if labels[end] is not None]
    assert found.windows == 17
    assert found.scores is not None
    assert found.scores["windows"] == len(known) == 16
    x_BTF = torch.stack([torch.from_numpy(rows_RF[end - WINDOW + 1 : end + 1]) for end in known])
    own = torch.tensor([labels[end] for end in known])
    logits_BK = net(x_BTF).detach().double()
    weights = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
    assert found.scores["loss"] == pytest.approx(float(cross_entropy(logits_BK, own, weights)), rel=1e-6)
    assert found.scores["accuracy"] == float((logits_BK.argmax(1) == own).double().mean())
    assert np.trace(found.scores["confusion"]) == round(16 * found.scores["accuracy"])
    assert set(found.scores["per_class"]) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            pa.array([0, 1, 2, 3, 0, 1], pa.int64()),
            r"row 3 .*: label 3 is not one of the model's classes, 0\.\.2",
        ),
        (pa.array([0, 2**63 + 1, 2, 0, 0, 1], pa.uint64()), "row 1 .*: label 9223372036854775809 is not"),
        (pa.array([0, -1, 2, 0, 0, 1], pa.int8()), "row 1 .*: label -1 is not"),
        (pa.array(list("abcabc")), "is string, not an integer"),
        (pa.array([0.0] * 6), "is double, not an integer"),
    ],
    ids=["too high", "huge", "negative", "text", "float"],
)
def test_labels_the_model_does_not_know_are_named(labels: pa.Array, message: str, tmp_path: Path) -> None:
    checkpoint, _ = save_best(tmp_path, MLP)
    pq.write_table(make_table(make_rows(6), range(6), label=labels), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=message):
        predict(checkpoint, tmp_path / "d.parquet", tmp_path / "p.parquet")
    assert not (tmp_path / "p.parquet").exists()


@pytest.mark.parametrize("kind", [pa.int64(), pa.null()], ids=str)
def test_labels_that_are_all_missing_give_no_scores(kind: pa.DataType, tmp_path: Path) -> None:
    checkpoint, _ = save_best(tmp_path, MLP)
    nothing = pa.array([None] * 6, kind)
    pq.write_table(make_table(make_rows(6), range(6), label=nothing), tmp_path / "d.parquet")
    assert predict(checkpoint, tmp_path / "d.parquet", tmp_path / "p.parquet").scores is None


def test_labels_without_weight_have_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, _ = save_best(tmp_path, MLP, loss={"class_weights": [0.0, 1.0, 1.0]})
    pq.write_table(make_table(make_rows(6), range(6), label=pa.array([0] * 6)), tmp_path / "d.parquet")
    assert main([str(checkpoint), str(tmp_path / "d.parquet"), "--out", str(tmp_path / "p.parquet")]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out, parse_constant=pytest.fail)["scores"]["loss"] is None
    assert said.err.startswith("Loss: none | Acc:")


def test_a_sidecar_too_small_to_predict_with_is_named(tmp_path: Path) -> None:
    checkpoint, _ = save_best(tmp_path, MLP)
    sidecar = checkpoint.with_suffix(".json")
    about = json.loads(sidecar.read_text())
    del about["classes"], about["resolved"]["features"]
    sidecar.write_text(json.dumps(about))
    with pytest.raises(CorruptCheckpoint, match=r"lacks classes, resolved\.features"):
        predict(checkpoint, tmp_path, tmp_path / "p.parquet")


def test_windows_of_the_time_of_training_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, _ = save_best(tmp_path, MLP)
    sidecar = checkpoint.with_suffix(".json")
    about = json.loads(sidecar.read_text())
    about["resolved"]["cuts_ns"] = [7_000_000_000, None]
    sidecar.write_text(json.dumps(about))
    pq.write_table(make_table(make_rows(9), range(9)), tmp_path / "d.parquet")
    assert predict(checkpoint, tmp_path / "d.parquet", tmp_path / "p.parquet").trained_on == 4
    assert main([str(checkpoint), str(tmp_path / "d.parquet"), "--out", str(tmp_path / "p.parquet")]) == 0
    assert "4 of the 6 windows end before the model's validation began" in capsys.readouterr().err


def test_a_path_that_is_not_there_says_where_it_is_looked_for(tmp_path: Path) -> None:
    checkpoint, _ = save_best(tmp_path, MLP)
    for path in (tmp_path / "btc", tmp_path / "gone" / "btc", tmp_path / "*.csv"):
        with pytest.raises(DataError, match=r"There is no folder|No Parquet file") as caught:
            predict(checkpoint, path, tmp_path / "p.parquet")
        assert "read from the current folder" in str(caught.value.hint)
        assert "data root" not in str(caught.value)


def test_a_path_is_a_file_a_folder_or_a_glob(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.parquet").touch()
    assert split_path(str(tmp_path / "d")) == (tmp_path / "d", ".")
    assert split_path(str(tmp_path / "d" / "a.parquet")) == (tmp_path / "d", "a.parquet")
    assert split_path(str(tmp_path / "d" / "2025-*" / "*.parquet")) == (tmp_path / "d", "2025-*/*.parquet")
    assert split_path("gone.parquet") == (Path(), "gone.parquet")


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, _ = save_best(tmp_path, MLP)
    pq.write_table(make_table(make_rows(9), range(9)), tmp_path / "d.parquet")
    out = str(tmp_path / "p.parquet")
    assert main([str(checkpoint), str(tmp_path / "d.parquet"), "--out", out]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": out,
        "windows": 6,
        "scores": None,
        "trained_on": 0,
    }
    assert main([str(checkpoint), str(tmp_path / "gone.parquet"), "--out", out]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    labelled = make_table(make_rows(9), range(9), label=pa.array([0, 1, 2] * 3))
    pq.write_table(labelled, tmp_path / "d.parquet")
    assert main([str(checkpoint), str(tmp_path / "d.parquet"), "--out", out]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["scores"]["windows"] == 6
    assert "| all 6 windows have a label" in said.err


def test_an_error_is_one_line_that_a_terminal_only_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, _ = save_best(tmp_path, MLP)
    table = make_table(make_rows(9), range(9)).rename_columns(["timestamp", "a\x1b[2Jb\nc"])
    pq.write_table(table, tmp_path / "d.parquet")
    assert main([str(checkpoint), str(tmp_path / "d.parquet"), "--out", str(tmp_path / "p.parquet")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\x1b" not in said
    folder = tmp_path / "gone\x1b[2J"
    assert main([str(folder / "best.pth"), "x", "--out", "y"]) == 1
    assert "\\x1b[2J" in capsys.readouterr().err
