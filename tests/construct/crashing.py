"""Model stages whose process dies in the middle, once each; `model` names the folder of markers. And one that stops."""

import os
import signal
import threading
from pathlib import Path

from training.construct.chunks import SourceImage
from training.construct.construct_config import CaptionConfig, EntityConfig, SegmentConfig

from .scenes import Oracle, Scripted, scene


def once(folder: str, marker: str) -> bool:
    """True for the first process that asks for this marker."""
    try:
        os.close(os.open(f"{folder}/{marker}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class DyingCaptioner:
    """Dies on a chunk in the middle."""

    def __init__(self, config: CaptionConfig):
        self.folder = config.model

    def __call__(self, images: list[SourceImage]) -> list[str]:
        if any("000033" in image.key for image in images) and once(self.folder, "caption"):
            os.kill(os.getpid(), signal.SIGKILL)
        return [image.given_caption for image in images]


class DyingExtractor(Scripted):
    """Dies while it loads its model, and on a chunk in the middle."""

    def __init__(self, config: EntityConfig):
        if once(config.model, "loading"):
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(config)

    def __call__(self, captions: list[str]) -> list[list[str] | None]:
        if scene(66).caption in captions and once(self.config.model, "entities"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(captions)


class DyingSegmenter(Oracle):
    """Dies on its third chunk, when others wait behind it."""

    def __init__(self, config: SegmentConfig):
        self.folder, self.calls = config.model, 0

    def __call__(self, pairs):
        self.calls += 1
        if self.calls == 3 and once(self.folder, "segment"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(pairs)


class Gate(Oracle):
    """Stops before a chunk, for good, and says so: `model` names a folder whose file `gate` holds the chunk's number
    among those of this process."""

    def __init__(self, config: SegmentConfig):
        self.folder, self.calls = Path(config.model), 0
        self.gate = int((self.folder / "gate").read_text())

    def __call__(self, pairs):
        self.calls += 1
        if self.calls == self.gate:
            (self.folder / "reached").touch()
            threading.Event().wait()
        return super().__call__(pairs)
