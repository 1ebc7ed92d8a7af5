"""A place in the epochs of a stream, as three integers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

from worker.stream.batch import Batch
from worker.stream.stream import Stream


class Cursor:
    """Goes through a stream epoch by epoch; its state is enough to go on anywhere, exactly and at once."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.epoch, self.offset = 1, 0  # the offset counts the samples of this epoch that were given

    def batches(self, size: int) -> Generator[Batch, None, None]:
        """Yield what is left of this epoch; a batch counts as given when it is handed out."""
        with closing(self._stream.batches(size, skip=self.offset, epoch=self.epoch)) as batches:
            for batch in batches:
                self.offset += len(batch)
                yield batch
        self.epoch, self.offset = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Return the place: {epoch, offset, seed}."""
        return {"epoch": self.epoch, "offset": self.offset, "seed": self._stream.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a place. Raises ValueError when it is none of this stream."""
        if state["seed"] != self._stream.seed:
            raise ValueError(f"the stream is shuffled with seed {self._stream.seed}, not {state['seed']}")
        if state["epoch"] < 1 or not 0 <= state["offset"] <= len(self._stream):
            raise ValueError(
                f"the stream has {len(self._stream)} samples in an epoch; this is no place: {state}"
            )
        self.epoch, self.offset = state["epoch"], state["offset"]
