"""Mistakes thought of by people who had not read the tests, reported apart."""

from . import commands, core, data, nodes, programs, runs, training

MUTANTS = (
    *core.MUTANTS,
    *nodes.MUTANTS,
    *training.MUTANTS,
    *data.MUTANTS,
    *runs.MUTANTS,
    *programs.MUTANTS,
    *commands.MUTANTS,
)
