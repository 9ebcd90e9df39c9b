"""What holds for all tests."""

from __future__ import annotations

import signal

from hypothesis import settings

# A deadline per example measures the machine: CI's two cores are shared. pytest-timeout catches what hangs.
settings.register_profile("towerws", deadline=None)
settings.load_profile("towerws")

# A suite that a script started in the background has SIGINT ignored, and every process it starts inherits that: none would
# end on Ctrl-C. A handler of ours is back to the default in what is started.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
