"""Errors that end a run with one sentence instead of a traceback."""


class ConfigError(ValueError):
    """The configuration asks for what cannot be; says which key to change, and how."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; says what remains and what to do."""


class TrainingStopped(RuntimeError):
    """Training cannot go on; says why and where to look."""
