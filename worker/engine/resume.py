"""Resume checkpoints: the whole state of a run between two steps, and a run that goes on from it.

What is in one: weights, buffers, optimizer, scaler, schedule, average, random states, counters, the epoch's
position and sums, early stopping, the best. Tensors and plain values only, so that loading runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.jobs.later import counted, resolved
from worker.engine.epoch import Epoch
from worker.engine.errors import CorruptCheckpoint
from worker.engine.events import BestFile, Resumed
from worker.engine.readback import Readback
from worker.engine.run import Applied, Attempted, Run

VERSION = 1
COUNTERS = (
    "num_epochs",
    "num_steps",
    "num_attempts",
    "skipped_steps",
    "non_finite_streak",
    "micro_batch",
    "eval_batch",
    "is_sharing",
    "is_recomputing",
)
COMPUTED = ("data", "model", "loss", "optimizer", "schedule", "training", "early_stopping")
STOPPING = ("best_loss", "reference_loss", "stale_epochs")


def state_of(run: Run, epoch: Epoch) -> dict[str, Any]:
    """Copy the state of a run to the CPU. Nothing changes by it: no random draw, no sum cut short."""
    attempted, applied = run.attempted, run.applied
    return {
        "version": VERSION,
        "resolved": _json(asdict(run.resolved)),
        "config": _json(_computed(run)),
        "torch": str(torch.__version__),  # a subclass of str: not a plain value
        "weights": {name: _copy(tensor) for name, tensor in _weights(run).items()},
        "average": [_copy(tensor) for tensor in run.average.weights] if run.average else None,
        "optimizer": _copies(run.optimizer.state_dict()),
        "scaler": run.precision.state_dict(),
        "schedule": run.schedule.state_dict(),
        "random": _random_state(run.device),
        "counters": {name: getattr(run, name) for name in COUNTERS},
        "attempted": (attempted.lr, attempted.grad_norm.value()) if attempted else None,
        "applied": (applied.lr, applied.grad_norm) if applied else None,
        "stopping": {name: getattr(run.stopping, name) for name in STOPPING},
        "best": _json(asdict(run.best)) if run.best else None,
        "epoch": epoch.state(),
    }


def restore(run: Run, path: Path, *, sha256: str) -> Resumed:
    """Bring a freshly built run to where a resume checkpoint was taken; `fit` goes on from there.

    The best checkpoint it goes with must lie beside it, and is linked into this run's folder. Raises
    CorruptCheckpoint when a file is not what was written, or not of this job.
    """
    state = _read(path, sha256)
    _check(run, state, path)
    best = _best(state)
    if best is not None:
        _bring(path.parent / best.name, run.directory / best.name, best.sha256)
    _put(_weights(run), state["weights"])
    if run.average is not None:
        _put(dict(enumerate(run.average.weights)), dict(enumerate(state["average"])))
    _put_optimizer(run, state["optimizer"])
    run.precision.load_state_dict(state["scaler"])
    run.schedule.load_state_dict(state["schedule"])
    for name in COUNTERS:
        setattr(run, name, state["counters"][name])
    for name in STOPPING:
        setattr(run.stopping, name, state["stopping"][name])
    run.attempted = _attempted(state["attempted"])
    run.applied = Applied(*state["applied"]) if state["applied"] else None
    run.best = best
    run.epoch_state = state["epoch"]
    _put_random_state(state["random"], run.device)
    epoch = Epoch(run)
    return Resumed(
        name=path.name,
        epoch=epoch.number,
        batch=epoch.batch,
        step=run.num_applied,
        is_epoch_trained=epoch.is_trained,
        epochs=run.request.training.epochs,
        batches=epoch.num_batches,
        best=best,
    )


# ---- taking it ----


def _weights(run: Run) -> dict[str, Tensor]:
    return {**dict(run.model.named_parameters()), **dict(run.model.named_buffers())}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _copies(value: Any) -> Any:
    """Copy the tensors in nested dicts, lists and tuples; other values as they are."""
    match value:
        case Tensor():
            return _copy(value)
        case dict():
            return {key: _copies(item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(_copies(item) for item in value)
        case _:
            return value


def _random_state(device: torch.device) -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, [int(key) for key in keys], int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _computed(run: Run) -> dict[str, Any]:
    """Say what of the config decides a number."""
    request = run.request.model_dump(mode="json")
    return {name: request[name] for name in COMPUTED}


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)


# ---- going on from it ----


def _read(path: Path, sha256: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            _verify(file, path.name, sha256)
            state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise CorruptCheckpoint(
            f"The resume checkpoint {path.name} is gone.", "Retry the job from its start."
        ) from None
    return state


def _verify(file: BufferedReader, name: str, sha256: str) -> None:
    found = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    if found != sha256:
        raise CorruptCheckpoint(
            f"{name} has changed since it was written: its sha256 is {found[:16]}..., not {sha256[:16]}...",
            "Retry the job from its start, and check the disk.",
        )


def _check(run: Run, state: dict[str, Any], path: Path) -> None:
    """Hold what decides a number against what it was. What came later counts as it was before."""
    wanted = _computed(run)
    differing = [
        *_differing({"version": state["version"]}, {"version": VERSION}),
        *_differing(counted(json.loads(state["config"])), counted(wanted)),
        *_differing(resolved(json.loads(state["resolved"]), wanted), asdict(run.resolved)),
    ]
    if differing:
        raise CorruptCheckpoint(
            f"{path.name} is of a run with another {', '.join(differing)}.", "Retry the job from its start."
        )


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*found, *wanted} if found.get(name, ...) != wanted.get(name, ...))


def _best(state: dict[str, Any]) -> BestFile | None:
    return BestFile(**json.loads(state["best"])) if state["best"] else None


def _bring(source: Path, target: Path, sha256: str) -> None:
    """Link a best checkpoint into this attempt's folder; copy it where links are not possible."""
    try:
        with source.open("rb") as file:
            _verify(file, source.name, sha256)
        if target.exists():
            return
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    except FileNotFoundError:
        raise CorruptCheckpoint(
            f"The best checkpoint {source.name} is gone.", "Retry the job from its start."
        ) from None


@torch.no_grad()
def _put(targets: Mapping[Any, Tensor], saved: Mapping[Any, Tensor]) -> None:
    """Fill tensors in place: whoever holds them sees the new numbers."""
    assert targets.keys() == saved.keys(), "the config is the same, so are the names"
    for name, tensor in targets.items():
        tensor.copy_(saved[name])


def _put_optimizer(run: Run, state: dict[str, Any]) -> None:
    # Not load_state_dict: it would allocate anew, and cast what is not of the weights' format.
    parameters: Iterable[Tensor] = (p for group in run.optimizer.param_groups for p in group["params"])
    for index, parameter in enumerate(parameters):
        current = run.optimizer.state[parameter]
        for name, saved in state["state"].get(index, {}).items():
            if isinstance(current.get(name), Tensor):
                current[name].copy_(saved)
            else:
                current[name] = saved.to(parameter.device) if isinstance(saved, Tensor) else saved
    for group, saved_group in zip(run.optimizer.param_groups, state["param_groups"], strict=True):
        group.update({name: value for name, value in saved_group.items() if name != "params"})


def _attempted(saved: tuple[float, float] | None) -> Attempted | None:
    if saved is None:
        return None
    lr, grad_norm = saved
    return Attempted(lr, Readback(torch.tensor(grad_norm, dtype=torch.float64)))


def _put_random_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
