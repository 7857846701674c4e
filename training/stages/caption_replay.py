"""Stage 2's captions beside stage 3's rows: what stage 3 does not show is not forgotten meanwhile.

Beyond the paper. A stage 3 of few nouns takes the other ones from AlignerNet, by words and by pictures alike; a few
captions in each micro-batch, aligned to CLIP's states of them as in stage 2, keep them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kosmos_core import KosmosG, Tokenizer

from ..data.batch_stream import Batch, BatchStream, Stream
from ..data.data_config import REPLAY, AlignData, DataConfig
from .alignment_loss import squared_errors, token_weights
from .instruct_config import Replay


class ReplayStream(BatchStream):
    """A stage's micro-batches with captions beside them: `replay_ids` (c, s) and `replay_clip_ids` (c, 77), int64."""

    def __init__(self, rows: BatchStream, captions: BatchStream):
        self.rows, self.captions = rows, captions

    @classmethod
    def beside(
        cls, rows: BatchStream, replay: Replay, data: DataConfig, stream: Stream, tokenizer: Tokenizer, clip: Any
    ) -> ReplayStream:
        """`rows` and what `replay` names, read in the way that `data` says. clip: CLIP's tokenizer.

        Raises DataError where the captions cannot be read or are none.
        """
        from ..data.data_stream import DataStream  # late, see data/streams.py
        from ..data.tasks import AlignTask

        shared = {name: getattr(data, name) for name in DataConfig.__dataclass_fields__}
        own = {"sources": replay.sources(), "workers": min(1, data.workers)}
        config = AlignData(**(shared | own))
        kinds = frozenset(("text", "captions"))
        task = AlignTask(config, tokenizer, clip, stage=f"instruct ({REPLAY}.captions)", kinds=kinds)
        count = replay.rows(stream.micro_batch)
        beside = Stream(stream.seed, stream.index, stream.streams, count, stream.micro_batches)
        return cls(rows, DataStream(task, config, beside))

    def __next__(self) -> Batch:
        batch, captions = next(self.rows), next(self.captions)
        return batch | {"replay_ids": captions["token_ids"], "replay_clip_ids": captions["clip_ids"]}

    def state_dict(self) -> dict[str, Any]:
        return self.rows.state_dict() | {REPLAY: self.captions.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; from one without captions they begin at their start."""
        self.rows.load_state_dict({name: value for name, value in state.items() if name != REPLAY})
        if REPLAY in state:
            self.captions.load_state_dict(state[REPLAY])

    def report(self) -> dict[str, int]:
        return self.rows.report() | self.captions.report()

    def close(self) -> None:
        for stream in (self.rows, self.captions):
            stream.close()


def replay_errors(model: KosmosG, clip: nn.Module, batch: Batch, padding: float) -> Tensor:
    """Squared error of each caption's condition to CLIP's states of it, (c,) float32; `padding` as in stage 2."""
    with torch.no_grad():
        states = clip(batch["replay_clip_ids"]).last_hidden_state
    conditions = model.encode_tokens(batch["replay_ids"])
    return squared_errors(conditions, states, token_weights(batch["replay_clip_ids"], padding))
