"""Golden losses: a refactor changes no number.

Runs in float64 on one thread, so that another CPU or BLAS agrees to 1e-9; on one machine they are equal to
the last digit. A change of maths changes these lines, on purpose, with its evidence.
"""

from __future__ import annotations

import pytest
import torch

from tests.worker.engine.factory import MLP, VIVIT, make_request, make_run, make_samples, train
from worker.engine.events import EpochDone

torch.set_num_threads(1)

# (training, validation) loss of each epoch.
GOLDEN: dict[str, list[tuple[float, float]]] = {
    "mlp": [
        (1.7515481685834517, 1.8169791582516435),
        (1.732868629161756, 1.808414098388777),
        (1.6974281690902813, 1.8016294578232879),
    ],
    "vivit": [
        (1.752936490637429, 1.968903091986231),
        (1.4509911750447952, 1.9261365406482147),
        (1.3868313345410859, 1.8369672771707064),
    ],
    "focal": [
        (0.9514634551198228, 0.7403558148133592),
        (0.9314914518087478, 0.7294215021553424),
        (0.88947195603066, 0.7205844916397882),
    ],
    "ordinal": [
        (1.8705172049760626, 1.6293082746946088),
        (1.8563058510443418, 1.6218568477419004),
        (1.8237547104899732, 1.6159608600617859),
    ],
}
LOSSES: dict[str, dict[str, object]] = {"focal": {"name": "focal"}, "ordinal": {"name": "ordinal"}}


@pytest.mark.parametrize("name", GOLDEN)
def test_losses_are_those_committed(name: str) -> None:
    model = {**(VIVIT if name == "vivit" else MLP), "dropout": 0.1}
    request = make_request(
        model=model,
        optimizer={"lr": 3e-3},
        loss=LOSSES.get(name, {"label_smoothing": 0.05}),
        schedule={"warmup_steps": 3},
        training={"clip_grad_norm": 1.0, "seed": 7},
    )
    events = train(make_run(request, test=make_samples(20, seed=2), dtype=torch.float64))
    losses = [(e.train_loss, e.val_loss) for e in events if isinstance(e, EpochDone)]
    assert losses == [pytest.approx(pair, rel=1e-9) for pair in GOLDEN[name]]
