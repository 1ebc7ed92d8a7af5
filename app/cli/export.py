"""`saimp export`: a job's best checkpoint in the formats of others."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from app.cli.best import find_best, run_worker
from app.cli.roots import DataRoot
from app.settings import load


class Format(StrEnum):
    """What a model can be written as."""

    safetensors = "safetensors"
    onnx = "onnx"
    torch_export = "torch_export"


def export(
    job: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="A job's id, the beginning of one, @last, @best, or a .pth file.",
            show_default=False,
        ),
    ],
    form: Annotated[Format, typer.Option("--format", "-f", help="What to write.")] = Format.onnx,
    out: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="saimp_best.* beside the checkpoint")
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Write a job's best checkpoint as safetensors, ONNX or torch.export, checked, and print its path.

    Without --out it is one of the job's artifacts, for everybody to download.
    """
    settings = load(data_root=data_root)
    best = find_best(job, settings)
    to = ["--out", str(out)] if out else []
    run_worker("worker.export", str(best), "--format", form, *to, settings=settings)
