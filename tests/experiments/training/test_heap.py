"""What the allocator has to spare."""

import subprocess
import sys

import pytest

from experiments.training.heap import keep_free_memory, return_free_memory

# A block as XLA takes one for the intermediate results of a step, twice.
STEPS = """
import ctypes, resource
from experiments.training.heap import keep_free_memory
{keep}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(50 * 2**20)))
    ctypes.memset(block, 1, 50 * 2**20)
    libc.free(block)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults * resource.getpagesize() / 2**20)
"""


def test_free_memory_is_returned(spare_memory):
    return_free_memory()
    assert spare_memory() < 10 * 2**20


@pytest.mark.parametrize(("keep", "is_kept"), [("keep_free_memory()", True), ("", False)])
def test_the_memory_of_a_step_serves_the_next(spare_memory, checkout, keep, is_kept):
    command = [sys.executable, "-c", STEPS.format(keep=keep)]
    ended = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    assert (float(ended.stdout) < 5) is is_kept


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    return_free_memory()
    keep_free_memory()
