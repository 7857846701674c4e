"""Mistakes thought of by people who had not read the tests, reported apart."""

from . import core, nodes, programs, training

MUTANTS = (*core.MUTANTS, *nodes.MUTANTS, *training.MUTANTS, *programs.MUTANTS)
