"""The Re-ID model: a backbone, and for each of its parts a neck and one classifier per domain."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from .normalization import BatchNorm


@dataclasses.dataclass(frozen=True)
class Head:
    """The layers between a part's features and its classifiers. The default is the BNNeck of TransReID and BoT.

    Attributes:
        neck: whether a BatchNorm follows the features.
        frozen_bias: whether the neck's bias stays 0.
        classifier_bias: whether the classifiers have a bias.
        dropout: the rate of a dropout before the classifiers, in 0..1.
        tested: what retrieval ranks by: the backbone's "embedding", or "neck" for the concatenated necks of all parts.
        centers: whether the model has a learned centre for each identity of the domain "real", for the centre loss.
    """

    neck: bool = True
    frozen_bias: bool = True
    classifier_bias: bool = False
    dropout: float = 0.0
    tested: str = "embedding"
    centers: bool = False


class ReID(nn.Module):
    """Embed images [B, h, w, 3], normalised, and classify their identities.

    It returns a dict:
        embedding: [B, D] float32, the features that retrieval ranks by.
        parts: a list with one dict per part of the model: `features` [B, D] float32 before the neck, for the triplet
            loss; `neck` [B, D] after the neck; `logits`, {domain: [B, C]} for each domain with a classifier; `weight`,
            a float that scales the part's losses; `factor`, a float that scales the part's features in a test. The
            first part may also have `centers` [C, D], for the centre loss, and in training `losses`, {name: scalar},
            which the backbone computes itself.
        diagnostics: {name: scalar}, values to log, over the images of the first domain.
        maps: with `maps=True`, the backbone's attention maps (see its module).

    Attributes:
        base: the backbone, a module as `spec` describes it.
        classes, aux_classes: identities of the domains "real" and "aux"; 0 for no classifier.
        head: the layers between features and classifiers.
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
            cameras: [B] int32, the rank of each image's camera among the cameras of training, −1 for an unknown
                camera; None if all are unknown.
            train: whether BatchNorm normalises with the statistics of the batch and updates the running ones, and drop
                path and dropout are on.
            maps: whether to return the attention maps.
            domains: the number of domains. Image i belongs to domain i % domains, and BatchNorm normalises each domain
                by itself.

        Returns:
            The dict that the class describes.
        """
        out = self.base(images, cameras=cameras, train=train, maps=maps, domains=domains)
        ones = [1.0] * len(out["parts"])
        weights, factors = out.pop("weights", ones), out.pop("factors", ones)
        head = self.head
        heads = {"real": ("classifier", self.classes), "aux": ("classifier_aux", self.aux_classes)}
        parts = []
        for index, (features, weight, factor) in enumerate(zip(out["parts"], weights, factors, strict=True)):
            # The first part has no number, so that the names of a model with one part are the official ones.
            suffix = f"_{index}" if index else ""
            neck = features
            if head.neck:
                norm = BatchNorm(frozen_bias=head.frozen_bias, name=f"bottleneck{suffix}")
                neck = norm(features, train, domains)
            # Dropout draws from the stream of stochastic depth, so that a step passes one key for both.
            dropout = nn.Dropout(head.dropout, rng_collection="drop_path", deterministic=not train)
            # Without a dtype, the classifiers compute in float32, as the losses do.
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
            parts.append({"features": features, "neck": neck, "logits": logits, "weight": weight, "factor": factor})
        if head.centers and self.classes:
            shape = self.classes, parts[0]["features"].shape[-1]
            # The official code of BoT draws the centres from N(0, 1), too.
            parts[0]["centers"] = self.param("centers", nn.initializers.normal(1.0), shape)
        if head.tested == "neck":
            out["embedding"] = jnp.concatenate([part["neck"] for part in parts], axis=1)
        if "losses" in out:
            parts[0]["losses"] = out.pop("losses")
        return out | {"parts": parts}
