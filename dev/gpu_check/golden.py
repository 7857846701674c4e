"""Part a: the original's recorded numbers, in every number format of the device."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.core.golden_roles import Role, roles

from .context import DTYPES, Context, Line

# Of the largest value. float32 is the project's contract; the others are three times what a CPU's products gave.
TOLERANCES = {"fp32": 2e-5, "fp16": 5e-3, "bf16": 4e-2}


def check(context: Context) -> Iterator[Line]:
    """The largest error of conditions over the recordings that are at hand."""
    found = roles() if context.official else roles()[1:2]  # one with a picture
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        worst = dict.fromkeys(DTYPES, 0.0)
        for role in found:
            for name, error in _errors(role, context.device, Path(folder)).items():
                worst[name] = max(worst[name], error)
    context.values["golden"] = worst
    for name, error in worst.items():
        limit = TOLERANCES[name]
        yield Line(
            f"condition in {name}, {len(found)} recordings", f"{error:.1e}", f"at most {limit:g}", error <= limit
        )


@torch.inference_mode()
def _errors(role: Role, device: torch.device, folder: Path) -> dict[str, float]:
    inputs = {name: tensor.to(device) for name, tensor in role.tensors("inputs").items()}
    expected = role.tensors("expected_infer")["aligner_encoder_out"].double()
    pixels, errors = inputs.get("gpt_img_src_tokens"), {}
    mask = None if pixels is None else inputs["img_gpt_input_mask"]
    plain = role.model("checkpoint_final", folder)
    for name, dtype in DTYPES.items():
        model = plain.to(device, dtype)
        condition = model.encode_tokens(inputs["src_tokens"], None if pixels is None else pixels.to(dtype), mask)
        errors[name] = float((condition.cpu().double() - expected).abs().max() / expected.abs().max())
        plain = role.model("checkpoint_final", folder) if name != "bf16" else plain
    return errors
