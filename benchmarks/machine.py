"""The machine that measures: what it is, what it can do at best, and whether it is idle."""

import os
import platform
import time
from pathlib import Path

import torch


def facts() -> dict:
    """Processor, cores, system, and the two rates that bound any training on it."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "matrix_product_gflops": {str(n): matrix_product_gflops(n) for n in sorted({1, min(2, os.cpu_count() or 1)})},
        "memory_copy_gb_per_s": memory_copy_gb_per_s(),
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def matrix_product_gflops(threads: int, size: int = 2048, repeats: int = 5) -> float:
    """Best rate of a float32 matrix product, size x size, in 10^9 operations a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a, b = torch.ones(2, size, size)
    best = min(_seconds(lambda: a @ b) for _ in range(repeats))
    torch.set_num_threads(before)
    return round(2 * size**3 / best / 1e9, 1)


def memory_copy_gb_per_s(megabytes: int = 256, repeats: int = 5) -> float:
    """Best rate of copying memory on one thread, counting what is read and what is written."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    source = torch.ones(megabytes << 18)
    target = torch.empty_like(source)
    best = min(_seconds(lambda: target.copy_(source)) for _ in range(repeats))
    torch.set_num_threads(before)
    return round(2 * source.nbytes / best / 1e9, 1)


def _seconds(work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


class Watch:
    """How many cores *other* programs keep busy, from now until asked (Linux; None elsewhere).

    What this process and the children it has waited for used is taken off.
    """

    def __init__(self) -> None:
        self.seconds, self.ours, self.all = time.perf_counter(), _own_seconds(), _all_seconds()

    def others(self) -> float | None:
        seconds, ours, everybody = time.perf_counter(), _own_seconds(), _all_seconds()
        if self.all is None or everybody is None:
            return None
        others = (everybody - self.all) - (ours - self.ours)
        return max(0.0, round(others / (seconds - self.seconds), 2))


def busy_cores(seconds: float = 0.5) -> float | None:
    """How many cores other programs keep busy just now."""
    watch = Watch()
    time.sleep(seconds)
    return watch.others()


def _own_seconds() -> float:
    return sum(os.times()[:4])


def _all_seconds() -> float | None:
    try:
        fields = Path("/proc/stat").read_text().split()[1:9]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
