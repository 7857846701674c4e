"""Converters from other data sets' layouts to this package's.

    conversion      shards, resume, counts: what all converters share
    pictures        check encoded pictures; find pictures by name or URL in folders and tars
    records         rows of .jsonl, .json and .parquet files by number
    edits           instructpix2pix
    interleaved     mmc4, obelics
    subjects        omnigen2, uno
    open_images     openimages
    original_tsv    original-tsv

Run `python -m training.data.convert --help`.
"""
