"""Memory that the allocator keeps for later, of which a long run should not have ever more."""

import ctypes


def return_free_memory() -> None:
    """Return free memory of the C library's allocator to the system; where it can not, do nothing.

    Every thread that takes memory leaves some in one of glibc's arenas, and each checkpoint is
    written by new threads. The compiler leaves hundreds of MiB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
