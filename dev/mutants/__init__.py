"""Small mistakes, planted one at a time, that the tests have to notice: `python -m dev.mutants`."""
