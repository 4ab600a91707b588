"""One thread for each process of the tests: on networks this small, threads wait for each other
longer than they compute. Commands that tests start as a user does get the user's own number."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported
