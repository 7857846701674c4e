"""Mistakes thought of by people who had not read the tests, reported apart."""

from . import commands, core, core_again, data, nodes, nodes_again, programs, runs, training, weights_and_worlds

MUTANTS = (
    *core.MUTANTS,
    *core_again.MUTANTS,
    *nodes.MUTANTS,
    *nodes_again.MUTANTS,
    *training.MUTANTS,
    *data.MUTANTS,
    *runs.MUTANTS,
    *programs.MUTANTS,
    *commands.MUTANTS,
    *weights_and_worlds.MUTANTS,
)
