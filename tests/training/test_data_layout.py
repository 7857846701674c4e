"""A data layout of one's own, added as CONTRIBUTING says: a cooker in COOKERS and its name in the stages' kinds."""

import json
from dataclasses import replace

import pytest
from megatron.energon import basic_sample_keys, stateless
from megatron.energon.task_encoder.cooking import cooker
from PIL import Image

from tests.tiny.clip import letter_tokenizer
from tests.training.data_fixtures import one_stream
from training.data.cookers import COOKERS, find_image, read_json
from training.data.data_config import KINDS, AlignData, InstructData, SourceConfig
from training.data.data_stream import DataStream
from training.data.sample_types import CompositionalSample, Entity
from training.data.shard_writer import write_shard
from training.data.synthetic import encoded
from training.data.tasks import AlignTask, InstructTask


@stateless
@cooker
def cook_portrait(crude):
    """A sentence, what it speaks of in a picture of its own, and the picture of both."""
    sentence = read_json(crude["json"])["sentence"]
    entities = [Entity(0, 0, find_image(crude, "subject"))]
    keys = basic_sample_keys(crude)
    return CompositionalSample(**keys, caption=sentence, entities=entities, target=find_image(crude))


@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_a_new_layout_is_read_with_its_pictures(stage, tmp_path, monkeypatch, tiny_tokenizer):
    monkeypatch.setitem(COOKERS, "portrait", cook_portrait)
    whole, subject = (encoded(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue"))
    parts = {"jpg": whole, "subject.jpg": subject, "json": json.dumps({"sentence": "a dog"}).encode()}
    write_shard(tmp_path / "data/00000.tar", ((str(number), parts) for number in range(8)))
    sources = {"data": SourceConfig(str(tmp_path / "data"), kind="portrait")}
    if stage == "align":
        config = AlignData(sources, workers=0)
        task = AlignTask(config, tiny_tokenizer, letter_tokenizer(tmp_path / "clip"), image_size=16)
    else:
        config = InstructData(sources, workers=0, resolution=32)
        task = InstructTask(config, tiny_tokenizer, image_size=16)
    batch = next(DataStream(replace(task, kinds=task.kinds | {"portrait"}), config, one_stream()))
    assert batch["pixels"].shape == (4, 3, 16, 16)


def test_each_kind_that_can_be_configured_has_a_cooker():
    assert set(KINDS) == set(COOKERS)
