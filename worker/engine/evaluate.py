"""The loss and the outcomes of a whole split, exactly: no mean of means.

Shapes: B samples of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from app.failpoints import failpoint
from worker.engine.errors import first_line, is_gpu_exhausted
from worker.engine.events import OomRecovered, Tick
from worker.engine.run import Run
from worker.engine.samples import Samples
from worker.engine.step import TICK, out_of_memory
from worker.engine.tally import Confusion, Counted, Tally
from worker.stream.batch import Batch

CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of one split. loss: the class-weighted mean over it; nan when its total weight is 0."""

    loss: float
    accuracy: float
    confusion: Confusion
    ece: float


def evaluate(run: Run, samples: Samples, epoch: int) -> Generator[Tick | OomRecovered, None, Evaluation]:
    """Evaluate a split with the weights as they are. One event a batch; one sync in all.

    The result does not depend on the batch size. Out of GPU memory, a batch is replayed in halves.
    """
    tally = Tally(run.num_classes, run.device)
    calibration = Calibration(run.device)
    run.model.eval()
    try:
        with closing(samples.batches(run.resolved.eval_batch_size)) as batches:
            for batch in batches:
                first = 0
                while first < len(batch):
                    part = batch.narrow(first, min(run.eval_batch, len(batch) - first))
                    try:
                        counted, confidence_B = _classify(run, part)
                    except RuntimeError as error:
                        if not is_gpu_exhausted(error):
                            raise
                        message = first_line(error)
                    else:
                        tally.add(counted)
                        calibration.add(confidence_B, counted.predictions_S == counted.labels_S)
                        first += len(part)
                        yield TICK
                        continue
                    _step_down(run, message)
                    yield OomRecovered(epoch, run.num_steps, run.rung, message, during="evaluation")
    finally:
        run.model.train()
    sums = tally.read()
    return Evaluation(
        loss=run.loss.mean(sums.loss_sum, sums.support),
        accuracy=sums.accuracy,
        confusion=sums.confusion,
        ece=calibration.error(),
    )


class Calibration:
    """Expected calibration error in equal bins of confidence (Guo et al. 2017, arXiv:1706.04599)."""

    def __init__(self, device: torch.device) -> None:
        # Per bin: samples, summed confidence, hits.
        self._sums = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64, device=device)

    def add(self, confidence_B: Tensor, is_hit_B: Tensor) -> None:
        """Count predictions in, by the probability given to the predicted class."""
        bin_B = (confidence_B * CALIBRATION_BINS).long().clamp(0, CALIBRATION_BINS - 1)
        counted = torch.stack([torch.ones_like(confidence_B), confidence_B, is_hit_B.to(confidence_B.dtype)])
        self._sums.index_add_(1, bin_B, counted)

    def error(self) -> float:
        """Average |accuracy - confidence| over the bins, weighted by their samples; nan without samples."""
        count, confidence, hits = self._sums.cpu()
        return float((confidence - hits).abs().sum() / count.sum())


@torch.inference_mode()
def _classify(run: Run, batch: Batch) -> tuple[Counted, Tensor]:
    """Run a batch forward: what to count, and the probability given to each predicted class [B]."""
    failpoint("evaluate.batch")
    labels_B = run.upload(batch.labels_B)
    rows_RF = run.upload(batch.rows_RF).to(run.dtype)
    with run.averaged(), run.precision.autocast():
        logits_BK = run.model.forward_rows(rows_RF, batch.starts_B, batch.is_dense)
    losses_B = run.loss.per_sample(logits_BK, labels_B)
    confidence_B, predictions_B = logits_BK.double().softmax(dim=-1).max(dim=-1)
    return Counted(losses_B, predictions_B, labels_B), confidence_B


def _step_down(run: Run, message: str) -> None:
    if not run.request.oom.recover or run.eval_batch == 1:
        raise out_of_memory(run, message, during="evaluation")
    run.eval_batch //= 2
    run.graphs.forget()  # the memory they hold is of more use here
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
