"""Keeps compiled programs for the next run."""

import os
from pathlib import Path

import jax


def keep_compiled_programs() -> None:
    """Turns on JAX's persistent cache, in `~/.cache/peftjax/compiled`.

    `JAX_COMPILATION_CACHE_DIR` names another folder; an empty value turns the cache off. The cache
    gives a program only to the same source, versions and devices, so that a run from the cache has
    the same bits.
    """
    if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
        return
    folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'peftjax/compiled'
    jax.config.update('jax_compilation_cache_dir', str(folder))
