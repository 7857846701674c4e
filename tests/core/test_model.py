"""What the model promises beyond the original's numbers: weights, packing, memory of pictures, precision, options."""

import copy
import dataclasses
import itertools
import math
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from kosmos_core import KosmosG, KosmosGConfig, Prompt, Reference, Tokenizer, preprocess_image, resized
from kosmos_core.images import to_rgb
from kosmos_core.layers import AttentionPattern
from kosmos_core.reference import View

RED, BLUE, GREY = (np.full((40, 60, 3), colour, np.uint8) for colour in ((250, 0, 0), (0, 0, 250), (99, 99, 99)))


@pytest.fixture(scope="module")
def made_model(tiny_tokenizer):
    config = KosmosGConfig.tiny(vocabulary=tiny_tokenizer.vocabulary, reconstruction=True)
    return KosmosG(config, tokenizer=tiny_tokenizer).initialize(3)


@pytest.fixture
def model(made_model):
    """In inference, without a picture in its memory."""
    made_model.eval()._cached_images.clear()
    return made_model


class AttentionCalls(TorchFunctionMode):
    """Records the mask and the causal flag of every attention call."""

    def __init__(self):
        super().__init__()
        self.masks, self.shapes = [], []

    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            self.masks.append(args[3] if len(args) > 3 else (kwargs or {}).get("attn_mask"))
            self.shapes.append((args[0].shape[2], args[1].shape[2]))
        return function(*args, **(kwargs or {}))


def test_a_weight_of_one_is_bit_identical_to_no_weight(model):
    plain = model.encode(Prompt.parse("a dog <i> on the beach", images=1), [RED])
    assert torch.equal(model.encode(Prompt.parse("a (dog <i>:1.0) on the beach", images=1), [RED]), plain)
    layout = model.tokenizer.layout("a dog on the beach")
    ids = torch.tensor([layout.token_ids])
    with torch.no_grad():
        assert torch.equal(model.encode_tokens(ids, key_weights=torch.ones(ids.shape)), model.encode_tokens(ids)), (
            "explicit ones take the weighted path and still change nothing"
        )


def test_a_weight_of_zero_equals_masking_the_tokens_out(model):
    ids = torch.tensor([model.tokenizer.layout("a dog on the beach").token_ids])
    hidden_tokens = torch.zeros(ids.shape, dtype=torch.bool)
    hidden_tokens[0, 2:4] = True
    with torch.no_grad():
        hidden = model.hidden_states(ids)
        masked = model.align(hidden, padding_mask=hidden_tokens)
        weighted = model.align(hidden, key_weights=(~hidden_tokens).float())
    torch.testing.assert_close(weighted, masked, rtol=0, atol=1e-6)
    assert not torch.allclose(weighted, model.encode_tokens(ids), atol=1e-3)


def test_a_key_bias_multiplies_the_attention_a_token_gets():
    """One head, one query, three keys: with the bias log w_i the attention is w_i exp(l_i) over their sum."""
    attention = KosmosG(KosmosGConfig.tiny()).initialize(0).eval().resampler.attention
    x, memory, weights = torch.randn(1, 1, 32), torch.randn(1, 3, 32), torch.tensor([[2.0, 1.0, 0.5]])
    with torch.no_grad():
        found = attention(x, memory, AttentionPattern(key_bias=weights.log()))
        query, key, value = attention.q_proj(x), attention.k_proj(memory), attention.v_proj(memory)
        heads = []
        for part in torch.arange(32).chunk(2):
            logits = (query[..., part] @ key[..., part].mT) / math.sqrt(16)
            share = weights * logits.exp()
            heads.append(share / share.sum() @ value[..., part])
        expected = attention.out_proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(found, expected)


def test_prompts_of_different_length_do_not_see_each_other(model):
    prompts = ["a dog <i> on the beach", "", "a wonderful wooden ship <i> beside <i>"]
    together = model.encode(prompts, [[RED], [], [BLUE, GREY]])
    for prompt, images, found in zip(prompts, [[RED], [], [BLUE, GREY]], together, strict=True):
        torch.testing.assert_close(found[None], model.encode(prompt, images), rtol=0, atol=2e-6)


def test_packed_documents_equal_documents_alone(model):
    documents = [
        model.tokenizer.layout(text).token_ids for text in ("a dog", "the old street", "a kettle on the beach")
    ]
    with torch.no_grad():
        packed = model.hidden_states(
            torch.tensor([[*itertools.chain(*documents)]]), lengths=[len(x) for x in documents]
        )
        alone = torch.cat([model.hidden_states(torch.tensor([x])) for x in documents], dim=1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=2e-6)


def test_tokens_behind_padding_have_the_places_they_have_without_it(model):
    ids = torch.tensor([[0, 5, 6, 7]])
    padded = torch.tensor([[1, 1, 0, 5, 6, 7, 1]])
    with torch.no_grad():
        plain, found = (model.decoder.embed(x, None, None) for x in (ids, padded))
    assert torch.equal(found[:, 2:6], plain)
    assert not found[:, [0, 1, 6]].any()


def test_the_embeddings_lose_numbers_to_dropout_in_training_alone():
    config = KosmosGConfig.tiny()
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, dropout=0.5))
    decoder, seen = KosmosG(config).initialize(0).decoder, []
    decoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for training in (True, False):
            decoder.train(training)(torch.full((1, 50), 5))
    lost = [float((x == 0).float().mean()) for x in seen]
    assert lost == [pytest.approx(0.5, abs=0.1), pytest.approx(0.0, abs=0.01)]


def test_prompts_equal_their_token_ids_padded_by_hand(model):
    layouts = [model.tokenizer.layout(text) for text in ("a dog <i> on the beach", "", "ship")]
    longest = max(len(layout.token_ids) for layout in layouts)
    pads = [longest - len(layout.token_ids) for layout in layouts]
    padded = model.encode_tokens(
        torch.tensor([x.token_ids + [model.config.ids.pad] * pad for x, pad in zip(layouts, pads, strict=True)]),
        preprocess_image(RED)[None],
        torch.tensor([x.image_mask + [False] * pad for x, pad in zip(layouts, pads, strict=True)]),
    )
    assert torch.equal(model.encode(layouts, [RED]), padded)


def test_encoding_builds_no_mask_and_spends_nothing_on_padding(model):
    with AttentionCalls() as calls:
        model.encode(["a dog <i>", "ship"], [[RED], []])
    assert calls.masks
    assert all(mask is None for mask in calls.masks)
    lengths = {len(model.tokenizer.layout(text).token_ids) for text in ("a dog <i>", "ship")}
    assert {queries for queries, keys in calls.shapes if queries == keys} == lengths | {17, 77}


def test_logits_are_computed_only_when_asked_for(model):
    ids = torch.tensor([[0, 5, 6]])
    flops = {}
    for output in ("condition", "hidden", "logits"):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            shape = model(ids, output=output).shape
        flops[output] = counter.get_total_flops()
        assert shape[-1] == {"condition": 768, "hidden": 32, "logits": model.config.decoder.vocabulary}[output]
    assert flops["logits"] - flops["hidden"] == 2 * 3 * 32 * model.config.decoder.vocabulary


def test_a_picture_is_encoded_once_and_the_memory_of_it_is_bit_identical(model):
    seen = []
    hook = model.vision.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    first = model.encode("a <i> and <i>", [RED, BLUE])
    assert sum(seen) == 2
    assert torch.equal(model.encode("a <i> and <i>", [RED, BLUE]), first)
    assert sum(seen) == 2
    model.encode("a <i> and <i>", [RED, GREY])
    assert sum(seen) == 3
    model._cached_images.clear()
    assert torch.equal(model.encode("a <i> and <i>", [RED, BLUE]), first)
    hook.remove()


def test_the_memory_of_pictures_is_bounded_and_forgotten_with_the_weights(model, monkeypatch):
    monkeypatch.setattr("kosmos_core.model.CACHED_IMAGES", 3)
    for shade in range(5):
        model.encode("<i>", [np.full((8, 8, 3), shade, np.uint8)])
    assert len(model._cached_images) == 3
    model.load_state_dict(model.state_dict())
    model.encode("<i>", [RED])
    assert len(model._cached_images) == 1


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_pictures_that_differ_in_one_place_of_one_channel_are_told_apart(model, channel):
    pixels = preprocess_image(RED)
    before = model.image_embeddings(pixels)
    pixels[channel, -1, -1] += 1
    assert torch.equal(model.image_embeddings(pixels), model.embed_images(pixels[None])[0])
    assert not torch.equal(model.image_embeddings(pixels), before)


def test_the_picture_that_was_longest_unused_is_forgotten_first(model, monkeypatch):
    monkeypatch.setattr("kosmos_core.model.CACHED_IMAGES", 2)
    runs = []
    hook = model.vision.register_forward_hook(lambda *_: runs.append(1))
    for image in (RED, BLUE, RED, GREY, RED):
        model.encode("<i>", [image])
    assert len(runs) == 3
    model.encode("<i>", [BLUE])
    assert len(runs) == 4
    hook.remove()


def lerp(model):
    for weight in model.parameters():
        weight.lerp_(weight.flip(0), 0.5)


def lerp_data(model):
    for weight in model.vision.parameters():
        weight.data.mul_(1.1)


def edit_one_number(model):
    model.resampler.latents.weight[1, 3] += 5


def new_module(model):
    model.vision = copy.deepcopy(model.vision)
    model.vision.patch_embedding.weight = nn.Parameter(model.vision.patch_embedding.weight.flip(0))


def hook(model):
    model.vision.register_forward_hook(lambda _, __, output: output * 1.5)


CHANGES = [lerp, lerp_data, edit_one_number, new_module, hook, lambda model: model.vision.bfloat16()]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("<>"))
def test_pictures_are_forgotten_with_any_change_of_what_encodes_them(model, change):
    changed, pixels = copy.deepcopy(model).train(False), preprocess_image(RED)
    before = changed.image_embeddings(pixels)
    with torch.no_grad():
        change(changed)
        expected = changed.embed_images(pixels[None])[0]
    after = changed.image_embeddings(pixels)
    assert not torch.equal(after, before)
    assert torch.equal(after, expected)


def test_pictures_are_remembered_apart_for_each_precision_and_kept_where_nothing_changes(model):
    pixels, runs = preprocess_image(RED), []
    counter = model.vision.register_forward_hook(lambda *_: runs.append(1))
    plain = model.image_embeddings(pixels)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        cast = model.image_embeddings(pixels)
        assert torch.equal(cast, model.embed_images(pixels[None])[0])
    assert not torch.equal(cast, plain)
    assert torch.equal(model.image_embeddings(pixels), plain)
    before = len(runs)
    model.to("cpu").requires_grad_(True)
    assert torch.equal(model.image_embeddings(pixels), plain)
    assert len(runs) == before
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if precision != "highest" else "high")
    try:
        model.image_embeddings(pixels)
    finally:
        torch.set_float32_matmul_precision(precision)
    assert len(runs) == before + 1
    counter.remove()


def test_bfloat16_stays_close_to_float32_in_every_slot(model, tiny_tokenizer):
    half = KosmosG(model.config, tokenizer=tiny_tokenizer, dtype=torch.bfloat16).eval()
    half.load_state_dict({name: tensor.bfloat16() for name, tensor in model.state_dict().items()})
    full, found = (m.encode("a dog <i> on the beach", [RED]) for m in (model, half))
    assert found.dtype == torch.float32
    assert F.cosine_similarity(full, found, dim=-1).min() >= 0.999


def test_smaller_aligner_tables_change_nothing_else_of_the_initialisation():
    config = KosmosGConfig.tiny(reconstruction=True)
    usual, small = KosmosG(config).initialize(0), KosmosG(config).initialize(0, aligner_tables=0.03)
    tables = {
        f"aligner.{table}.weight"
        for table in (
            "source_encoder.positions",
            "query_decoder.queries",
            "reconstruction_decoder.queries",
            "reconstruction_encoder.positions",
        )
    }
    for (name, one), other in zip(usual.state_dict().items(), small.state_dict().values(), strict=True):
        assert torch.allclose(other, one * (0.03 if name in tables else 1.0)), name
    assert tables <= usual.state_dict().keys()


def test_initialisation_follows_magneto():
    config = KosmosGConfig.medium(reconstruction=True)
    model = KosmosG(config).initialize(0)
    width = config.decoder.width
    assert model.decoder.embedding.weight.std().item() == pytest.approx(width**-0.5, rel=0.01)
    assert model.decoder.embedding.weight[1].abs().max() == 0
    uniform = 1 / math.sqrt(3)  # standard deviation of a uniform value in -1..1

    def gamma(layer):
        return layer.weight.std().item() * math.sqrt(layer.in_features) / uniform

    stacks = {
        "decoder": (model.decoder.blocks, math.sqrt(math.log(16))),
        "source": (model.aligner.source_encoder.blocks, math.sqrt(math.log(18) * math.log(12) / 3)),
        "query": (model.aligner.query_decoder.blocks, math.sqrt(math.log(18))),
        "reconstruction decoder": (model.aligner.reconstruction_decoder.blocks, math.sqrt(math.log(18))),
        "reconstruction encoder": (model.aligner.reconstruction_encoder.blocks, math.sqrt(math.log(12))),
    }
    for name, (blocks, expected) in stacks.items():
        block = blocks[0]
        for layer in (block.attention.v_proj, block.attention.out_proj, block.feed_forward.fc1, block.feed_forward.fc2):
            assert gamma(layer) == pytest.approx(expected, rel=0.02), name
            assert layer.bias.abs().max().item() * math.sqrt(layer.in_features) == pytest.approx(expected, rel=0.05)
        for layer in (block.attention.q_proj, block.attention.k_proj):
            assert gamma(layer) == pytest.approx(1, rel=0.02), name
    assert gamma(model.aligner.query_decoder.blocks[0].cross_attention.v_proj) == pytest.approx(1, rel=0.02)
    assert model.aligner.query_decoder.queries.weight.std().item() == pytest.approx(1, rel=0.02)
    assert model.resampler.latents.weight.std().item() == pytest.approx(1, rel=0.02)
    xavier = math.sqrt(2 / (2 * width))
    assert model.resampler.attention.out_proj.weight.std().item() == pytest.approx(xavier, rel=0.02)
    assert model.resampler.attention.k_proj.weight.std().item() == pytest.approx(xavier / math.sqrt(2), rel=0.02)
    again = KosmosG(config).initialize(0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_aligners_source_is_scaled_by_three_of_its_queries_depth_and_two_of_its_own():
    config = KosmosGConfig.tiny()
    depths = dataclasses.replace(config.aligner, encoder_layers=3, decoder_layers=1)
    config = dataclasses.replace(config, aligner=depths)
    model = KosmosG(config).initialize(0)
    gamma = math.sqrt(math.log(3 * 1) * math.log(2 * 3) / 3)
    for block in model.aligner.source_encoder.blocks:
        layer = block.attention.v_proj
        assert layer.weight.abs().max().item() * math.sqrt(layer.in_features) == pytest.approx(gamma, rel=0.01)


def test_every_layer_comes_from_the_given_operations():
    kinds = {name: type(name, (getattr(nn, name),), {}) for name in ("Linear", "LayerNorm", "Embedding", "Conv2d")}
    model = KosmosG(KosmosGConfig.tiny(reconstruction=True), operations=types.SimpleNamespace(**kinds))
    owners = {type(module) for module in model.modules() if module._parameters}
    assert owners == set(kinds.values()), "no parameter lives outside the given layers"


@pytest.mark.parametrize(
    ("prompts", "images", "sentence"),
    [
        ("a <i>", None, r"1 picture\(s\), but 0 came"),
        ("a dog", [RED], r"picture"),
        (["a <i>", "b <i>"], [[RED]], r"1 lists for 2 prompts"),
        (["a <i>", "b <i>"], [RED], r"b <i>"),
    ],
)
def test_pictures_that_do_not_match_the_marks_are_named(model, prompts, images, sentence):
    with pytest.raises(ValueError, match=sentence):
        model.encode(prompts, images)


def test_a_batch_of_one_picture_is_that_picture(model):
    batch = torch.from_numpy(RED)[None] / 255
    assert torch.equal(model.encode("a <i>", [batch]), model.encode("a <i>", [RED]))
    with pytest.raises(ValueError, match="a batch of 2 pictures stands for one <i>"):
        model.encode("a <i>", [batch.repeat(2, 1, 1, 1)])


@torch.no_grad()
def test_a_prompt_beyond_the_aligners_positions_is_named(model):
    assert model.encode_tokens(torch.full((1, 510), 5)).shape == (1, 77, 768)
    with pytest.raises(ValueError, match="has 511 tokens, but this model's aligner takes at most 510"):
        model.encode_tokens(torch.full((1, 511), 5))


def test_pixels_of_another_size_are_named(model):
    with pytest.raises(ValueError, match=r"shape \(1, 3, 32, 32\), expected \(n, 3, 224, 224\)"):
        model.embed_images(torch.zeros(1, 3, 32, 32))


def test_new_weights_and_training_forget_the_pictures(model):
    other = KosmosG(model.config, tokenizer=model.tokenizer).initialize(3).eval()
    pixels = preprocess_image(RED)
    before = other.image_embeddings(pixels)
    assert not torch.equal(other.initialize(4).image_embeddings(pixels), before)
    other.train()
    assert not torch.equal(other.image_embeddings(pixels), other.image_embeddings(pixels))  # attention dropout


@pytest.mark.parametrize(
    ("prompts", "images", "sentence"),
    [
        ([], None, "there is no prompt to encode"),
        (None, None, "A prompt is a string, not NoneType"),
        ([3], None, "A prompt is a string, not int"),
        ("a <i>", Image.fromarray(RED), "images is one Image, expected a list"),
        ("a <i>", RED, "images is one array .*, expected a list"),
        ("a <i>", "dog.jpg", "images is one str, expected a list"),
        ("a <i>", ["dog.jpg"], "not str; open the file with"),
        (Prompt.parse("a <i3>"), [RED], "names picture 3 but never picture 1"),
    ],
)
def test_what_is_no_prompt_or_no_list_of_pictures_is_named(model, prompts, images, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        model.encode(prompts, images)


@pytest.mark.parametrize(
    ("token_ids", "others", "sentence"),
    [
        (torch.tensor([0, 5]), {}, r"token_ids have shape \(2,\)"),
        ([[0, 5]], {}, r"token_ids have \[\[0, 5\]\]"),
        (torch.tensor([[0.0, 5.0]]), {}, "float32, expected integers"),
        (torch.tensor([[0, 5]]), {"key_weights": torch.ones(2)}, r"key_weights has shape \(2,\)"),
        (torch.tensor([[0, 5]]), {"image_mask": torch.zeros(1, 3, dtype=torch.bool)}, "image_mask has shape"),
    ],
)
def test_token_ids_of_another_form_are_named(model, token_ids, others, sentence):
    with pytest.raises(ValueError, match=sentence):
        model.encode_tokens(token_ids, **others)


def test_an_unknown_output_is_refused(model):
    with pytest.raises(ValueError, match="output is 'condtion', expected condition, hidden or logits"):
        model(torch.tensor([[0, 5]]), output="condtion")


def test_a_tokenizer_of_another_model_is_refused_and_the_latents_are_the_models(model):
    tokenizer = Tokenizer.from_bytes(*model.tokenizer.to_bytes(), latents=64)
    assert torch.equal(
        KosmosG(model.config, tokenizer=tokenizer).initialize(3).eval().encode("a <i>", [RED]),
        KosmosG(model.config, tokenizer=model.tokenizer).initialize(3).eval().encode("a <i>", [RED]),
    )
    with pytest.raises(ValueError, match="the model one of 99; use the tokenizer"):
        KosmosG(KosmosGConfig.tiny(vocabulary=99), tokenizer=tokenizer).encode("a")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"vision": {"width": "a"}}, "vision.width is 'a', expected a whole number of at least 1"),
        ({"vision": {"patch_size": 0}}, "vision.patch_size is 0"),
        ({"decoder": {"vocabulary": 5}}, "decoder.vocabulary is 5, expected a whole number of at least 10"),
        ({"resampler": {"heads": 3}}, "resampler.heads is 3, but the width 2048 must be a multiple of it"),
        ({"decoder": {"dropout": 1}}, "decoder.dropout is 1, expected a number from 0 to below 1"),
        ({"decoder": {"dropout": 3}}, "decoder.dropout is 3, expected a number from 0 to below 1"),
        ({"aligner": {"reconstruction": 1}}, "aligner.reconstruction is 1, expected true or false"),
        ({"vision": 3}, "part 'vision' is 3, expected a dictionary"),
    ],
)
def test_a_wrong_size_is_named(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        KosmosGConfig.from_dict(values)


def test_the_resamplers_heads_divide_the_width_of_the_language_model_and_no_other():
    config = KosmosGConfig.tiny()
    wide = dataclasses.replace(config.vision, width=34)
    assert (
        dataclasses.replace(
            config, vision=wide, resampler=dataclasses.replace(config.resampler, heads=8)
        ).resampler.heads
        == 8
    )


def test_many_prompts_go_in_passes_of_bounded_size_and_each_equals_itself_alone(model, monkeypatch):
    prompts = ["a dog <i> on the beach", "", "ship", "a wonderful wooden ship <i> beside <i>", "a dog", "street <i>"]
    prompts[2] = Prompt.parse("a (wonderful:1.5) (wooden:0.5) ship")
    images = [[RED], [], [], [BLUE, GREY], [], [BLUE]]
    rows = []
    hook = model.decoder.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].numel()))
    together = model.encode(prompts, images)
    alone = [model.encode([prompt], [own]) for prompt, own in zip(prompts, images, strict=True)]
    whole, *lengths = rows
    rows.clear()
    allowed = max(lengths) - 1  # less than the longest, which then goes by itself
    monkeypatch.setattr("kosmos_core.model.PASS_BYTES", 4 * model.config.decoder.ffn_width * allowed)
    found = model.encode(prompts, images)
    hook.remove()
    assert whole == sum(lengths) == sum(rows)
    assert len(prompts) > len(rows) > 2
    assert sorted(rows)[-2] <= allowed < sorted(rows)[-1] == max(lengths)
    torch.testing.assert_close(found, together, rtol=0, atol=2e-6)
    torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda x: torch.from_numpy(x).float() / 255])
def test_a_remembered_picture_is_not_resized_again_unless_one_byte_of_it_has_changed(model, kind, monkeypatch):
    monkeypatch.setattr(resized, "_resized", type(resized._resized)())
    prepared = []
    monkeypatch.setattr(resized, "_resize", lambda *given, own=resized._resize: prepared.append(1) or own(*given))
    shared = np.random.default_rng(5).integers(0, 200, (300, 90, 3), np.uint8)
    with torch.inference_mode():  # as ComfyUI runs nodes: such tensors count no changes
        picture = kind(shared)
    first = model.encode("a dog <i>", [picture])
    assert torch.equal(model.encode("a dog <i>", [picture]), first)
    assert torch.equal(model.encode("a dog <i>", [picture[None]]), first)
    assert len(prepared) == 1
    for view in (shared, picture):
        with torch.inference_mode():
            view[150, 45:, 1] += 1 / 8 if getattr(view, "dtype", None) == torch.float32 else 9
        changed = model.encode("a dog <i>", [picture])
        assert torch.equal(changed, model.encode("a dog <i>", [to_rgb(picture)]))
    assert not torch.equal(changed, first)
    assert torch.equal(
        model.encode("a dog <i>", [Reference(View(picture, squash=True))]),
        model.encode("a dog <i>", [to_rgb(picture).resize((224, 224), Image.Resampling.BICUBIC)]),
    )


def test_a_large_picture_is_told_by_all_its_parts_and_their_order_in_any_number_of_threads(monkeypatch):
    made = []
    monkeypatch.setattr(resized, "_resized", type(resized._resized)())
    monkeypatch.setattr(resized, "_resize", lambda *given: made.append(given) or len(made))
    monkeypatch.setattr(resized, "_ROWS_AT_ONCE", 8)
    picture = torch.from_numpy(np.random.default_rng(6).integers(0, 256, (45, 5, 3), np.uint8))
    others = [picture.roll(8, 0), *(picture.clone() for _ in range(6))]
    for part, other in enumerate(others[1:]):
        other[min(8 * part + 3, 44), 2, 1] ^= 1
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert [resized.resized(each, 4) for each in (picture, *others)] == list(range(1, 9))


def test_the_oldest_of_the_remembered_pictures_goes_first_and_pictures_that_cannot_be_used_are_not_kept(monkeypatch):
    monkeypatch.setattr(resized, "_resized", type(resized._resized)())
    monkeypatch.setattr(resized, "REMEMBERED", 2)
    made = [resized.resized(np.full((9, 9, 3), level, np.uint8), 4) for level in (1, 2)]
    assert resized.resized(np.full((9, 9, 3), 1, np.uint8), 4) is made[0]
    resized.resized(np.full((9, 9, 3), 3, np.uint8), 4)
    assert resized.resized(np.full((9, 9, 3), 1, np.uint8), 4) is made[0]
    again = resized.resized(np.full((9, 9, 3), 2, np.uint8), 4)
    assert again is not made[1]
    assert resized.resized(torch.full((9, 27), 2, dtype=torch.uint8), 4) is not again, "the same bytes, another shape"
    held = list(resized._resized)
    for broken in (torch.full((9, 9, 3), math.nan), np.full((9, 9, 3), 300, np.int32)):
        for _ in range(2):
            with pytest.raises(ValueError, match="The picture holds"):
                resized.resized(broken, 4)
    assert list(resized._resized) == held
