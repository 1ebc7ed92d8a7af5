"""The report of a run: `report.json` for programs, `report.md` as its model card.

Model Cards for Model Reporting (Mitchell et al. 2019, arXiv:1810.03993). Everything in it is computed from
events, by pure functions; a confusion matrix is KxK counts, rows are labels, columns predictions.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.failpoints import failpoint
from app.jobs.scores import class_prior_baseline, constant_loss, majority_baseline, most_frequent, scores
from app.text import escaped
from worker.engine.events import (
    BestFile,
    Ended,
    EpochDone,
    Event,
    OomRecovered,
    Prepared,
    Resumed,
    Tested,
    Warned,
)

VERSION = 1
DATA = ("fingerprint", "features", "shape", "label_end", "horizon_s", "classes", "cuts_ns")  # of `resolved`
JSON_NAME, MARKDOWN_NAME = "report.json", "report.md"
UNKNOWN_LABELS = {
    "ahead_median_s": None,
    "ahead_max_s": None,
    "independent": {"train": None, "val": None, "test": None},
}
FEW_SAMPLES = 30  # of a class: below it, its scores are little more than chance

_COMPARED = ("accuracy", "macro_f1", "balanced_accuracy", "mcc")
_LABELS = ("accuracy", "macro-F1", "balanced accuracy", "MCC")

Json = dict[str, Any]


@dataclass(slots=True)
class Facts:
    """What the events of a run said, as far as a report needs it."""

    job_id: str
    attempt: int
    config: Mapping[str, Any]
    prepared: Prepared | None = None
    epochs: list[EpochDone] = field(default_factory=list)  # of this attempt
    best: BestFile | None = None
    tested: Tested | None = None
    warnings: list[Warned] = field(default_factory=list)
    num_ooms: int = 0

    def note(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case Prepared():
                self.prepared = event
            case EpochDone():
                self.epochs.append(event)
                self.best = event.best or self.best
            case Resumed():
                self.best = event.best
            case Tested():
                self.tested = event
            case Warned():
                self.warnings.append(event)
            case OomRecovered():
                self.num_ooms += 1
            case _:
                pass


class ModelCard:
    """A sink of events that writes the report into `directory` when the run has ended with a best."""

    def __init__(self, directory: Path, *, job_id: str, attempt: int, config: Mapping[str, Any]) -> None:
        self._directory = directory
        self._facts = Facts(job_id, attempt, config)

    def write(self, event: Event) -> None:
        """Take in one event; nothing is written yet."""
        self._facts.note(event)

    def end(self, status: str, ended: Ended) -> None:
        """Write both files, unless the run goes on later or has nothing to report."""
        facts = self._facts
        if facts.prepared is None or facts.best is None or ended.stopped in ("pause", "preempt"):
            return
        report = make_report(facts, status, ended)
        try:
            _replace(self._directory / JSON_NAME, json.dumps(report, indent=1, allow_nan=False) + "\n")
            _replace(self._directory / MARKDOWN_NAME, to_markdown(report))
        except OSError as error:
            # The training is done and stands; its report can be missed.
            print(f"[WARN] report_not_written: {error.strerror}", file=sys.stderr, flush=True)


def make_report(facts: Facts, status: str, ended: Ended) -> Json:
    """Say everything about a run that ended with a best checkpoint: JSON, non-finite numbers as null."""
    assert facts.prepared is not None
    assert facts.best is not None
    resolved, plan = facts.prepared.resolved, facts.prepared.plan
    best, metrics = facts.best, facts.best.sidecar["metrics"]
    train_counts = plan["splits"]["train"]["class_counts"]
    tested = facts.tested
    report = {
        "version": VERSION,
        "job": {
            "id": facts.job_id,
            "name": facts.config.get("name"),
            "attempt": facts.attempt,
            "status": status,
            "reason": ended.reason,
            "message": ended.message,
        },
        "data": {
            "path": facts.config["data"]["path"],
            **{name: resolved[name] for name in DATA if name in resolved},
        },
        "splits": plan["splits"],
        "labels": plan.get("labels") or UNKNOWN_LABELS,
        "model": {"name": facts.config["model"]["name"], **plan["model"]},
        "best": {
            "epoch": best.sidecar["epoch"],
            "val_loss": metrics["val_loss"],
            "sha256": best.sha256,
            "bytes": best.size,
        },
        "validation": judge(metrics["val_loss"], metrics["val_confusion"], metrics["val_ece"], facts),
        "test": None if tested is None else judge(tested.loss, tested.confusion, None, facts),
        "epochs": [_epoch_row(done) for done in facts.epochs],
        "oom_recoveries": facts.num_ooms,
        "warnings": [{"code": warned.code, "message": warned.message} for warned in facts.warnings],
        "config": facts.config,
        "resolved": resolved,
        "versions": best.sidecar.get("versions", {}),
    }
    report["limits"] = list(_limits(report, train_counts))
    cleaned: Json = _finite(report)
    return cleaned


def judge(
    loss: float,
    confusion: Sequence[Sequence[int]],
    ece: float | None,
    facts: Facts,
) -> Json:
    """Score a confusion matrix beside what needs no model.

    ece: expected calibration error (Guo et al. 2017, arXiv:1706.04599).
    """
    assert facts.prepared is not None
    resolved, plan = facts.prepared.resolved, facts.prepared.plan
    classes, train_counts = resolved["classes"], plan["splits"]["train"]["class_counts"]
    support = [sum(row) for row in confusion]
    majority = majority_baseline(support, most_frequent(train_counts), classes)
    prior_loss = constant_loss(support, train_counts, facts.config["loss"], resolved.get("class_weights"))
    return {
        "loss": loss,
        **scores(confusion, classes),
        "ece": ece,
        "confusion": [list(row) for row in confusion],
        "baselines": {
            "majority": {name: majority[name] for name in ("class", *_COMPARED)},
            "class_prior": {"loss": prior_loss, **class_prior_baseline(support, train_counts)},
        },
    }


def to_markdown(report: Json) -> str:
    """Write a report as a model card."""
    return "\n".join(_card(report)) + "\n"


def _epoch_row(done: EpochDone) -> Json:
    found = scores(done.confusion)
    return {
        "epoch": done.epoch,
        "train_loss": done.train_loss,
        "train_accuracy": done.train_accuracy,
        "val_loss": done.val_loss,
        "val_accuracy": done.val_accuracy,
        "macro_f1": found["macro_f1"],
        "lr": done.lr,
        "best": done.best is not None,
        "duration_s": done.duration_s,
        "samples_per_s": done.samples_per_s,
        "skipped_steps": done.skipped_steps,
    }


def _limits(report: Json, train_counts: Sequence[int]) -> Iterator[str]:
    """Say what these numbers do not show."""
    classes = report["data"]["classes"]
    val, test = report["validation"], report["test"]
    yield (
        "One chronological split: scores are those of the periods above, and of markets, instruments or times"
        " unlike them nothing is known."
    )
    if test is None:
        yield (
            "No test split: the best epoch was chosen by the validation loss, so the validation scores are"
            " too good by an unknown amount."
        )
    yield from _dependence(report)
    for name, judged in (("validation", val), ("test", test)):
        if judged is None:
            continue
        for baseline, label in (
            ("majority", "the most frequent class"),
            ("class_prior", "class frequencies"),
        ):
            beaten = judged["baselines"][baseline]
            if judged["macro_f1"] <= beaten["macro_f1"]:
                yield f"In {name}, macro-F1 is no better than predicting by {label}."
        rare = [c for c, row in judged["per_class"].items() if row["support"] < FEW_SAMPLES]
        if rare:
            yield f"In {name}, fewer than {FEW_SAMPLES} samples of {', '.join(rare)}: scores of chance."
    missing = [name for name, count in zip(classes, train_counts, strict=True) if not count]
    if missing:
        yield f"Never seen in training: {', '.join(missing)}."
    weights = report["resolved"].get("class_weights")
    if weights and len(set(weights)) > 1:
        yield (
            "Trained with class weights: probabilities are shifted towards the heavier classes and are not"
            " those of the data."
        )


def _dependence(report: Json) -> Iterator[str]:
    """Say of how many independent samples the scores are.

    By overlapping labels: average uniqueness, Lopez de Prado, Advances in Financial Machine Learning (2018),
    ch. 4; by shared rows where nothing says how far labels look ahead.
    """
    data, independent = report["config"]["data"], report["labels"]["independent"]
    window, stride = data["window"], data["stride"]
    shared = f"Neighbouring windows share {window - stride} of {window} rows" if stride < window else None
    for name, part in (("validation", "val"), ("test", "test")):
        if report[name] is None:
            continue
        num_windows, worth = sum(map(sum, report[name]["confusion"])), independent[part]
        if worth is not None:
            yield (
                f"Labels that look ahead overlap: the {num_windows:,} of {name} are worth about"
                f" {max(1, round(worth)):,} independent ones (average uniqueness {worth / num_windows:.2g},"
                " Lopez de Prado 2018, ch. 4)."
            )
        elif shared:
            independent_rows = max(1, num_windows * stride // window)
            yield f"{shared}: {name} is worth about {independent_rows:,} independent samples."
    if shared and independent["val"] is not None:
        yield f"{shared}, so their features are alike, too."


def _ahead(report: Json) -> str:
    """Say how far labels look ahead."""
    labels, horizon_s = report["labels"], report["data"]["horizon_s"]
    if labels["ahead_max_s"] is not None:
        median, longest = (_span(labels[key]) for key in ("ahead_median_s", "ahead_max_s"))
        also = f"; horizon {_span(horizon_s)}" if horizon_s else ""
        return f"labels look {median} ahead (median of label_end), at most {longest}{also}"
    if horizon_s:
        return f"labels look {_span(horizon_s)} ahead"
    return "how far labels look ahead is not known (0 s assumed)"


def _span(seconds: float) -> str:
    return f"{seconds:,.6g} s" if seconds < 1e6 else f"{seconds:,.0f} s"


def _card(report: Json) -> Iterator[str]:
    job, data, best, model = report["job"], report["data"], report["best"], report["model"]
    config = report["config"]
    yield f"# Model card: {_text(job['name'] or job['id'])}"
    yield ""
    yield (
        f"Job `{job['id']}`, {job['status']} ({job['reason']}), attempt {job['attempt']}."
        f" {_text(job['message'])}"
    )
    yield ""
    yield from _table(
        ("", ""),
        [
            ("model", f"{_text(model['name'])}, {_count(model['parameters'])} parameters"),
            ("operations", f"{_count(model['flops_per_sample'])} FLOPs a sample, forward"),
            ("best epoch", f"{best['epoch']}, validation loss {_number(best['val_loss'])}"),
            ("weights", f"sha256 `{best['sha256']}`, {_count(best['bytes'])} bytes"),
            ("loss", _section(config["loss"])),
            ("optimizer", _section(config["optimizer"])),
            ("schedule", _section(config["schedule"])),
            ("effective batch", _count(report["resolved"]["effective_batch"])),
            ("precision", f"{report['resolved']['precision']} on {report['resolved']['device']}"),
            ("seed", str(config["training"]["seed"])),
            ("versions", ", ".join(f"{_text(k)} {_text(v)}" for k, v in report["versions"].items())),
        ],
    )
    yield "## Data"
    yield ""
    yield (
        f"Dataset {_text(data['path'])}, rows of shape {data['shape']}, windows of"
        f" {config['data']['window']} rows, stride {config['data']['stride']}; {_ahead(report)}."
    )
    yield f"Fingerprint `{data['fingerprint']}`."
    yield ""
    yield from _table(
        ("split", "windows", "from", "to", *map(_text, data["classes"])),
        [
            (
                name,
                _count(part["windows"]),
                part["start"] or "",
                part["end"] or "",
                *map(_count, part["class_counts"]),
            )
            for name, part in report["splits"].items()
            if part is not None
        ],
    )
    for name in ("validation", "test"):
        if report[name] is not None:
            yield from _judged(name.capitalize(), report[name], data["classes"])
    yield "## Epochs"
    yield ""
    if report["epochs"] and report["epochs"][0]["epoch"] > 1:
        yield f"Of attempt {job['attempt']}, which went on from a checkpoint."
        yield ""
    yield from _table(
        ("epoch", "train loss", "val loss", "val accuracy", "macro-F1", "lr", ""),
        [
            (
                str(row["epoch"]),
                *(_number(row[key]) for key in ("train_loss", "val_loss", "val_accuracy", "macro_f1")),
                f"{row['lr']:.3g}",
                "best so far" if row["best"] else "",
            )
            for row in report["epochs"]
        ],
    )
    yield "## Limits"
    yield ""
    for sentence in report["limits"]:
        yield f"- {_text(sentence)}"
    for warned in report["warnings"]:
        yield f"- {_text(warned['message'])}"


def _judged(title: str, judged: Json, classes: Sequence[str]) -> Iterator[str]:
    majority, prior = judged["baselines"]["majority"], judged["baselines"]["class_prior"]
    yield f"## {title}"
    yield ""
    yield from _table(
        ("", "this model", f"always {_text(majority['class'])}", "by class frequencies"),
        [
            ("loss", _number(judged["loss"]), "", _number(prior["loss"])),
            *(
                (label, *(_number(one[name]) for one in (judged, majority, prior)))
                for name, label in zip(_COMPARED, _LABELS, strict=True)
            ),
            ("calibration error (ECE)", _number(judged["ece"]), "", ""),
        ],
    )
    yield from _table(
        ("class", "precision", "recall", "F1", "samples"),
        [
            (
                _text(name),
                *(_number(row[key]) for key in ("precision", "recall", "f1")),
                _count(row["support"]),
            )
            for name, row in judged["per_class"].items()
        ],
    )
    yield "Labels (rows) and predictions (columns):"
    yield ""
    yield from _table(
        ("", *map(_text, classes)),
        [(_text(name), *map(_count, row)) for name, row in zip(classes, judged["confusion"], strict=True)],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _section(config: Mapping[str, Any]) -> str:
    said = [
        f"{key} {json.dumps(value)}" for key, value in config.items() if key != "name" and value is not None
    ]
    return _text(", ".join([str(config["name"]), *said]))


def _text(value: object) -> str:
    """Write a user's text so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", escaped(" ".join(str(value).split())))


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(text, encoding="utf-8")
    failpoint("report.before_rename")
    os.replace(draft, path)
