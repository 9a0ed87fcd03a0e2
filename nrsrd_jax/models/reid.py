"""The Re-ID model: a backbone, and for each of its parts a BNNeck and one classifier per domain."""

import flax.linen as nn
import jax

from .normalization import BatchNorm


class ReID(nn.Module):
    """Embed images [B, h, w, 3], normalised, and classify their identities.

    Returns a dict:
        embedding: [B, D] float32, what retrieval ranks by.
        parts: a list with one dict per part of the model: `features` [B, D] float32 before the neck, for the triplet
            loss; `neck` [B, D] after the BNNeck; `logits`, {domain: [B, C]} for each domain with a classifier; and
            `weight`, a float that scales the part's losses.
        diagnostics: {name: scalar} to log; over the images of the first domain.
        maps: with `maps=True`, the backbone's attention maps (see its module).

    Attributes:
        base: the backbone, a module as `spec` describes it.
        classes, aux_classes: identities of the domains "real" and "aux"; 0 for no classifier.
    """

    base: nn.Module
    classes: int = 0
    aux_classes: int = 0

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        cameras: jax.Array | None = None,
        train: bool = False,
        maps: bool = False,
        domains: int = 1,
    ) -> dict:
        """Run the model.

        Args:
            images: [B, h, w, 3], normalised.
            cameras: [B] int32, the rank of each image's camera among those of training, −1 if it is unknown; None if
                all are unknown.
            train: whether BatchNorm uses and updates the statistics of the batch, and drop path is on.
            maps: whether to return the attention maps.
            domains: image i belongs to domain i % domains; BatchNorm treats each in its turn.
        """
        out = self.base(images, cameras=cameras, train=train, maps=maps, domains=domains)
        weights = out.pop("weights", [1.0] * len(out["parts"]))
        heads = {"real": ("classifier", self.classes), "aux": ("classifier_aux", self.aux_classes)}
        parts = []
        for index, (features, weight) in enumerate(zip(out["parts"], weights, strict=True)):
            suffix = f"_{index}" if index else ""
            neck = BatchNorm(frozen_bias=True, name=f"bottleneck{suffix}")(features, train, domains)
            logits = {
                domain: nn.Dense(
                    classes, use_bias=False, kernel_init=nn.initializers.normal(0.001), name=name + suffix
                )(neck)
                for domain, (name, classes) in heads.items()
                if classes
            }
            parts.append({"features": features, "neck": neck, "logits": logits, "weight": weight})
        return out | {"parts": parts}
