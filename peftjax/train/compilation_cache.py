"""Programs that were compiled once are kept for the next run."""

import os
from pathlib import Path

import jax


def keep_compiled_programs() -> None:
    """Turns on JAX's persistent cache, in `~/.cache/peftjax/compiled`.

    `JAX_COMPILATION_CACHE_DIR` names another folder, and an empty one turns it off. XLA is asked
    for the same program on the same versions and devices alone, so that a run from the cache has
    the same bits.
    """
    if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
        return
    folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'peftjax/compiled'
    jax.config.update('jax_compilation_cache_dir', str(folder))
