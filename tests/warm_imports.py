"""Import what the commands import. warm.py forks a process that has imported this module."""

import os
import warnings

import matplotlib.figure  # noqa: F401
import quick_xla

import nrsrd_jax.analysis.study
import nrsrd_jax.retrieval.result
import nrsrd_jax.training
import nrsrd_jax.weights.from_torch  # noqa: F401

warnings.filterwarnings("ignore", message=r"os\.fork\(\)")
if cache := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    quick_xla.switch_on(cache)
