"""Pretraining without labels: DINO (Caron et al. 2021), as TransReID-SSL pretrains its backbones on person crops."""
