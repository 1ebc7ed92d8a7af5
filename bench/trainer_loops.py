"""The loops a trainer is measured against: by hand, as this service first did it, and three peers.

Every loop trains the same net, as it is written by hand from torch.nn's parts, on the same batches [B, T, 4,
128], with the classic recipe: weighted mean of each micro-batch / accumulation steps. None of them copies
windows or collates while it is timed. A peer that is not installed raises ImportError.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from worker.models.attention import Block
from worker.models.vivit import Vivit

LR, DECAY = 1e-4, 1e-5
WEIGHTS = [1.0, 10.0, 10.0, 20.0]
Pair = tuple[Tensor, Tensor]
Clock = Callable[[], float]
Optimize = Callable[[Any], torch.optim.Optimizer]
Loop = Callable[[nn.Module, "Pairs", int, Optimize], None]


class Pairs(IterableDataset[Pair]):
    """Batches in memory, and the time from when batch `warm_up` is handed out until the last one is.

    Loops that know the length never ask for one more, and some ask for one ahead.
    """

    def __init__(self, pairs: Sequence[Pair], warm_up: int, clock: Clock = time.perf_counter) -> None:
        self.seconds = 0.0
        self.num_timed = len(pairs) - 1 - warm_up
        self._pairs, self._warm_up, self._clock = pairs, warm_up, clock

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[Pair]:
        started = 0.0
        for index, pair in enumerate(self._pairs):
            if index == self._warm_up:
                started = self._clock()
            if index == len(self._pairs) - 1:
                self.seconds = self._clock() - started
            yield pair


class ByHand(nn.Module):
    """The default vivit as its recipe reads, from the parts torch has; its weights are a vivit's."""

    def __init__(self, vivit: Vivit) -> None:
        super().__init__()
        snapshot, blocks = vivit.snapshot, [block for block in vivit.blocks if isinstance(block, Block)]
        pools = (snapshot.first_pool, snapshot.second_pool)
        assert not snapshot.padding
        self.snapshot = nn.Sequential(
            snapshot.first, nn.ReLU(), nn.AvgPool1d(pools[0]),
            snapshot.second, nn.ReLU(), nn.AvgPool1d(pools[1]),
            nn.Flatten(), snapshot.project,
        )  # fmt: skip
        self.positions = vivit.positions_TD
        self.dropout = nn.Dropout(vivit.dropout.p)
        self.encoder = nn.ModuleList(_layer(block) for block in blocks)
        self.norm, self.classifier = vivit.norm, vivit.classifier

    def forward(self, x_BTF: Tensor) -> Tensor:
        embedded = self.snapshot(x_BTF.flatten(0, 1)).view(*x_BTF.shape[:2], -1)
        h = self.dropout(embedded + self.positions)
        for layer in self.encoder:
            h = layer(h)
        logits: Tensor = self.classifier(self.norm(h[:, -1]))
        return logits


def _layer(block: Block) -> nn.TransformerEncoderLayer:
    width = block.query.in_features
    layer = nn.TransformerEncoderLayer(
        width, block.heads, 4 * width, block.dropout.p, "gelu", batch_first=True, norm_first=True
    )
    # As ours: dropout on what is added, nowhere else.
    layer.self_attn.dropout, layer.dropout.p = 0.0, 0.0
    weight = torch.cat([block.query.weight, block.key_value.weight])
    bias = torch.cat([block.query.bias, block.key_value.bias])
    layer.self_attn.in_proj_weight = nn.Parameter(weight.detach().clone())
    layer.self_attn.in_proj_bias = nn.Parameter(bias.detach().clone())
    layer.self_attn.out_proj.load_state_dict(block.out.state_dict())
    layer.linear1.load_state_dict(block.feed_forward[0].state_dict())
    layer.linear2.load_state_dict(block.feed_forward[2].state_dict())
    layer.norm1.load_state_dict(block.attention_norm.state_dict())
    layer.norm2.load_state_dict(block.feed_forward_norm.state_dict())
    return layer.to(block.query.weight.dtype)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """What everybody writes."""
    return torch.optim.AdamW(parameters, lr=LR, weight_decay=DECAY)


def weighted_mean(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, weight=logits.new_tensor(WEIGHTS))


def bare(net: nn.Module, pairs: Pairs, accumulation: int, optimize: Optimize) -> None:
    """No loader, no sync, nothing reported."""
    _by_hand(net, pairs, accumulation, optimize)


def hand(net: nn.Module, pairs: Pairs, accumulation: int, optimize: Optimize) -> None:
    """The same behind a DataLoader, as the peers are."""
    _by_hand(net, DataLoader(pairs, batch_size=None), accumulation, optimize)


def seed_style(net: nn.Module, pairs: Pairs, accumulation: int, optimize: Optimize) -> None:
    """Loss and accuracy are read and printed at every batch."""
    with open(os.devnull, "w") as out:

        def say(index: int, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
            accuracy = (logits.argmax(-1) == labels).float().mean().item()
            print(f"Batch {index} | Loss: {loss.item():.4f} | Acc: {accuracy:.2%}", file=out, flush=True)

        _by_hand(net, DataLoader(pairs, batch_size=None), accumulation, optimize, say)


def _by_hand(net: nn.Module, batches: Any, accumulation: int, optimize: Optimize, say: Any = None) -> None:
    optimizer = optimize(net.parameters())
    weights = torch.tensor(WEIGHTS, dtype=next(net.parameters()).dtype)
    for index, (x, labels) in enumerate(batches):
        logits = net(x)
        loss = F.cross_entropy(logits, labels, weight=weights)
        (loss / accumulation).backward()
        if say is not None:
            say(index, logits, labels, loss)
        if (index + 1) % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()


def accelerate(net: nn.Module, pairs: Pairs, accumulation: int, optimize: Optimize) -> None:
    from accelerate import Accelerator  # noqa: PLC0415  (may not be installed)

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    model, optimizer, loader = accelerator.prepare(
        net, optimize(net.parameters()), DataLoader(pairs, batch_size=None)
    )
    weights = torch.tensor(WEIGHTS, dtype=next(net.parameters()).dtype)
    for x, labels in loader:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(x), labels, weight=weights))
            optimizer.step()
            optimizer.zero_grad()


def lightning(
    net: nn.Module, pairs: Pairs, accumulation: int, optimize: Optimize, *, is_logging: bool = False
) -> None:
    import lightning as pl  # noqa: PLC0415
    from lightning.pytorch.loggers import CSVLogger  # noqa: PLC0415

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(pl.LightningModule):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.weights = torch.tensor(WEIGHTS, dtype=next(net.parameters()).dtype)

        def training_step(self, batch: Pair, _: int) -> Tensor:
            logits = self.net(batch[0])
            loss = F.cross_entropy(logits, batch[1], weight=self.weights)
            if is_logging:
                self.log("loss", loss, on_step=True, on_epoch=True, batch_size=len(logits))
                accuracy = (logits.argmax(-1) == batch[1]).float().mean()
                self.log("accuracy", accuracy, on_step=True, on_epoch=True, batch_size=len(logits))
            return loss

        def configure_optimizers(self) -> Any:
            return optimize(self.parameters())

    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            accumulate_grad_batches=accumulation,
            logger=CSVLogger(folder) if is_logging else False,
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), DataLoader(pairs, batch_size=None))


def hf_trainer(net: nn.Module, pairs: Pairs, accumulation: int, optimize: Optimize) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: PLC0415
    from transformers.trainer_callback import PrinterCallback  # noqa: PLC0415

    weights = torch.tensor(WEIGHTS, dtype=next(net.parameters()).dtype)

    class Classic(Trainer):  # type: ignore[misc, unused-ignore]
        def get_train_dataloader(self) -> Any:
            return self.accelerator.prepare(DataLoader(pairs, batch_size=None))

        def compute_loss(self, model: Any, inputs: Any, **_: Any) -> Tensor:
            return F.cross_entropy(model(inputs["x"]), inputs["labels"], weight=weights)

        def _prepare_inputs(self, inputs: Any) -> Any:
            return {"x": inputs[0], "labels": inputs[1]} if isinstance(inputs, list | tuple) else inputs

    with contextlib.redirect_stdout(None), tempfile.TemporaryDirectory() as folder:
        optimizer = optimize(net.parameters())
        trainer = Classic(
            model=net,
            args=TrainingArguments(
                output_dir=folder,
                use_cpu=True,
                per_device_train_batch_size=1,
                gradient_accumulation_steps=accumulation,
                num_train_epochs=1,
                max_grad_norm=0.0,
                logging_steps=10,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=pairs,
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
        )
        trainer.remove_callback(PrinterCallback)
        assert issubclass(PrinterCallback, TrainerCallback)
        trainer.train()


def lightning_logging(net: nn.Module, pairs: Pairs, accumulation: int, optimize: Optimize) -> None:
    lightning(net, pairs, accumulation, optimize, is_logging=True)


LOOPS: dict[str, Loop] = {
    "hand-written": hand,
    "seed style": seed_style,
    "Lightning": lightning,
    "Lightning, logging": lightning_logging,
    "Accelerate": accelerate,
    "HF Trainer": hf_trainer,
}
