"""What a run was made with: versions and machine, for whoever compares times or repeats it."""

import os
import platform

import jax

import seht_jax as seht


def describe_environment() -> dict[str, str | int | None]:
    """Describe where this process runs.

    Returns:
        Versions, host, device and number of CPUs.
    """
    return {
        "seht_jax": seht.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "device": jax.devices()[0].device_kind,
        "cpu_count": os.cpu_count(),
    }
