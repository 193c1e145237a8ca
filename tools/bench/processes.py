"""What the benchmarks share: whole processes, and the machine they ran on."""
import os
import statistics
import subprocess
import time


def machine():
    cpu = [line.split(": ")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")][0]
    return f"{cpu}, {os.cpu_count()} cores"


def run_process(runs, command):
    """Median wall seconds and largest peak memory, MB."""
    seconds, peaks = [], []
    for _ in range(runs):
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - start)
        assert status == 0, command
        peaks.append(usage.ru_maxrss / 1024)
    return statistics.median(seconds), max(peaks)
