"""`training.run`, killed at a chosen step in its first attempts: KILLS is "rank:step,rank:step", one per attempt."""

import os
import sys

from tests.training.launch import KillAtStep
from training.run import main

if __name__ == "__main__":
    kills = [tuple(map(int, kill.split(":"))) for kill in os.environ["KILLS"].split(",")]
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if attempt < len(kills) and kills[attempt][0] == int(os.environ["RANK"]):
        KillAtStep(kills[attempt][1])()
    sys.exit(main())
