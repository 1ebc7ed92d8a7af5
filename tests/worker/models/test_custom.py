"""Models of the operator's own: allowed by module, built by import, saved under their own names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from app.jobs.config import CustomConfig
from tests.worker.models.custom_nets import Windows
from worker.engine.errors import ConfigInvalid
from worker.models import build_model, flops_per_sample, load
from worker.models.base import SequenceModel
from worker.models.custom import WholeWindows
from worker.models.normalizer import Normalized, Scaling

torch.set_num_threads(1)

NETS = "tests.worker.models.custom_nets"


def build(name: str, *, allowed: tuple[str, ...] = ("tests.worker",), **params: Any) -> SequenceModel:
    torch.manual_seed(0)
    config = CustomConfig(target=f"{NETS}:{name}", params=params)
    return build_model(config, window=3, shape=(2, 5), num_classes=4, allowed_prefixes=allowed)


@pytest.mark.parametrize("name", ["Windows", "Rows"])
def test_a_custom_model_gives_the_same_numbers_with_rows_shared(name: str) -> None:
    model = build(name).double()
    rows_RF = torch.randn(8, 2, 5, dtype=torch.float64)
    starts_B = torch.tensor([4, 0, 1])
    x_BTF = rows_RF[starts_B.unsqueeze(1) + torch.arange(3)]
    shared_BK = model.forward_rows(rows_RF, starts_B, False)
    torch.testing.assert_close(shared_BK, model(x_BTF), rtol=1e-12, atol=1e-12)


def test_a_plain_module_gets_whole_windows_and_its_params() -> None:
    model = build("Windows", width=7)
    plain = Windows(3, (2, 5), 4, width=7)
    plain.load_state_dict(model.state_dict())
    x_BTF = torch.randn(6, 3, 2, 5)
    assert torch.equal(model(x_BTF), plain(x_BTF))
    model.load_state_dict(plain.state_dict())


def test_weights_keep_the_nets_names_whatever_it_calls_its_parts() -> None:
    inner = nn.ModuleDict({"net": nn.ModuleDict({"foo": nn.Linear(1, 1)}), "foo": nn.Linear(1, 1)})
    model = WholeWindows(inner, window=3, shape=(2, 5), num_classes=4)
    scaling = Scaling(torch.zeros(2, 5), torch.ones(2, 5))
    saved = {name: tensor.clone() for name, tensor in inner.state_dict().items()}
    found = model.state_dict()
    assert list(found) == list(saved)
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    around = Normalized(model, scaling)
    assert set(around.state_dict()) == {"normalizer.center_F", "normalizer.scale_F"} | {
        f"model.{name}" for name in saved
    }
    doubled = {name: 2 * tensor for name, tensor in around.state_dict().items()}
    around.load_state_dict(doubled)
    assert all(torch.equal(inner.state_dict()[name], 2 * saved[name]) for name in saved)


@pytest.mark.parametrize("allowed", [(), ("",), ("tests.work",), ("other",)], ids=str)
def test_a_module_that_is_not_allowed_is_refused_unimported(allowed: tuple[str, ...]) -> None:
    with pytest.raises(ConfigInvalid, match="not allowed"):
        build("Windows", allowed=allowed)


@pytest.mark.parametrize("name", ["Missing", "no_model"])
def test_what_is_no_model_is_refused(name: str) -> None:
    with pytest.raises(ConfigInvalid):
        build(name)


def test_params_it_does_not_know_are_told() -> None:
    with pytest.raises(ConfigInvalid, match="unexpected keyword argument 'colour'"):
        build("Windows", colour="red")


@pytest.mark.parametrize(("name", "flops"), [("Windows", 2 * (30 * 3 + 3 * 4)), ("Stubborn", None)])
def test_flops_are_counted_where_they_can_be(name: str, flops: int | None) -> None:
    config = CustomConfig(target=f"{NETS}:{name}")
    found = flops_per_sample(config, window=3, shape=(2, 5), num_classes=4, allowed_prefixes=[NETS])
    assert found == flops


def test_the_best_of_a_custom_model_comes_back_where_it_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "saimp_best.pth"
    torch.save(build("Windows").state_dict(), path)
    sidecar = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "config": {"model": {"name": "custom", "target": f"{NETS}:Windows"}},
        "shapes": {"window": 3, "row": [2, 5], "num_classes": 4},
    }
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    with pytest.raises(ConfigInvalid):
        load(path)
    model, _ = load(path, allowed_prefixes=[NETS])
    x_BTF = torch.randn(2, 3, 2, 5)
    assert torch.equal(model(x_BTF), build("Windows")(x_BTF))
