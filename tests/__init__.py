"""The tests; each process computes with one thread, which is quickest for tiny networks and for `pytest -n`."""

import os

# before NumPy and torch are imported, and for the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")
