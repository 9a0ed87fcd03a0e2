"""The command of a clone that imports PyTorch weights; `python convert/from_torch.py --help` shows its options."""

from nrsrd_jax.cli import run

if __name__ == "__main__":
    run("convert")
