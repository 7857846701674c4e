"""Data sets, tokenizers and streams that several data tests share."""

import random

import torch

from training.data.batch_stream import Stream
from training.data.data_config import AlignData, InstructData, LmData, SourceConfig
from training.data.streams import align_stream, instruct_stream, lm_stream
from training.data.synthetic import LAYOUTS, write_tars

STAGE_SOURCES = {
    "lm": {"text": 5, "pairs": 5, "interleaved": 2},
    "align": {"pairs": 1},
    "instruct": {"compositional": 2, "edit": 2, "pairs": 1},
}


def write_sources(folder, samples=40, size=48, per_shard=15):
    """Every synthetic layout, small."""
    for name, make in LAYOUTS.items():
        write_tars(folder / name, make(random.Random(name), samples, size), per_shard)
    return folder


def config_for(stage, folder, **options):
    """The data section of a stage over the folders of `write_sources`."""
    sources = {name: SourceConfig(str(folder / name), weight=weight) for name, weight in STAGE_SOURCES[stage].items()}
    kind = {"lm": LmData, "align": AlignData, "instruct": InstructData}[stage]
    defaults = {"lm": {"sequence_length": 128}, "align": {"max_clip_tokens": 75}, "instruct": {"resolution": 32}}[stage]
    return kind(**{"sources": sources, "workers": 0, "shuffle_block": 4, "shuffle_window": 4} | defaults | options)


def open_stage(stage, config, stream, tokenizer, clip=None):
    """The stream of a stage."""
    if stage == "align":
        return align_stream(config, stream, tokenizer, clip)
    return (lm_stream if stage == "lm" else instruct_stream)(config, stream, tokenizer)


def one_stream(micro_batch=4, micro_batches=1, seed=0):
    """The only stream of a run."""
    return Stream(seed, 0, 1, micro_batch, micro_batches)


def same(first, second):
    """Whether two batches are equal to the bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        other = second[name]
        equal = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
        assert equal, f"{name} differs"
    return True
