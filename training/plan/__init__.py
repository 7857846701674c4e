"""Memory, traffic and time of a training before it is run: `python -m training.plan --config FILE --gpus N`."""
