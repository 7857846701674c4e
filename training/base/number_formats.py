"""The names of training's number formats; `precision.py` computes in them."""

from typing import Literal

Precision = Literal["bf16", "fp16", "fp32"]
Choice = Literal["auto", "bf16", "fp16", "fp32"]
