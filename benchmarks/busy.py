"""`make bench-busy`: evaluation and training beside other work, waiting threads soon asleep or spinning.

OpenMP's threads spin for a while before they sleep; beside other work they take the time that the thread they wait
for would need. `sd_aanet` makes them sleep soon (see its `__init__.py`), unless the user says how they wait. Each
measurement is a process of its own, alone and then beside one process a core, in turn; the fastest of each counts. With
so much other work as there are cores, half of the idle speed is a fair share: met is at most twice as slow as that.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sd_aanet.machine import cores

WAYS: dict[str, dict[str, str]] = {"soon asleep": {}, "spinning": {"GOMP_SPINCOUNT": "300000"}}
"""As `sd_aanet` has it, and as libgomp has it by itself."""
MOST = 4.0
"""Times the idle time: twice as slow as half of the idle speed."""
MEASURED = """
import sys, time
import sd_aanet  # before torch is loaded, which reads what it sets
from benchmarks.rows import evaluate, listed, our_step
from benchmarks.workload import Workload
from sd_aanet.comparing import Comparer
from sd_aanet.episode import Episode
what, size, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
work = Workload(size, size)
method, data = work.method(), work.episodes(1, 8)
data.setup("test")
if what == "evaluation":
    episodes = listed(data)
    def step(): evaluate(method, data, episodes)
else:
    batch = Episode.cat([data.test_data[place] for place in range(4)])
    step = our_step(Comparer(method.train()), batch)
step()
times, end = [], time.perf_counter() + seconds
while time.perf_counter() < end:
    start = time.perf_counter()
    step()
    times.append(time.perf_counter() - start)
print(sum(times) / len(times))
"""


@contextmanager
def other_work(processes: int, niceness: int) -> Iterator[None]:
    """Processes that compute all the time."""
    command = ["nice", "-n", str(niceness), sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measured(what: str, way: str, size: int, seconds: float) -> float:
    """Seconds a step, in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, what, str(size), str(seconds)],
        env=environment | WAYS[way], capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser("python -m benchmarks.busy", description=__doc__)
    parser.add_argument("--size", type=int, default=225, help="side of the pictures")
    parser.add_argument("--seconds", type=float, default=10, help="that each measurement takes")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, of which the fastest counts")
    parser.add_argument("--nice", type=int, default=0, help="of the other work; 19 is the lowest priority")
    given = parser.parse_args()
    print(f"{cores()} cores, load {os.getloadavg()[0]:.1f} before it started")
    print(f"\n{'':31}alone    beside   ratio to the fastest alone")
    for what in ("evaluation", "training"):
        alone: dict[str, list[float]] = {way: [] for way in WAYS}
        beside: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(given.rounds):
            for way in WAYS:
                alone[way].append(measured(what, way, given.size, given.seconds))
                with other_work(cores(), given.nice):
                    beside[way].append(measured(what, way, given.size, given.seconds))
        idle = min(min(times) for times in alone.values())  # of both ways: alone on a shared machine is not always so
        for way in WAYS:
            first, second = min(alone[way]), min(beside[way])
            met = "met" if second <= MOST * idle else "missed"
            print(f"{what:<14}{way:<13}{first:7.3f} s{second:8.3f} s{second / idle:8.1f}   {met}", flush=True)


if __name__ == "__main__":
    main()
