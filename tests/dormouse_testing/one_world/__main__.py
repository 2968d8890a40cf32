"""``python -m dormouse_testing.one_world SEED [KEPT]``: plays one seed and prints its trace."""

import logging
import sys

from dormouse_core import steps

from dormouse_testing.one_world import world

logging.disable(logging.CRITICAL)
steps.KEPT_KEYS = int(sys.argv[2]) if len(sys.argv) > 2 else 2
world.run(int(sys.argv[1]), trace=print)
