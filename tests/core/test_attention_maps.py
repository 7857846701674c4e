"""Attention maps: what is recorded is what the model computes, and shares add up."""

import pytest
import torch

from kosmos_core import KosmosG, KosmosGConfig, Prompt
from kosmos_core.attention_maps import Place, TokenGroup, Trace, group_maps, recorded, slots_from_group, token_groups


@pytest.fixture(scope="module")
def model(tiny_tokenizer) -> KosmosG:
    config = KosmosGConfig.tiny(vocabulary=tiny_tokenizer.vocabulary)
    return KosmosG(config, tokenizer=tiny_tokenizer).initialize(3).eval().requires_grad_(False)


def test_recording_changes_nothing_and_leaves_nothing_behind(model):
    layer = model.aligner.query_decoder.blocks[0].cross_attention
    ids = torch.tensor([[0, 20, 30, 25]])
    with recorded(model.aligner.query_decoder) as attention:
        condition = model.encode_tokens(ids)
    assert torch.equal(condition, model.encode_tokens(ids))
    assert attention.mean().shape == (1, 77, 4)
    assert torch.allclose(attention.mean().sum(-1), torch.ones(1, 77), atol=1e-5)
    assert not layer._forward_pre_hooks


def test_the_product_of_one_heads_attention_and_values_is_the_layers_output(model):
    layer = model.aligner.query_decoder.blocks[0].cross_attention
    heads, layer.heads = layer.heads, 1
    seen = {}
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.update(memory=inputs[1], output=output))
    try:
        with recorded(model.aligner.query_decoder) as attention:
            model.encode_tokens(torch.tensor([[0, 20, 30, 25]]))
    finally:
        hook.remove()
        layer.heads = heads
    expected = layer.out_proj(attention.mean() @ layer.v_proj(seen["memory"]))
    assert torch.allclose(expected, seen["output"], atol=1e-5)


def test_hidden_tokens_get_no_attention(model):
    with recorded(model.aligner.query_decoder) as attention:
        model.encode_tokens(torch.tensor([[0, 20, 30, 25]]), key_weights=torch.tensor([[1.0, 1, 0, 1]]))
    assert not attention.mean()[..., 2].any()


def test_groups_hold_every_token_once_and_are_the_words_and_pictures(tiny_tokenizer):
    layout = tiny_tokenizer.layout(Prompt.parse("a dog <i> wearing (a hat <i>:1.2)", images=2))
    groups = token_groups(layout, tiny_tokenizer)
    assert sorted(token for group in groups for token in group.tokens) == list(range(len(layout.token_ids)))
    assert [group.label for group in groups] == ["(start)", "a", "dog", "<i1>", "wearing", "a", "hat", "<i2>"]
    assert [group.slot for group in groups if group.slot] == [1, 2]


def test_shares_of_groups_add_up():
    attention = torch.rand(5, 6).softmax(-1)
    groups = [TokenGroup("(start)", (0,)), TokenGroup("dog", (1, 2)), TokenGroup("<i1>", (3, 4, 5), 1)]
    shares = slots_from_group(attention, groups)
    assert torch.allclose(shares[:, 1], attention[:, 1:3].sum(1))
    assert torch.allclose(shares.sum(1), torch.ones(5))
    pixels = torch.rand(5, 8, 8).softmax(0)
    maps = group_maps(pixels, attention, groups)
    assert torch.allclose(maps.sum(0), torch.ones(8, 8), atol=1e-5)
    assert torch.allclose(maps[2, 3, 4], pixels[:, 3, 4] @ attention[:, 3:].sum(1), atol=1e-5)


def recorded_trace(size: int, calls: int = 1, images: int = 1) -> Trace:
    trace = Trace()
    generator = torch.Generator().manual_seed(0)
    for _ in range(calls):
        for image in range(images):
            query = torch.randn(1, size * size, 8, generator=generator)
            key = torch.randn(1, 77, 8, generator=generator)
            trace.add(query, key, 2, torch.ones(1, 77, 16), (size, size), image)
    return trace


def test_a_trace_takes_the_same_memory_however_many_steps_and_however_large_the_picture():
    small = recorded_trace(64).bytes_recorded
    assert recorded_trace(64, calls=4).bytes_recorded == small
    assert recorded_trace(96).bytes_recorded == small
    assert small == 4 * 77 * (64 * 64 + 16) < 1.7e6  # maps and the condition


def test_a_full_trace_says_so_and_keeps_what_it_has(monkeypatch):
    monkeypatch.setattr("kosmos_core.attention_maps.TRACE_BYTES", 150_000)
    trace = recorded_trace(16, images=3)
    assert trace.full
    assert trace.bytes_recorded <= 150_000
    assert trace.map(0, 0, (16, 16)).shape == (77, 16, 16)
    with pytest.raises(ValueError, match="nothing of picture 3"):
        trace.map(0, 2, (16, 16))


def test_maps_add_up_over_the_slots_and_the_nearest_condition_is_found():
    trace = recorded_trace(8, calls=2)
    assert torch.allclose(trace.map(0, 0, (20, 20)).sum(0), torch.ones(20, 20), atol=1e-5)
    trace.add(torch.randn(1, 64, 8), torch.randn(1, 77, 8), 2, torch.zeros(1, 77, 16), (8, 8), 0)
    assert trace.nearest(torch.full((77, 16), 0.1))[0] == 1
    index, distance = trace.nearest(torch.full((77, 16), 0.8))
    assert (index, distance) == (0, pytest.approx(0.25))  # per unit of norm


def two_sizes(blocks: int) -> Trace:
    """A small map that looks at slot 0 alone, and `blocks` larger ones that look at slot 1 alone."""
    trace, condition = Trace(), torch.zeros(1, 77, 16)
    for size, slot, times in ((2, 0, 1), (4, 1, blocks)):
        key = torch.zeros(1, 77, 8)
        key[0, slot] = 1e4
        for _ in range(times):
            trace.add(torch.ones(1, size * size, 8), key, 1, condition, (size, size), 0)
    return trace


def test_each_map_size_has_one_say_however_many_blocks_have_it():
    for blocks in (1, 3):
        found = two_sizes(blocks).map(0, 0, (8, 8))
        expected = torch.zeros(77, 8, 8)
        expected[:2] = 0.5
        torch.testing.assert_close(found, expected)


def test_maps_are_enlarged_smoothly():
    trace, key = Trace(), torch.zeros(1, 77, 1)
    key[0, 0] = 1e4
    query = torch.tensor([1.0, -1.0]).view(1, 2, 1)  # the left half looks at slot 0, the right half at all others
    trace.add(query, key, 1, torch.zeros(1, 77, 16), (1, 2), 0)
    row = trace.map(0, 0, (4, 8))[0, 1]
    torch.testing.assert_close(row, torch.tensor([1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0]))


def test_where_a_condition_acts_with_half_its_strength_its_map_still_sums_to_one():
    trace = Trace()
    opacity = torch.zeros(8, 8)
    opacity[:, :4] = 0.5
    query, key = torch.randn(1, 64, 8), torch.randn(1, 77, 8)
    trace.add(query, key, 2, torch.ones(1, 77, 16), (8, 8), 0, Place(opacity, (0, 0, 8, 8)))
    sums = trace.map(0, 0, (8, 8)).sum(0)
    torch.testing.assert_close(sums[:, :4], torch.ones(8, 4))
    assert not sums[:, 4:].any()


def test_where_only_one_of_two_map_sizes_has_a_place_the_map_still_sums_to_one():
    trace, left = Trace(), torch.zeros(8, 8)
    left[:, :4] = 1
    for size, opacity in ((8, left), (4, torch.ones(8, 8))):
        query, key = torch.randn(1, size * size, 8), torch.randn(1, 77, 8)
        trace.add(query, key, 2, torch.ones(1, 77, 16), (size, size), 0, Place(opacity, (0, 0, 8, 8)))
    torch.testing.assert_close(trace.map(0, 0, (8, 8)).sum(0), torch.ones(8, 8))


def test_a_map_that_is_shrunk_still_sums_to_one():
    torch.testing.assert_close(recorded_trace(80).map(0, 0, (64, 64)).sum(0), torch.ones(64, 64))


def test_a_condition_acts_wherever_one_of_its_calls_did_however_thin_its_mask():
    trace = Trace()
    for column in (0, 100):
        opacity = torch.zeros(128, 128)
        opacity[:, column] = 1
        place = Place(opacity, (0, 0, 128, 128))
        trace.add(torch.randn(1, 256, 8), torch.randn(1, 77, 8), 2, torch.ones(1, 77, 16), (16, 16), 0, place)
        assert place.pasted(torch.rand(77, 16, 16))[1][:, column // 8].eq(1).all()  # an eighth of each place
    assert trace.opacity(0, 0, (128, 128)).sum(0).nonzero().flatten().tolist() == [0, 100]


def test_a_recorded_condition_stays_when_the_sampler_writes_into_its_own():
    trace, context = Trace(), torch.ones(1, 77, 16)
    trace.add(torch.randn(1, 64, 8), torch.randn(1, 77, 8), 2, context, (8, 8), 0)
    context.zero_()
    assert trace.nearest(torch.ones(77, 16)) == (0, 0)


def test_an_empty_trace_says_what_to_connect():
    with pytest.raises(ValueError, match="The trace is empty"):
        Trace().nearest(torch.zeros(77, 16))
