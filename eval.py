"""The command of a clone that evaluates; `python eval.py --help` shows its options."""

from nrsrd_jax.eval import command

if __name__ == "__main__":
    command()
