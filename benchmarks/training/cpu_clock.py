"""The llm-train command with its steps timed in CPU seconds, not in seconds of the wall.

For machines that do other work meanwhile. Run it with one thread: idle ones spin.
"""

import time

time.perf_counter = time.process_time

from llm_train.cli import main  # noqa: E402  # behind the clock that it is to read

main()
