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


def busy_cores(seconds: float = 0.5) -> float | None:
    """How many cores other programs keep busy just now (Linux; None elsewhere)."""
    try:
        before = _ticks()
        time.sleep(seconds)
        after = _ticks()
    except (OSError, ValueError):
        return None
    return round((after - before) / os.sysconf("SC_CLK_TCK") / seconds, 2)


def _ticks() -> int:
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return user + nice + system + irq + softirq + steal
