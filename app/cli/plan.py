"""A plan in words: what a job would train on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.cli import render

_PARTS = ("train", "val", "test")


def plan_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """Say what a job would train on, line by line; what is not known yet is left out."""
    config, training, parameters = plan["config"], plan["training"], plan["model"]["parameters"]
    yield f"data    {config['data']['path']}, windows of {config['data']['window']} rows"
    splits = plan["splits"] or {}
    parts = [(name, splits[name]) for name in _PARTS if splits.get(name)]
    for name, part in parts:
        yield f"{name:<6}  {_extent(part)}"
    names = plan.get("classes") or config["data"]["classes"] or ()
    for name, part in parts:
        yield f"{name:<6}  {_balance(part['class_counts'], names)}"
    yield f"model   {config['model']['name']}" + (
        f", {parameters:,} parameters" if parameters is not None else ""
    )
    steps = training["steps_per_epoch"]
    each = f"of {training['effective_batch']} samples"
    yield f"epoch   {steps:,} steps {each}" if steps is not None else f"epoch   steps {each}"
    yield f"epochs  at most {config['training']['epochs']}"
    for warning in plan["warnings"]:
        yield f"warning {warning['message']}"


def _extent(part: Mapping[str, Any]) -> str:
    dropped = sum(number or 0 for number in part["dropped"].values())
    words = f"{part['windows']:>11,} windows of {part['rows']:,} rows"
    if dropped:
        words += f", {dropped:,} dropped"
    return f"{words}, {_moment(part['start'])} to {_moment(part['end'])}"


def _balance(counts: Sequence[int], names: Sequence[str]) -> str:
    total = max(1, sum(counts))
    return ", ".join(
        f"{names[place] if place < len(names) else place} {number:,} ({number / total:.0%})"
        for place, number in enumerate(counts)
    )


def _moment(text: str | None) -> str:
    return render.DASH if text is None else text[:19].replace("T", " ")
