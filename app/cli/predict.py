"""`saimp predict`: the class of every window of a dataset, by a job's best checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.best import find_best, run_worker
from app.cli.roots import DataRoot
from app.settings import load


def predict(
    job: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="A job's id, the beginning of one, @last, @best, or a .pth file.",
            show_default=False,
        ),
    ],
    data: Annotated[str, typer.Argument(help="Parquet file, folder or glob.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")] = Path("preds.parquet"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    data_root: DataRoot = None,
) -> None:
    """Write class and probabilities of every window of a dataset, by its last row's time.

    Rows are read as in training; labels are not needed. Prints the path and the number of windows as JSON.
    """
    settings = load(data_root=data_root)
    best = find_best(job, settings)
    run_worker("worker.predict", str(best), data, "--out", str(out), "--device", device, settings=settings)
