"""Memory that the allocator keeps for later, of which a long run should not have ever more."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MOST = 2**31 - 1  # what fits into an int


def keep_free_memory() -> None:
    """Have the C library's allocator keep large blocks for the next step; else do nothing.

    XLA takes the memory of intermediate results anew in each step on the CPU. glibc hands blocks of
    more than 32 MiB back to the system at once, which clears each page when it is touched again: a
    step with a penalty of the Gauss-Newton matrix took a third longer for it. And it does so with
    all that is free at the end of an arena of a thread other than the first, whatever it is told:
    only with one arena for all threads is the memory kept. Arenas that are there stay, so this has
    to be said before the first computation.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _MOST)
        mallopt(_M_TRIM_THRESHOLD, _MOST)


def return_free_memory() -> None:
    """Return free memory of the C library's allocator to the system; where it can not, do nothing.

    Every thread that takes memory leaves some in one of glibc's arenas, and each checkpoint is
    written by new threads. The compiler leaves hundreds of MiB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
