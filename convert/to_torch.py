"""The command of a clone that exports to PyTorch; `python convert/to_torch.py --help` shows its options."""

from nrsrd_jax.weights.to_torch import command

if __name__ == "__main__":
    command()
