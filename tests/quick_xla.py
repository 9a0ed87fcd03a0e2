"""Compile in a fifth of the time for tests, by leaving out most of XLA's optimisations."""

import os
from collections.abc import Callable

import jax
from jax._src import compiler

# Options that jax.config does not have. An XLA_FLAGS could set them, but not for some tests only.
XLA = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_enable_concurrency_optimized_scheduler": False}
_compile_options: Callable = compiler.get_compile_options


def _quick_options(*arguments, **named):
    chosen = XLA if jax.config.read("jax_disable_most_optimizations") else {}
    return _compile_options(
        *arguments, **named | {"env_options_overrides": (named.get("env_options_overrides") or {}) | chosen}
    )


def switch_on(cache: str) -> None:
    """Compile quickly in this process, and keep what was compiled in the folder `cache`, which processes share.

    `jax_disable_most_optimizations` switches back to what users get.
    """
    compiler.get_compile_options = _quick_options
    options = {
        "jax_compilation_cache_dir": cache,
        "jax_persistent_cache_min_compile_time_secs": 0.05,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_disable_most_optimizations": True,
    }
    for name, value in options.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)
