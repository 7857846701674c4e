"""Mistakes thought of by people who had not read the tests, reported apart."""

from . import core, data, nodes, programs, training

MUTANTS = (*core.MUTANTS, *nodes.MUTANTS, *training.MUTANTS, *data.MUTANTS, *programs.MUTANTS)
