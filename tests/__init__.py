"""Tests, benchmarks and the demo of Kosmos-G; a regular package, because some wheels install a `tests` of their own."""
