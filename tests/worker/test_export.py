"""A best checkpoint in other formats: the same numbers, the sidecar inside."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.best import save_best
from worker.export import ExportFailed, Format, export, main
from worker.models import load
from worker.models.normalizer import Scaling

torch.set_num_threads(1)

MODELS: dict[str, dict[str, Any]] = {
    "vivit": {"name": "vivit", "d_model": 8, "heads": 2, "layers": 2},
    "mlp": {"name": "mlp", "d_model": 6, "hidden": 7},
    "transformer": {"name": "transformer", "d_model": 8, "heads": 2, "layers": 2},
    "tcn": {"name": "tcn", "d_model": 5},
    "lstm": {"name": "lstm", "d_model": 5, "hidden": 6, "layers": 2},
    "gru": {"name": "gru", "d_model": 5, "hidden": 6, "layers": 2},
    "cnn_lstm": {"name": "cnn_lstm", "channels": 3, "hidden": 5},
    "custom": {"name": "custom", "target": "tests.worker.models.custom_nets:Windows"},
}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


@each_model
def test_onnx_gives_the_models_numbers_for_any_number_of_windows(
    model: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    checkpoint, net = save_best(tmp_path, model)
    path = export(checkpoint, "onnx", allowed_prefixes=["tests"])
    assert path == tmp_path / "saimp_best.onnx"
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    for count in (1, 2, 7):
        x_BTF = torch.randn(count, 4, 2, 6)
        (found_BK,) = session.run(["logits"], {"rows": x_BTF.numpy()})
        torch.testing.assert_close(torch.from_numpy(found_BK), net(x_BTF).detach(), rtol=1e-4, atol=1e-4)
    about = json.loads(session.get_modelmeta().custom_metadata_map["saimp"])
    assert about["classes"] == ["a", "b", "c"]


@each_model
def test_torch_export_gives_the_models_numbers(model: dict[str, Any], tmp_path: Path) -> None:
    checkpoint, net = save_best(tmp_path, model)
    path = export(checkpoint, "torch_export", allowed_prefixes=["tests"])
    extra = {"saimp": ""}
    with path.open("rb") as file:
        module = torch.export.load(file, extra_files=extra).module()
    for count in (1, 7):
        x_BTF = torch.randn(count, 4, 2, 6)
        torch.testing.assert_close(module(x_BTF), net(x_BTF), rtol=1e-5, atol=1e-5)
    assert json.loads(extra["saimp"])["epoch"] == 3


@each_model
def test_safetensors_hold_the_weights_by_their_names(model: dict[str, Any], tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    checkpoint, net = save_best(tmp_path, model)
    path = export(checkpoint, "safetensors", tmp_path / "w.safetensors", allowed_prefixes=["tests"])
    with safetensors.safe_open(path, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["saimp"])
    expected = net.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert about["sha256"] == json.loads((tmp_path / "saimp_best.json").read_text())["sha256"]


@pytest.mark.parametrize("form", ["safetensors", "onnx", "torch_export"])
@each_model
def test_a_normalised_model_is_exported_with_its_numbers(
    model: dict[str, Any], form: Format, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    runtime, safetensors = pytest.importorskip("onnxruntime"), pytest.importorskip("safetensors.torch")
    # Prices: around 100,000, a few ticks apart.
    scaling = Scaling(
        torch.full((2, 6), 1e5, dtype=torch.float64), torch.full((2, 6), 0.5, dtype=torch.float64)
    )
    checkpoint, net = save_best(tmp_path, model, data={"normalize": "standard"}, scaling=scaling)
    path = export(checkpoint, form, allowed_prefixes=["tests"])
    x_BTF = 1e5 + torch.randn(5, 4, 2, 6)
    expected_BK = net(x_BTF).detach()
    match form:
        case "safetensors":
            other, _ = load(checkpoint, allowed_prefixes=["tests"])
            other.load_state_dict(safetensors.load_file(path))
            found_BK = other(x_BTF).detach()
        case "onnx":
            session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
            found_BK = torch.from_numpy(session.run(["logits"], {"rows": x_BTF.numpy()})[0])
        case "torch_export":
            with path.open("rb") as file:
                found_BK = torch.export.load(file).module()(x_BTF)
    torch.testing.assert_close(found_BK, expected_BK, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("form", "package"), [("safetensors", "safetensors.torch"), ("onnx", "onnx")], ids=["safetensors", "onnx"]
)
def test_a_missing_package_is_named_and_nothing_is_written(
    form: Format, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _ = save_best(tmp_path, MODELS["mlp"])
    before = sorted(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportFailed, match=package.partition(".")[0]):
        export(checkpoint, form)
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_that_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    model = {"name": "custom", "target": "tests.worker.models.custom_nets:Stubborn"}
    checkpoint, _ = save_best(tmp_path, model)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ExportFailed, match="cannot be traced"):
        export(checkpoint, "torch_export", allowed_prefixes=["tests"])
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_says_where_the_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, _ = save_best(tmp_path, MODELS["mlp"])
    assert main([str(checkpoint), "--format", "torch_export", "--out", str(tmp_path / "m.pt2")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "m.pt2")


def test_the_command_fails_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, _ = save_best(tmp_path, MODELS["custom"])
    assert main([str(checkpoint), "--format", "torch_export"]) == 1
    assert "not allowed" in capsys.readouterr().err
    assert main([str(tmp_path / "gone.pth"), "--format", "torch_export"]) == 1
