"""A sample as the members of a tar: target, square crops, their masks, and what is known of them.

    key.jpg          the target: the upright centre square of the picture
    key.<k>.jpg      the square crop around entity k, with its background
    key.<k>.mask.png 1 bit, of the crop's size: white (1) where the entity is
    key.json         {"caption", "entities": [{"text", "span", "box", "crop", "score"}], "size", "source", "license"}

White backgrounds, dropping of words and the 224-pixel view are made from these when the data are read, so that one set
of shards serves all augmentations. `span` is [first, past the last] character of the caption; `box` (left, top, right,
bottom) and `crop` (left, top, side) are pixels of the centre square at its original `size`. The same sample is always
the same bytes.
"""

from __future__ import annotations

import json
import struct
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import simplejpeg

from kosmos_core.mask_boxes import Box

from .caption_spans import CaptionSpan
from .chunks import SourceImage
from .construct_config import CropConfig
from .masks import EntityCrop, window_of
from .square_images import resize


@dataclass(frozen=True)
class FoundEntity:
    """An entity that was found: its words, its place as in `EntityCrop`, its mask's file, how sure the segmenter is."""

    span: CaptionSpan
    box: Box
    square: tuple[int, int, int]
    mask: bytes
    score: float


@dataclass(frozen=True)
class EncodedSample:
    """The encoded members of one sample, by ending, in the order they are written."""

    key: str
    members: dict[str, bytes]


def encode(image: SourceImage, pixels: np.ndarray, found: list[FoundEntity], crops: CropConfig) -> EncodedSample:
    """Encode a picture (s, s, 3) and its entities."""
    members = {"jpg": _jpeg(_sized(pixels, crops), crops)}
    entities = []
    for number, entity in enumerate(found):
        members[f"{number}.jpg"] = _jpeg(_sized(pixels[window_of(entity.square)], crops), crops)
        members[f"{number}.mask.png"] = entity.mask
        entities.append(
            {
                "text": entity.span.of(image.caption),
                "span": [entity.span.start, entity.span.end],
                "box": list(entity.box),
                "crop": list(entity.square),
                "score": entity.score,
            }
        )
    described = {
        "caption": image.caption,
        "entities": entities,
        "size": len(pixels),
        "source": image.source,
        "license": image.licence,
    }
    members["json"] = json.dumps(described, ensure_ascii=False).encode()
    return EncodedSample(image.key, members)


def _side(side: int, crops: CropConfig) -> int:
    """The side at which a square of this side is written."""
    return crops.side if crops.enlarge or side > crops.side else side


def _sized(pixels: np.ndarray, crops: CropConfig) -> np.ndarray:
    return resize(pixels, _side(len(pixels), crops))


def _jpeg(pixels: np.ndarray, crops: CropConfig) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), crops.jpeg_quality, colorsubsampling="420")


def encode_mask(crop: EntityCrop, crops: CropConfig) -> bytes:
    """The crop's mask as a PNG of 1 bit per pixel at the side at which the crop is written, by nearest neighbours.

    The format is simple for such a picture, and writing it here takes a tenth of a general encoder's time.
    """
    mask = crop.mask[window_of(crop.square)]
    side = _side(len(mask), crops)
    if len(mask) != side:
        nearest = ((np.arange(side) + 0.5) * len(mask) / side).astype(int)
        mask = mask[nearest][:, nearest]
    rows = np.zeros((side, 1 + (side + 7) // 8), dtype=np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = np.packbits(mask, axis=1)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    # Masks are runs of equal bytes: looking for nothing else is faster and finds no less.
    runs = zlib.compressobj(1, strategy=zlib.Z_RLE)
    blocks = ((b"IHDR", header), (b"IDAT", runs.compress(rows.tobytes()) + runs.flush()), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in blocks
    )


def tar_members(samples: Iterable[EncodedSample]) -> tuple[bytes, list[int]]:
    """The samples as a stretch of a tar archive without its end, and where each sample begins in it."""
    pieces, offsets, position = [], [], 0
    for sample in samples:
        offsets.append(position)
        for ending, content in sample.members.items():
            added = tar_header(f"{sample.key}.{ending}", len(content)), content, _ZEROS[: -len(content) % len(_ZEROS)]
            pieces += added
            position += sum(map(len, added))
    return b"".join(pieces), offsets


# A TarInfo knows no clock and no user by itself: time 0, owner 0, mode 0644.
_BLANK = tarfile.TarInfo().tobuf(tarfile.GNU_FORMAT)
_ZEROS = bytes(tarfile.BLOCKSIZE)


def tar_header(name: str, size: int) -> bytes:
    """A member's header as tarfile writes it, in a tenth of its time: all but name, size and checksum is the same."""
    encoded, digits = name.encode(), b"%011o" % size
    if len(encoded) > tarfile.LENGTH_NAME or len(digits) > 11:
        member = tarfile.TarInfo(name)
        member.size = size
        return member.tobuf(tarfile.GNU_FORMAT)
    # The blank one's checksum counts a size of eleven zeros.
    checksum = int(_BLANK[148:154], 8) + sum(encoded) + sum(digits) - sum(b"0" * 11)
    name_field = encoded.ljust(tarfile.LENGTH_NAME, b"\0")
    return b"".join((name_field, _BLANK[100:124], digits, _BLANK[135:148], b"%06o\0" % checksum, _BLANK[155:]))
