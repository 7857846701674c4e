"""Converters from other data sets' layouts to this package's.

    conversion        numbered items -> shards: resume, counts, workers; what all converters share
    parts             the parts of a sample in each layout that is written
    row_files         rows of .jsonl, .json and .parquet files by number
    image_store       pictures by name or URL, from folders and tars

    instructpix2pix   instructpix2pix
    open_images       openimages
    web_documents     mmc4, obelics
    omnigen2_uno      omnigen2, uno
    original_tsv      original-tsv

Run `python -m training.data.convert --help`.
"""
