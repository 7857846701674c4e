"""What a prompt weight does: a mean of readings that see ever fewer tokens."""

import numpy as np
import pytest
import torch

from kosmos_core import KosmosG, KosmosGConfig, Prompt
from kosmos_core.attention_maps import recorded
from kosmos_core.emphasis import readings

RED = np.full((40, 60, 3), (250, 0, 0), np.uint8)


@pytest.fixture(scope="module")
def model(tiny_tokenizer) -> KosmosG:
    config = KosmosGConfig.tiny(vocabulary=tiny_tokenizer.vocabulary)
    return KosmosG(config, tokenizer=tiny_tokenizer).initialize(3).eval().requires_grad_(False)


def encode(model: KosmosG, text: str) -> torch.Tensor:
    return model.encode(Prompt.parse(text), [RED] * text.count("<i"))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1, 1, 1], [(1, "xxx")]),
        ([1, 1, 0], [(1, "xx-")]),
        ([1, 0.25, 1], [(0.25, "xxx"), (0.75, "x-x")]),
        ([1, 2, 1], [(0.5, "xxx"), (0.5, "xx-")]),
        ([1, 2, 1, 4], [(0.25, "xxxx"), (0.25, "xx-x"), (0.5, "x--x")]),
        ([1, 2, 0.5], [(0.25, "xxx"), (0.75, "xx-")]),
        ([1, 1.3, 1.3], [(1, "xxx")]),
        ([1, 0.5, 0.5], [(0.5, "xxx"), (0.5, "x--")]),
        ([1, 0, 0], [(1, "x--")]),
        ([0, 1, 2], [(0.5, "-xx"), (0.5, "--x")]),
    ],
)
def test_a_reading_sees_the_tokens_whose_weight_reaches_its_height(weights, expected):
    expected = [(share, tuple(mark == "x" for mark in seen)) for share, seen in expected]
    assert [(reading.share, reading.seen) for reading in readings(weights)] == expected


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, -1.5], "weight is -1.5; expected a number of 0 or more"),
        ([1, float("nan")], "weight is nan"),
        ([1, float("inf")], "weight is inf"),
        ([0, 0], "weights of all tokens are 0"),
    ],
)
def test_weights_that_mean_nothing_are_refused(model, weights, message):
    with pytest.raises(ValueError, match=message):
        model.encode_tokens(torch.tensor([[0, 20]]), key_weights=torch.tensor([weights]))


@pytest.mark.parametrize("part", ["dog", "<i>"])
def test_half_a_weight_is_half_of_the_way_to_hidden_and_two_half_of_the_way_to_alone(model, part):
    hidden, neutral = (encode(model, f"a ({part}:{weight}) on (the beach:1)") for weight in ("0", "1"))
    alone = encode(model, f"(a:0) ({part}:1) (on the beach:0)")
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(encode(model, f"a ({part}:0.5) on the beach"), (hidden + neutral) / 2, **close)
    torch.testing.assert_close(encode(model, f"a ({part}:2) on the beach"), (alone + neutral) / 2, **close)
    most = encode(model, f"a ({part}:100) on the beach")  # the largest weight
    torch.testing.assert_close(most, (99 * alone + neutral) / 100, **close)


def test_a_weight_that_all_of_a_prompt_shares_changes_no_bit(model):
    assert torch.equal(encode(model, "(a dog <i>:1.7)"), encode(model, "a dog <i>"))
    assert torch.equal(encode(model, "((a dog:2) <i>:0.5) on"), encode(model, "a dog (<i>:0.5) on"))


def test_a_prompt_is_weighted_alike_alone_in_a_batch_and_with_padding(model):
    texts = ["a (dog:2) on (the (beach:0.5):1.5)", "a red dog", "(a:0) (dog:1.2)"]
    alone = torch.cat([encode(model, text) for text in texts])
    together = model.encode([Prompt.parse(text) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    layouts = [model.tokenizer.layout(Prompt.parse(text)) for text in texts]
    longest = max(len(layout.token_ids) for layout in layouts)
    ids, weights = torch.ones(3, longest, dtype=torch.long), torch.ones(3, longest)
    for row, layout in enumerate(layouts):
        ids[row, : len(layout.token_ids)] = torch.tensor(layout.token_ids)
        weights[row, : len(layout.token_ids)] = torch.tensor(layout.key_weights or 1.0)
    padded = model.align(model.hidden_states(ids), ids == 1, weights)
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-5)


def test_the_attention_of_a_weighted_prompt_is_the_mean_of_its_readings(model):
    ids, weights = torch.tensor([[0, 20, 30, 25]]), [1, 1, 2, 0.1]

    def attention(token_weights: list[float]) -> torch.Tensor:
        with recorded(model.aligner.query_decoder) as seen:
            model.encode_tokens(ids, key_weights=torch.tensor([token_weights]))
        return seen.of_prompt(token_weights)

    parts = [attention(x) for x in ([1.0, 1, 1, 1], [1.0, 1, 1, 0], [1.0, 0, 1, 0])]
    expected = 0.05 * parts[0] + 0.45 * parts[1] + 0.5 * parts[2]
    torch.testing.assert_close(attention(weights), expected, rtol=0, atol=1e-6)
