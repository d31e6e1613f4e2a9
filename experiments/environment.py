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


def git_commit(*places: str) -> str | None:
    """Ask git for the commit of this checkout.

    Args:
        *places: Files and directories, relative to the checkout, that count; by default all.

    Returns:
        Its hash, followed by ``-dirty`` where files differ from it; `None` without git, or outside
        of a checkout.
    """
    paths = [f":/{place}" for place in places or ("",)]
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", *paths)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str:
    """Ask git.

    Raises:
        OSError: If there is no git.
        CalledProcessError: If this is no checkout.
    """
    command = ["git", *arguments]
    result = subprocess.run(  # noqa: S603  # the callers' own words
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()
