"""`python -m training.plan`."""

import sys

from ..base.signals import stoppable
from .command import main

if __name__ == "__main__":
    sys.exit(stoppable(main, "a plan changes nothing."))
