"""The command of a clone that exports to PyTorch; `python convert/to_torch.py --help` shows its options."""

from nrsrd_jax.cli import run

if __name__ == "__main__":
    run("weights.to_torch")
