"""The kernels of attention are one function."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from kosmos_core.layers import QUERIES_AT_ONCE, attention


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_products_with_gradient_equal_the_fused_kernel(causal, biased):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, 9, 16), (2, 4, 9 if causal else 12, 16), (2, 4, 9 if causal else 12, 16)
    query, key, value = (torch.randn(shape, generator=generator).bfloat16().requires_grad_() for shape in shapes)
    bias = torch.randn(2, 1, 1, key.shape[2], generator=generator).bfloat16() if biased else None
    seen = torch.randn(2, 4, 9, 16, generator=generator)

    made = attention(query, key, value, bias, 0.0, causal)
    made.float().mul(seen).sum().backward()
    exact = [x.detach().float().requires_grad_() for x in (query, key, value)]
    mask = bias.float().expand(2, 1, 9, -1) if biased else torch.zeros(9, key.shape[2])
    if causal:
        mask = mask + torch.full((9, 9), float("-inf")).triu(1)
    expected = F.scaled_dot_product_attention(*exact, mask)
    expected.mul(seen).sum().backward()

    assert "ScaledDotProduct" not in type(made.grad_fn).__name__  # the plain products
    torch.testing.assert_close(made.float(), expected, atol=0.02, rtol=0.02)
    for found, reference in zip((query, key, value), exact, strict=True):
        torch.testing.assert_close(found.grad.float(), reference.grad, atol=0.06, rtol=0.03)


def test_float32_keeps_the_fused_kernel_that_the_golden_numbers_were_met_with():
    query = torch.randn(1, 2, 5, 8, requires_grad=True)
    assert "ScaledDotProduct" in type(attention(query, query, query, None, 0.0, False).grad_fn).__name__


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("queries", "keys", "causal"),
    [(1, 1, True), (77, 9, False), (257, 257, False), (2 * QUERIES_AT_ONCE + 3,) * 2 + (True,)],
)
def test_bfloat16_without_gradient_takes_products_in_blocks_that_equal_the_fused_kernel(
    queries, keys, causal, autocast
):
    generator = torch.Generator().manual_seed(0)
    # As projections leave them: the heads of a token side by side.
    query, key, value = (
        torch.randn(2, count, 3, 16, generator=generator).bfloat16().transpose(1, 2) for count in (queries, keys, keys)
    )
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        FlopCounterMode(display=False) as run,
    ):
        found = attention(query, key, value, None, 0.0, causal)
        expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=causal)
        hidden = torch.zeros(2, 1, 1, keys, dtype=torch.bfloat16).fill_(float("-inf"))
        all_hidden = attention(query, key, value, hidden, 0.0, False)
    counted = {str(name) for name in run.get_flop_counts()["Global"]}
    assert "aten.bmm" in counted
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.float(), atol=0.02, rtol=0.02)
    if causal and queries > QUERIES_AT_ONCE:
        whole = 2 * 2 * 2 * 3 * 16 * queries * keys
        assert sum(v for k, v in run.get_flop_counts()["Global"].items() if str(k) == "aten.bmm") < 0.75 * whole
    assert not all_hidden.isnan().any(), "a row that is all padding stays a row of numbers"
