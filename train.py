"""The command of a clone that trains; `python train.py --help` shows its options."""

from nrsrd_jax.train import command

if __name__ == "__main__":
    command()
