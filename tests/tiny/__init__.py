"""Models small enough to be made on the fly, for all tests and benchmarks."""
