"""The clocks that measurements go by; no torch."""

import time
from collections.abc import Callable

# "processor" leaves out what other processes take, on a machine that is not quiet.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
