"""Construct compositional training samples from plain pictures.

python -m training.construct --input PICTURES --output DIR --config training/configs/construct/paper.yaml
python -m training.construct --input PICTURES --output DIR --config ... --ray-address auto
python -m training.construct --input PICTURES --output DIR --config ... --preview 12
"""

from __future__ import annotations

import sys

from rich.console import Console

from ..base.display import markup, printable
from ..base.errors import ConfigError
from ..base.signals import stoppable
from .construct_config import parse


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 all is written, 1 shards could not be read or the run stopped, 2 wrong settings."""
    console = Console()
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments, __doc__)
        from .driver import ConstructionStopped, construct  # Ray: only once the settings are known to be right

        try:
            stats = construct(config, console)
        except ConstructionStopped as reason:
            print(printable(reason), file=sys.stderr)
            return 1
        if config.preview:
            from .preview_sheet import write_preview

            console.print(f"preview: {markup(write_preview(config))}")
    except ConfigError as error:
        print(printable(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. Start the same command again to go on.", file=sys.stderr)
        return 130
    return 1 if stats["shards_failed"] else 0


if __name__ == "__main__":
    sys.exit(stoppable(main, "finished shards are kept; the same command goes on."))
