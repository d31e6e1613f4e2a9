"""A disk on which there is no room for more, and a heap that has much to spare."""

import contextlib
import ctypes
import resource

import psutil
import pytest


@pytest.fixture
def small_files():
    """A context in which no file can grow beyond some bytes, as if the disk were full.

    Python ignores the signal that comes with the limit, so what is left is the error.
    """

    @contextlib.contextmanager
    def limit(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture
def spare_memory():
    """A function that tells how much of 64 MiB is still there, which are free but not at the end.

    Only what is free at the end of its heap does glibc return by itself.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("this is not glibc")
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]

    def resident():
        return psutil.Process().memory_info().rss

    libc.malloc_trim(ctypes.c_size_t(0))
    before = resident()
    *chunks, last = [libc.malloc(ctypes.c_size_t(1000)) for _ in range(2**16)]
    for chunk in chunks:
        libc.free(chunk)
    assert resident() - before > 50 * 2**20
    yield lambda: resident() - before
    libc.free(last)
