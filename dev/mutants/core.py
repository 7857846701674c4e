"""Mistakes in the encoder and what stands around it."""

from __future__ import annotations

from .mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "a header of one byte too many is read",
        "kosmos_core/safetensors_file.py",
        "if LARGEST_HEADER < length <= size:",
        "if LARGEST_HEADER < length < 0:",
        tests=("tests/core/test_weights.py",),
    ),
    Mutant(
        "a storage may be larger than its file",
        "kosmos_core/original/pickle_reader.py",
        "<= self.stored_bytes:",
        "<= 2**60:",
    ),
)
