"""What is compiled for one run serves for others, in this process and in the next ones."""

import platform
from pathlib import Path

import jax


def keep_compiled_programs(output_dir: Path) -> None:
    """Let runs that differ in seeds and strengths alone share a compilation, which takes minutes.

    Args:
        output_dir: Below it compilations are kept, unless JAX has been told of another place.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        # Of each machine by itself: XLA compiles for the CPU that it runs on, and the key of a
        # program does not tell CPUs apart.
        directory = output_dir.absolute() / "compiled" / (platform.node() or "here")
        jax.config.update("jax_compilation_cache_dir", str(directory))
