"""Convert a checkpoint of the original implementation: `python -m kosmos_core.convert checkpoint_final.pt FILE ...`.

The command's code is in `original/`, which the registry's archive leaves out.
"""

import sys

try:
    from .original.converter import convert, main
except ModuleNotFoundError as error:
    if error.name != f"{__package__}.original":
        raise
    sys.exit(
        "Converting needs the folder kosmos_core/original, which the registry's archive leaves out because it reads "
        "pickle files; clone the repository and run the same command there."
    )

__all__ = ["convert", "main"]

if __name__ == "__main__":
    sys.exit(main())
