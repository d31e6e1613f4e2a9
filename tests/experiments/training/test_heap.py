"""What the allocator has to spare."""

import subprocess
import sys

import pytest

from experiments.training.heap import keep_free_memory, return_free_memory

# Blocks as XLA takes them for the intermediate results of a step, twice.
STEPS = """
import ctypes, resource, threading
from experiments.training.heap import keep_free_memory
{keep}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def steps():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t({mebibytes} * 2**20))) for _ in "ab"]
        for block in blocks:
            ctypes.memset(block, 1, {mebibytes} * 2**20)
        for block in blocks:
            libc.free(block)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(faults * resource.getpagesize() / 2**20)
{start}
"""
THREAD = "threading.Thread(target=steps).start()"


def test_free_memory_is_returned(spare_memory):
    return_free_memory()
    assert spare_memory() < 10 * 2**20


@pytest.mark.parametrize("start", ["steps()", THREAD])
@pytest.mark.parametrize("mebibytes", [25, 50])
@pytest.mark.parametrize(("keep", "is_kept"), [("keep_free_memory()", True), ("", False)])
def test_the_memory_of_a_step_serves_the_next(
    spare_memory, checkout, keep, is_kept, mebibytes, start
):
    program = STEPS.format(keep=keep, mebibytes=mebibytes, start=start)
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    assert (float(ended.stdout) < 5) is is_kept


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    return_free_memory()
    keep_free_memory()
