"""The best checkpoint: plain weights, equal bytes for equal weights, whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.worker.engine.factory import VIVIT, make_request, make_run, train
from worker.engine.checkpoint import save_best
from worker.engine.events import BestFile, EpochDone
from worker.models import build_model, load

torch.set_num_threads(1)


def save(model: nn.Module, directory: Path) -> BestFile:
    return save_best(model, directory, epoch=3, previous_loss=None, sidecar={"classes": ["a", "b"]})


def test_equal_weights_give_equal_bytes_in_any_folder(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "a longer name"]
    for folder in folders:
        folder.mkdir()
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    first, second = (save(model, folder) for folder in folders)
    assert first == second
    assert (folders[0] / first.name).read_bytes() == (folders[1] / second.name).read_bytes()


def test_the_name_says_epoch_and_content(tmp_path: Path) -> None:
    best = save(nn.Linear(3, 2), tmp_path)
    content = (tmp_path / best.name).read_bytes()
    assert best.sha256 == hashlib.sha256(content).hexdigest()
    assert best.name == f"best-e0003-{best.sha256[:16]}.pth"
    assert best.size == len(content)
    assert best.sidecar == {"classes": ["a", "b"], "sha256": best.sha256, "epoch": 3}
    assert [path.name for path in tmp_path.iterdir()] == [best.name]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        save(nn.Linear(3, 2), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failures", [1, 2])
def test_a_failed_fsync_is_not_repeated_but_the_file_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    asked: list[int] = []
    fsync = os.fsync

    def fail(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".tmp"):
            asked.append(fd)
            if len(asked) <= failures:
                raise OSError(errno.EIO, "Input/output error")
        fsync(fd)

    monkeypatch.setattr("os.fsync", fail)
    if failures == 1:
        best = save(nn.Linear(3, 2), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [best.name]
    else:
        with pytest.raises(OSError, match="Input/output error"):
            save(nn.Linear(3, 2), tmp_path)
        assert list(tmp_path.iterdir()) == []
    assert len(asked) == 2


def test_the_content_is_durable_before_the_name_and_the_name_before_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(fd: int) -> None:
        done.append("folder" if Path(os.readlink(f"/proc/self/fd/{fd}")).is_dir() else "file")
        fsync(fd)

    def noted_rename(path: Path, target: Path) -> Path:
        done.append("rename")
        return rename(path, target)

    monkeypatch.setattr("os.fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    save(nn.Linear(3, 2), tmp_path)
    assert done == ["file", "rename", "folder"]


def test_each_better_epoch_is_saved_and_loads_into_the_plain_model(tmp_path: Path) -> None:
    request = make_request(model=VIVIT, optimizer={"lr": 1e-2})
    events = train(make_run(request, directory=tmp_path, sidecar={"classes": ["n", "s", "l", "x"]}))
    epochs = [e for e in events if isinstance(e, EpochDone)]
    bests = [e.best for e in epochs if e.best]
    assert len(bests) >= 2
    lowest: float | None = None
    for epoch in epochs:
        is_better = lowest is None or epoch.val_loss < lowest
        assert (epoch.best is not None) == is_better
        if epoch.best:
            assert epoch.best.previous_loss == lowest
            lowest = epoch.val_loss
    model = build_model(request.model, window=4, shape=(2, 6), num_classes=4)
    model.load_state_dict(torch.load(tmp_path / bests[-1].name, weights_only=True))


def test_the_published_pair_gives_the_model_back(tmp_path: Path) -> None:
    run = make_run(make_request(model=VIVIT), directory=tmp_path)
    train(run)
    assert run.best is not None
    # What the supervisor does.
    (tmp_path / run.best.name).rename(tmp_path / "saimp_best.pth")
    (tmp_path / "saimp_best.json").write_text(json.dumps(run.best.sidecar))
    model, sidecar = load(tmp_path / "saimp_best.pth")
    assert sidecar["metrics"]["val_loss"] == run.stopping.best_loss
    x_BTF = torch.randn(2, 4, 2, 6)
    assert model(x_BTF).shape == (2, 4)
