"""The same stages one after the other in this process, without Ray: for tests of what a stage does, not of where."""

from training.base.content_digest import RememberedDigests
from training.construct import chunk_stages
from training.construct.captioners import build_captioner
from training.construct.construct_config import ConstructConfig
from training.construct.entity_extractors import build_extractor
from training.construct.hash_files import HashFiles
from training.construct.input_shards import find_input
from training.construct.open_images_table import build_table
from training.construct.output_shards import ConstructionOutput, remembered, total
from training.construct.segmenters import build_segmenter
from training.construct.stage_models import contents_of


def construct(config: ConstructConfig) -> dict:
    """Write the shards that are not finished and return the summed statistics."""
    captioner, extractor = build_captioner(config.caption), build_extractor(config.entities)
    segmenter = build_segmenter(config.segment)
    digests = RememberedDigests(remembered(config))
    inputs, failed, contents = find_input(config, digests), {}, contents_of(config, digests)
    output, lock = ConstructionOutput.open(config, contents)
    digests.save(remembered(config))
    if config.open_images:
        build_table(config)
    output.set_aside(inputs.shards)
    hashes = HashFiles(config, inputs.shards, output.work, contents)
    for number in hashes.missing():
        hashes.write(number, *chunk_stages.hash_shard(inputs.shards[number], config))
    repeated = hashes.duplicates()
    shards = [shard.without(repeated.get(number, frozenset())) for number, shard in enumerate(inputs.shards)]
    for number, shard in enumerate(shards):
        if output.finished(shard):
            continue
        parts = []
        for chunk in chunk_stages.read_chunks(shard, number, config, repeated.get(number, frozenset())):
            chunk_stages.prepare(chunk, config)
            chunk_stages.caption(chunk, captioner, config.filters)
            chunk_stages.name_entities(chunk, extractor, config.filters)
            chunk_stages.segment(chunk, segmenter)
            parts.append(output.write_part(chunk, chunk_stages.finish(chunk, config)))
        if parts[-1].problem:
            failed[shard.name] = parts[-1].problem
        else:
            output.join(shard, parts)
    output.close()
    lock.release()
    return total(output, shards, failed, inputs.left_out)
