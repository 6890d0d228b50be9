"""Run a command and print its processor seconds, seconds and peak memory (MB) as a line of JSON.

    python -S measure.py COMMAND...

This process must be small: the peak that the system reports for a child is at least the size of its parent.
"""

import json
import os
import sys
import time

started = time.monotonic()
to_stderr = (os.POSIX_SPAWN_DUP2, 2, 1)  # keep the output of the command apart from the cost
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[to_stderr])
_, status, usage = os.wait4(child, 0)
seconds = time.monotonic() - started
peak = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)  # bytes on macOS, KiB elsewhere
cost = {"cpu": usage.ru_utime + usage.ru_stime, "wall": seconds, "peak": peak}
print(json.dumps(cost))
sys.exit(os.waitstatus_to_exitcode(status))
