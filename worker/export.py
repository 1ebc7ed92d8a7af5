"""A best checkpoint in the formats of others: safetensors, ONNX, torch.export. `python -m worker.export`.

Whatever computes is checked against the model before it takes its name.

Shapes: B windows, T rows, F... the shape of one row, K classes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, assert_never, get_args

import torch
from torch import Tensor

from app.errors import ServiceError, told
from worker.models import CorruptCheckpoint, SequenceModel, load
from worker.models.normalizer import Normalized

Format = Literal["safetensors", "onnx", "torch_export"]
SUFFIXES: dict[Format, str] = {"safetensors": ".safetensors", "onnx": ".onnx", "torch_export": ".pt2"}
TOLERANCE = 1e-4
INPUT, OUTPUT = "rows", "logits"  # of the ONNX graph: float32 [B, T, *shape] and [B, K]
METADATA = "saimp"  # key of the sidecar, as JSON, in every format

Classify = Callable[[Tensor], Tensor]


class ExportFailed(ServiceError):
    """The model cannot be exported."""

    status, code = 422, "export_failed"


def export(
    checkpoint: Path, form: Format, target: Path | None = None, *, allowed_prefixes: Sequence[str] = ()
) -> Path:
    """Write a best checkpoint in another format, with its sidecar inside, and return where.

    target: null = beside the checkpoint. allowed_prefixes: modules that custom models may come from.
    Raises ExportFailed when a package is missing, when the format cannot hold the model, or when what was
    exported differs from the model by more than 1e-4.
    """
    model, sidecar = load(checkpoint, allowed_prefixes=allowed_prefixes)
    target = target or checkpoint.with_suffix(SUFFIXES[form])
    draft = target.with_name(f".{target.name}.tmp")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters, to their own developers
            match form:
                case "safetensors":
                    _write_safetensors(model, sidecar, draft)
                case "onnx":
                    _write_onnx(model, sidecar, draft)
                    _check(model, _onnx_reader(draft))
                case "torch_export":
                    _write_torch_export(model, sidecar, draft)
                    _check(model, _torch_export_reader(draft))
                case _:
                    assert_never(form)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def _write_safetensors(model: SequenceModel, sidecar: dict[str, Any], path: Path) -> None:
    """Write the weights alone, by the names of the checkpoint."""
    safetensors = _needed("safetensors.torch")
    # Copies: the format holds no tensor that shares memory with another.
    weights = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    safetensors.save_file(weights, path, metadata={METADATA: json.dumps(sidecar)})


def _write_onnx(model: SequenceModel, sidecar: dict[str, Any], path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _needed(package)
    # It looks for torchvision and tells of it.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        _traced(model), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
    )
    assert program is not None
    proto = program.model_proto
    proto.metadata_props.add(key=METADATA, value=json.dumps(sidecar))
    path.write_bytes(proto.SerializeToString())


def _write_torch_export(model: SequenceModel, sidecar: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # given a path, it wants a suffix of its own
        torch.export.save(_traced(model), file, extra_files={METADATA: json.dumps(sidecar)})


def _traced(model: SequenceModel) -> torch.export.ExportedProgram:
    """Trace the model for any number of windows."""
    x_BTF = torch.zeros(2, model.window, *model.shape)
    try:
        return torch.export.export(model, (x_BTF,), dynamic_shapes=({0: torch.export.Dim("windows")},))
    except Exception as error:  # a custom model may do anything
        reason = str(error).strip().partition("\n")[0]
        raise ExportFailed(
            f"The model cannot be traced: {reason}", "Export its weights as safetensors instead."
        ) from error


def _onnx_reader(path: Path) -> Classify:
    session = _needed("onnxruntime").InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda x_BTF: torch.from_numpy(session.run([OUTPUT], {INPUT: x_BTF.numpy()})[0])


def _torch_export_reader(path: Path) -> Classify:
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    return lambda x_BTF: module(x_BTF)


def _check(model: SequenceModel, exported: Classify) -> None:
    """Compare what was written with the model, on noise. Raises ExportFailed beyond the tolerance."""
    generator = torch.Generator().manual_seed(0)
    for count in (1, 5):
        x_BTF = torch.randn(count, model.window, *model.shape, generator=generator)
        if isinstance(model, Normalized):  # noise like the data's
            x_BTF = model.normalizer.undo(x_BTF)
        with torch.inference_mode():
            expected_BK, found_BK = model(x_BTF), exported(x_BTF)
        if not torch.allclose(found_BK, expected_BK, rtol=TOLERANCE, atol=TOLERANCE):
            difference = float((found_BK - expected_BK).abs().max())
            raise ExportFailed(
                f"What was exported differs from the model by {difference:.2g}.",
                "Export its weights as safetensors instead.",
            )


def _needed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ExportFailed(
            f"This format needs the package {package.partition('.')[0]}, which is not installed.",
            'Install it with pip install "saimp-train[export]".',
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m worker.export`: print where the file is, or what went wrong; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker.export", description=main.__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--format", choices=get_args(Format), required=True)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--allow", action="append", default=[], metavar="PREFIX")
    given = parser.parse_args(arguments)
    try:
        print(export(given.checkpoint, given.format, given.out, allowed_prefixes=given.allow))
    except (ServiceError, CorruptCheckpoint, OSError) as error:
        print(f"error: {told(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
