"""What a run was made with: versions and machine, for whoever compares times or repeats it."""

import os
import platform
import subprocess
from pathlib import Path

import jax

import seht_jax as seht


def describe_environment() -> dict[str, str | int | None]:
    """Describe where this process runs.

    Returns:
        Versions, host, device and number of CPUs. The commit is followed by ``-dirty`` where files
        differ from it, and is `None` outside of a checkout.
    """
    return {
        "seht_jax": seht.__version__,
        "commit": git_commit(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "device": jax.devices()[0].device_kind,
        "cpu_count": os.cpu_count(),
    }


def git_commit() -> str | None:
    """Ask git for the commit of this checkout.

    Returns:
        Its hash, followed by ``-dirty`` where files differ from it; `None` without git, or outside
        of a checkout.
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(  # noqa: S603  # a fixed command
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
