"""The same stages one after the other in this process, without Ray: for tests of what a stage does, not of where."""

import numpy as np

from training.construct import chunk_stages
from training.construct.captioners import build_captioner
from training.construct.construct_config import ConstructConfig
from training.construct.duplicates import near_duplicates
from training.construct.entity_extractors import build_extractor
from training.construct.input_shards import find_shards
from training.construct.open_images_table import build_table
from training.construct.output_shards import ConstructionOutput, total
from training.construct.segmenters import build_segmenter


def construct(config: ConstructConfig) -> dict:
    """Write the shards that are not finished and return the summed statistics."""
    captioner, extractor = build_captioner(config.caption), build_extractor(config.entities)
    segmenter = build_segmenter(config.segment)
    shards, failed = find_shards(config), {}
    output, lock = ConstructionOutput.open(config)
    if config.open_images:
        build_table(config)
    repeated = duplicates(shards, config) if config.filters.duplicates == "all" else {}
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
    return total(output, shards, failed)


def duplicates(shards: list, config: ConstructConfig) -> dict[int, frozenset[int]]:
    """Positions of near-duplicates by shard number."""
    found = [chunk_stages.hash_shard(shard, config) for shard in shards]
    repeated = iter(near_duplicates(np.concatenate([h for _, h in found]), config.filters.duplicate_distance))
    return {
        number: frozenset(position for position in positions.tolist() if next(repeated))
        for number, (positions, _) in enumerate(found)
    }
