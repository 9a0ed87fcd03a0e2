"""Train a model: the command `nrsrd train` in a clone. `python train.py --help` shows the options."""

from nrsrd_jax.cli import run

if __name__ == "__main__":
    run("train")
