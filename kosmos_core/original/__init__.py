"""Reading the original implementation's checkpoints; `python -m kosmos_core.convert` is the command."""
