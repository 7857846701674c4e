"""Training data: WebDataset tars and files of lines, read in the same order on any number of processes.

The way of a sample:

    index         find a data set's files, index them        order        position -> sample, shuffled
    reader        samples by number, as named bytes          lanes        reading positions, and what they pass over
    cookers       named bytes -> samples, by layout          mixture      exact shares of the sources in every batch
    sample_types  what cookers make                          data_stream  micro-batches; it draws an example of it all
    sequences     samples -> tokens (stages 2 and 3)         tasks        what each stage makes of samples
    packing       documents -> tokens (stage 1)              batches      the tensors that a stage gets

`streams` opens a stage's data; `batch_stream` is all that the engine knows of
it; `skips` counts what is left out. `cached_rows` reads what `python -m training.data.cache`
has put beside the shards. `python -m training.data.lint PATH` checks a data set, `python -m
training.data.convert` makes one from other layouts, `python -m training.data.synthetic DIR` makes small ones to try.
"""
