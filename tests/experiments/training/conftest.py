"""A disk on which there is no room for more."""

import contextlib
import resource

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
