"""``python -m dormouse_testing.sessions_sim SEED [KEPT]``: plays one seed and prints its trace."""

import sys

from dormouse_core import steps

from dormouse_testing.sessions_sim import world

steps.KEPT_KEYS = int(sys.argv[2]) if len(sys.argv) > 2 else 2
world.run(int(sys.argv[1]), trace=print)
