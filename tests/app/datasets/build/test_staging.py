"""A folder that appears whole or not at all, with and without the system's atomic exchange."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.datasets.build import staging
from app.datasets.build.errors import CannotWrite, TargetExists
from app.datasets.build.staging import staged


def write(target: Path, text: str, *, replace: bool = True) -> None:
    with staged(target, replace=replace) as folder:
        (folder / "a.parquet").write_text(text)


@pytest.fixture(params=["exchange", "two renames"])
def no_matter_how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "two renames":
        monkeypatch.setattr(staging, "_exchange", lambda *_: False)


@pytest.mark.usefixtures("no_matter_how")
def test_second_write_replaces_the_first_and_leaves_no_litter(tmp_path: Path) -> None:
    write(tmp_path / "out", "one")
    write(tmp_path / "out", "two")
    assert (tmp_path / "out" / "a.parquet").read_text() == "two"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.usefixtures("no_matter_how")
def test_failure_leaves_the_first(tmp_path: Path) -> None:
    write(tmp_path / "out", "one")

    def fail_halfway() -> None:
        with staged(tmp_path / "out", replace=True) as folder:
            (folder / "a.parquet").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert (tmp_path / "out" / "a.parquet").read_text() == "one"
    assert os.listdir(tmp_path) == ["out"]


def test_failed_second_rename_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out", "one")
    monkeypatch.setattr(staging, "_exchange", lambda *_: False)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".building-" in self.name and not self.name.endswith("-old"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(CannotWrite, match="No space left"):
        write(tmp_path / "out", "two")
    assert (tmp_path / "out" / "a.parquet").read_text() == "one"
    assert os.listdir(tmp_path) == ["out"]


def test_target_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def write_while_another_does() -> None:
        with staged(tmp_path / "out", replace=False) as folder:
            (folder / "a.parquet").write_text("mine")
            write(tmp_path / "out", "theirs")

    with pytest.raises(TargetExists, match="appeared"):
        write_while_another_does()
    assert (tmp_path / "out" / "a.parquet").read_text() == "theirs"


def test_others_may_read_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "out", "one")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_staging_is_hidden_so_that_it_is_never_taken_for_data(tmp_path: Path) -> None:
    with staged(tmp_path / "out", replace=False) as folder:
        assert folder.name.startswith(".out.building-")
        assert folder.parent == tmp_path
