"""Compile in a fifth of the time by skipping most of XLA's optimisations, for tests."""

import os
from collections.abc import Callable

import jax
from jax._src import compiler

# jax.config does not have these options. XLA_FLAGS could set them, but only for all tests at once.
XLA = {"xla_cpu_enable_concurrency_optimized_scheduler": False}
if jax.__version_info__ < (0, 12):  # jax 0.12 has no such option.
    XLA["xla_cpu_use_fusion_emitters"] = False
_compile_options: Callable = compiler.get_compile_options


def _quick_options(*arguments, **named):
    chosen = XLA if jax.config.read("jax_disable_most_optimizations") else {}
    return _compile_options(
        *arguments, **named | {"env_options_overrides": (named.get("env_options_overrides") or {}) | chosen}
    )


def switch_on(cache: str) -> None:
    """Compile quickly in this process from now on, with a compilation cache in the folder `cache`.

    Processes share the cache. Setting `jax_disable_most_optimizations` to False restores full optimisation.
    """
    compiler.get_compile_options = _quick_options
    # JAX would cache only programs that take a second to compile, and with this compiler few of them take that long.
    options = {
        "jax_compilation_cache_dir": cache,
        "jax_persistent_cache_min_compile_time_secs": 0.05,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_disable_most_optimizations": True,
    }
    # Processes that tests start read the environment; this process has read it already.
    for name, value in options.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)
