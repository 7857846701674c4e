"""Mistakes thought of by people who had not read the tests, reported apart."""

from . import core, core_again, data, nodes, nodes_again, programs, training, weights_and_worlds

MUTANTS = (
    *core.MUTANTS,
    *core_again.MUTANTS,
    *nodes.MUTANTS,
    *nodes_again.MUTANTS,
    *training.MUTANTS,
    *data.MUTANTS,
    *programs.MUTANTS,
    *weights_and_worlds.MUTANTS,
)
