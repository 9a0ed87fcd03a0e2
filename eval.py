"""Evaluate a model: the command `nrsrd eval` in a clone. `python eval.py --help` shows the options."""

from nrsrd_jax.cli import run

if __name__ == "__main__":
    run("eval")
