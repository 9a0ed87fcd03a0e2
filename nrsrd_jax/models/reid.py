"""The Re-ID model: a backbone, and for each of its parts a BNNeck and one classifier per domain."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from .normalization import BatchNorm


@dataclasses.dataclass(frozen=True)
class Head:
    """What stands between a part's features and its classifiers; the default is that of TransReID and BoT, a BNNeck.

    Attributes:
        neck: whether a BatchNorm follows the features.
        frozen_bias: whether the neck's bias stays 0.
        classifier_bias: whether the classifiers have a bias.
        dropout: the rate of a dropout before the classifiers, in 0..1.
        tested: what retrieval ranks by: "embedding" of the backbone, or the "neck" of each part, one after the other.
        centers: whether the model has a centre for each identity of the domain "real", for the centre loss.
    """

    neck: bool = True
    frozen_bias: bool = True
    classifier_bias: bool = False
    dropout: float = 0.0
    tested: str = "embedding"
    centers: bool = False


class ReID(nn.Module):
    """Embed images [B, h, w, 3], normalised, and classify their identities.

    Returns a dict:
        embedding: [B, D] float32, what retrieval ranks by.
        parts: a list with one dict per part of the model: `features` [B, D] float32 before the neck, for the triplet
            loss; `neck` [B, D] after the BNNeck; `logits`, {domain: [B, C]} for each domain with a classifier;
            `weight`, a float that scales the part's losses. The first part may have `centers` [C, D], for the centre
            loss, and in training `losses`, {name: scalar}, the backbone's own.
        diagnostics: {name: scalar} to log; over the images of the first domain.
        maps: with `maps=True`, the backbone's attention maps (see its module).

    Attributes:
        base: the backbone, a module as `spec` describes it.
        classes, aux_classes: identities of the domains "real" and "aux"; 0 for no classifier.
        head: what stands between features and classifiers.
    """

    base: nn.Module
    classes: int = 0
    aux_classes: int = 0
    head: Head = Head()

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
        head = self.head
        heads = {"real": ("classifier", self.classes), "aux": ("classifier_aux", self.aux_classes)}
        parts = []
        for index, (features, weight) in enumerate(zip(out["parts"], weights, strict=True)):
            suffix = f"_{index}" if index else ""
            neck = features
            if head.neck:
                norm = BatchNorm(frozen_bias=head.frozen_bias, name=f"bottleneck{suffix}")
                neck = norm(features, train, domains)
            dropout = nn.Dropout(head.dropout, rng_collection="drop_path", deterministic=not train)
            logits = {
                domain: nn.Dense(
                    classes,
                    use_bias=head.classifier_bias,
                    kernel_init=nn.initializers.normal(0.001),
                    name=name + suffix,
                )(dropout(neck))
                for domain, (name, classes) in heads.items()
                if classes
            }
            parts.append({"features": features, "neck": neck, "logits": logits, "weight": weight})
        if head.centers and self.classes:
            shape = self.classes, parts[0]["features"].shape[-1]
            parts[0]["centers"] = self.param("centers", nn.initializers.normal(1.0), shape)
        if head.tested == "neck":
            out["embedding"] = jnp.concatenate([part["neck"] for part in parts], axis=1)
        if "losses" in out:
            parts[0]["losses"] = out.pop("losses")
        return out | {"parts": parts}
