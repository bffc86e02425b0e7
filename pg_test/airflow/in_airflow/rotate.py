"""Runs `airflow rotate-fernet-key` and prints the seconds that the rotation alone took.

The command runs on empty tables first: once to warm up, and then five times for the time that all
but the rotation takes, as the median, since in some runs Python collects its garbage. Once stdin
says that the tables are filled, it runs for the rotation.

With the argument "unmasked" it runs without Airflow's log masking. Airflow adds each password that
it loads to one regular expression, and compiles that anew each time, so that the stock command
takes time in the square of the number of connections. No setting turns that off.
"""

import statistics
import sys
import time

import airflow.models.connection
from airflow.__main__ import main

if sys.argv[1] == "unmasked":
    airflow.models.connection.mask_secret = lambda *secret: None
sys.argv = ["airflow", "rotate-fernet-key"]


def clock():
    start = time.perf_counter()
    main()
    return time.perf_counter() - start


clock()
empty = statistics.median(clock() for _ in range(5))
print("ready", flush=True)
sys.stdin.readline()
print("\nseconds", clock() - empty, flush=True)
