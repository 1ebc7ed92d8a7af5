"""A best checkpoint read back: alone, with its sidecar, or refused in a sentence that says what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.worker.engine.factory import VIVIT, make_request, make_run, train
from worker.engine.run import Run
from worker.models import CorruptCheckpoint, build_model, load
from worker.models.normalizer import Scaling

torch.set_num_threads(1)

CLASSES = ["Neutro", "Stop", "Long", "SuperLong"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained run with a normaliser, described as a runner does it."""
    scaling = Scaling(torch.full((2, 6), 3.0), torch.full((2, 6), 2.0))
    run = make_run(
        make_request(model=VIVIT, data={"path": "x", "window": 4, "normalize": "standard"}),
        directory=tmp_path_factory.mktemp("run"),
        sidecar={
            "job_id": "JOB",
            "attempt": 1,
            "classes": CLASSES,
            "resolved": {"features": ["features"], "shape": [2, 6], "class_weights": None, "threads": 1},
        },
        scaling=scaling,
    )
    train(run)
    return run


@pytest.fixture
def checkpoint(run: Run, tmp_path: Path) -> Path:
    """The checkpoint alone, as a download leaves it."""
    assert run.best is not None
    return Path(shutil.copy(run.directory / run.best.name, tmp_path / "saimp_best.pth"))


def add_sidecar(run: Run, checkpoint: Path, **changes: object) -> Path:
    assert run.best is not None
    path = checkpoint.with_suffix(".json")
    path.write_text(json.dumps({**run.best.sidecar, **changes}))
    return path


def test_a_checkpoint_that_came_alone_is_ready_to_use(run: Run, checkpoint: Path) -> None:
    assert run.best is not None
    model, about = load(checkpoint)
    assert not model.training
    assert about["sha256"] == run.best.sha256
    assert about["classes"] == CLASSES
    assert about["config"]["data"]["normalize"] == "standard"
    assert about["config"]["loss"]["name"] == "cross_entropy"
    assert about["resolved"] == {"features": ["features"], "shape": [2, 6], "class_weights": None}
    x_BTF = torch.randn(2, 4, 2, 6)
    run.model.eval()
    assert torch.equal(model(x_BTF), run.model(x_BTF))


def test_with_its_sidecar_it_gives_all_that_is_known(run: Run, checkpoint: Path) -> None:
    add_sidecar(run, checkpoint)
    _, about = load(checkpoint)
    assert (about["job_id"], about["epoch"]) == ("JOB", run.best.sidecar["epoch"] if run.best else None)
    assert "val_loss" in about["metrics"]


def test_it_is_a_plain_state_dict_all_the_same(run: Run, checkpoint: Path) -> None:
    weights = torch.load(checkpoint, weights_only=True)
    assert list(weights) == list(run.model.state_dict())
    plain = build_model(run.request.model, window=4, shape=(2, 6), num_classes=4)
    plain.load_state_dict({name[6:]: w for name, w in weights.items() if name.startswith("model.")})
    run.model.load_state_dict(weights)


def test_equal_models_of_different_jobs_are_equal_files(run: Run, tmp_path: Path) -> None:
    sidecar = {**run.sidecar, "job_id": "OTHER", "attempt": 7}
    request = run.request.model_copy(update={"name": "another", "max_attempts": 9})
    scaling = Scaling(torch.full((2, 6), 3.0), torch.full((2, 6), 2.0))
    other = make_run(request, directory=tmp_path, sidecar=sidecar, scaling=scaling)
    train(other)
    assert run.best is not None
    assert other.best is not None
    assert other.best.sha256 == run.best.sha256


def test_a_sidecar_of_another_file_is_refused(run: Run, checkpoint: Path) -> None:
    add_sidecar(run, checkpoint, sha256="0" * 64)
    with pytest.raises(CorruptCheckpoint, match=r"its sidecar says 000.*saimp pull JOB.*take it away"):
        load(checkpoint)


@pytest.mark.parametrize("text", ["", "[]", '{"type": "about:blank"}'], ids=["empty", "list", "problem"])
def test_a_sidecar_that_is_none_is_refused(checkpoint: Path, text: str) -> None:
    checkpoint.with_suffix(".json").write_text(text)
    with pytest.raises(CorruptCheckpoint, match="describes no checkpoint"):
        load(checkpoint)


@pytest.mark.parametrize("key", ["config", "shapes"])
def test_a_sidecar_that_lacks_something_is_named(run: Run, checkpoint: Path, key: str) -> None:
    path = add_sidecar(run, checkpoint)
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    with pytest.raises(CorruptCheckpoint, match=f"lacks '{key}'"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("model", "why"),
    [({"name": "of_tomorrow"}, "newer version"), ({**VIVIT, "d_model": 16}, "size mismatch")],
    ids=["newer", "other"],
)
def test_a_checkpoint_of_another_model_than_it_says_is_refused(
    run: Run, checkpoint: Path, model: dict[str, object], why: str
) -> None:
    assert run.best is not None
    add_sidecar(run, checkpoint, config={**run.best.sidecar["config"], "model": model})
    with pytest.raises(CorruptCheckpoint, match=why):
        load(checkpoint)


def test_an_older_file_without_its_sidecar_says_what_to_fetch(checkpoint: Path) -> None:
    torch.save(dict(torch.load(checkpoint, weights_only=True)), checkpoint)
    with pytest.raises(FileNotFoundError, match=r"saimp_best\.json is missing.*saimp pull JOB"):
        load(checkpoint)


@pytest.mark.parametrize(
    "content",
    [b"", b'{"type": "about:blank", "status": 404}', b"PK\x03\x04"],
    ids=["empty", "problem", "zip"],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "saimp_best.pth").write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match="is no checkpoint, or a damaged one"):
        load(tmp_path / "saimp_best.pth")


def test_a_damaged_checkpoint_is_refused(checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptCheckpoint, match="damaged"):
        load(checkpoint)


def test_a_file_that_is_not_there_says_what_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file .*gone\.pth.*saimp pull JOB"):
        load(tmp_path / "gone.pth")
