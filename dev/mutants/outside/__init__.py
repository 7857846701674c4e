"""Mistakes thought of by people who had not read the tests, reported apart."""

from . import core, core_again, nodes, nodes_again, programs, training, weights_and_worlds

MUTANTS = (
    *core.MUTANTS,
    *nodes.MUTANTS,
    *training.MUTANTS,
    *programs.MUTANTS,
    *core_again.MUTANTS,
    *nodes_again.MUTANTS,
    *weights_and_worlds.MUTANTS,
)
