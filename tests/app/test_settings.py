"""Settings from the environment and .env."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.settings import PREFIX, Settings, SettingsError, load


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)


def test_defaults_are_the_contract() -> None:
    settings = load()
    assert (settings.host, settings.port, settings.auth) == ("127.0.0.1", 8000, "token")
    assert settings.stream_budget == 512 * 2**20
    assert settings.database == f"sqlite:///{Path('data').absolute() / 'saimp.db'}"


def test_the_environment_beats_the_file_and_an_argument_beats_both(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("SAIMP_PORT=1\nSAIMP_HOST=localhost\n")
    monkeypatch.setenv("SAIMP_PORT", "2")
    assert (load().port, load().host, load(port=3).port) == (2, "localhost", 3)


def test_an_unknown_name_is_refused_with_the_nearest_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAIMP_DATAROOT", "x")
    with pytest.raises(SettingsError, match="SAIMP_DATAROOT: did you mean SAIMP_DATA_ROOT"):
        load()


def test_an_unknown_name_in_the_file_is_refused() -> None:
    Path(".env").write_text("SAIMP_PROT=1\n")
    with pytest.raises(SettingsError, match="SAIMP_PROT"):
        load()


@pytest.mark.parametrize(
    ("text", "size"), [("1073741824", 2**30), ("2GiB", 2**31), ("100 MB", 10**8)], ids=["plain", "gib", "mb"]
)
def test_sizes_have_units(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("SAIMP_STREAM_BUDGET", text)
    assert load().stream_budget == size


@pytest.mark.parametrize(("name", "value"), [("STREAM_BUDGET", "lots"), ("PORT", "70000"), ("AUTH", "on")])
def test_a_bad_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(SettingsError, match=PREFIX + name):
        load()


def test_devices_are_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().slots == (None,)
    monkeypatch.setenv("SAIMP_DEVICES", "cuda:0, cuda:10,cpu:1")
    assert load().slots == ("cuda:0", "cuda:10", "cpu:1")


@pytest.mark.parametrize(
    "value", ["0,1", "cuda", "cuda:0;cuda:1", "cuda:0,cuda:0", "cuda:-1", "cuda:01", "gpu:0"]
)
def test_devices_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SAIMP_DEVICES", value)
    with pytest.raises(SettingsError, match=r"SAIMP_DEVICES.*such as cuda:0,cuda:1"):
        load()


def test_the_readme_has_a_row_for_every_setting() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert set(re.findall(r"SAIMP_[A-Z0-9_]+[A-Z]", readme)) == {
        PREFIX + name.upper() for name in Settings.model_fields
    }
