"""The numbers behind the figures, as rows of CSV files: {column: value}.

Blocks and heads count from 1, rows and columns of patches from 0. `light` is empty for the images as given.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import printable
from ..files import write_csv
from .maps import Maps, token_norm
from .statements import Statement
from .statistics import (
    VECTORS,
    centre_distance,
    correlation,
    entropy,
    interval,
    joint_histogram,
    patch_attention,
    patch_norms,
    region_mean,
    trend,
)
from .study import Study

Row = dict[str, Any]


def write_all(study: Study, statements: Sequence[Statement], folder: Path) -> None:
    """Write every table to a folder. InputError if a file cannot be written."""
    write(folder / "blocks.csv", by_block(study))
    write(folder / "heads.csv", by_head(study))
    write(folder / "images.csv", by_image(study))
    write(folder / "maps.csv", mean_maps(study))
    write(folder / "leverage.csv", of_leverage(study))
    write(folder / "joint.csv", of_joint(study))
    write(folder / "statements.csv", of_statements(statements))


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a CSV file, with six digits per number."""
    write_csv(path, [{name: _rounded(value) for name, value in row.items()} for row in rows])


def _rounded(value: Any) -> Any:
    # The maps are float32, which holds about seven digits, and the last one is mostly rounding.
    return f"{value:.6g}" if isinstance(value, float | np.floating) else value


def _each(study: Study) -> Iterator[tuple[float | str, Maps]]:
    return (("" if light is None else light, maps) for light, maps in study.maps.items())


def by_block(study: Study) -> list[Row]:
    """Return a row per light, block and vector: the patches' mean norm, by region, and its trend with the distance."""
    distance = centre_distance(study.grid)
    rows = []
    for light, maps in _each(study):
        for block in range(maps.q_norm.shape[1]):
            for vector in VECTORS:
                norms = patch_norms(maps, vector, block)
                # `fit` takes the patches of all images as one sample. `single` has one number per image, so that its
                # interval counts images: patches of one image are not independent.
                single, fit = interval(correlation(norms, distance)), trend(distance, norms)
                row = {"light": light, "block": block + 1, "vector": vector, "mean_norm": norms.mean()}
                if study.person is not None:
                    row["person"] = region_mean(norms, study.person).mean()
                    row["background"] = region_mean(norms, ~study.person).mean()
                row |= {"slope": fit.slope, "intercept": fit.intercept, "correlation": fit.correlation}
                row |= {"mean_correlation_of_images": single.mean, "low": single.low, "high": single.high}
                rows.append(row)
    return rows


def by_head(study: Study) -> list[Row]:
    """Return a row per light, block and head: means over images of norms, correlations, entropy and logit spread."""
    distance = centre_distance(study.grid)
    rows = []
    for light, maps in _each(study):
        for block, head in np.ndindex(maps.q_norm.shape[1:3]):
            row = {"light": light, "block": block + 1, "head": head + 1}
            for vector in VECTORS:
                norms = getattr(maps, f"{vector}_norm")[:, block, head, 1:]
                row[f"{vector}_norm"] = norms.mean()
                row[f"{vector}_correlation"] = interval(correlation(norms, distance)).mean
            row["cls_q_norm"] = maps.q_norm[:, block, head, 0].mean()
            row["attention_entropy"] = entropy(maps.attention[:, block, head]).mean()
            row["logit_spread"] = maps.logit_spread[:, block, head].mean()
            rows.append(row)
    return rows


def by_image(study: Study) -> list[Row]:
    """Return a row per light and image about the last block: mean norms and attention, by region where there is one."""
    rows, person = [], study.person
    for light, maps in _each(study):
        columns = {}
        for vector in VECTORS:
            norms = patch_norms(maps, vector)
            columns[f"{vector}_norm"] = norms.mean(1)
            if person is not None:
                columns[f"{vector}_norm_person"] = region_mean(norms, person)
                columns[f"{vector}_norm_background"] = region_mean(norms, ~person)
        # Token 0 is the CLS token.
        columns["cls_q_norm"] = token_norm(maps.q_norm[:, -1])[:, 0]
        columns["attention_entropy"] = entropy(maps.attention[:, -1]).mean(1)
        if person is not None:
            attention = patch_attention(maps)
            # The CLS token's attention to itself is not part of the total.
            columns["attention_share_of_person"] = (attention * person).sum(1) / attention.sum(1)
        for index, path in enumerate(study.paths):
            rows.append(
                {"light": light, "image": printable(path)} | {key: values[index] for key, values in columns.items()}
            )
    return rows


def mean_maps(study: Study) -> list[Row]:
    """Return a row per light, block, head and patch: the means over images that the figures of heads show."""
    rows = []
    for light, maps in _each(study):
        # The CLS token has no place in the grid of patches.
        means = {name: getattr(maps, name).mean(0)[..., 1:] for name in ("q_norm", "k_norm", "v_norm", "attention")}
        for block, head, patch in np.ndindex(means["attention"].shape):
            row, column = divmod(patch, study.grid[1])
            place = {"light": light, "block": block + 1, "head": head + 1, "row": row, "column": column}
            rows.append(place | {name: values[block, head, patch] for name, values in means.items()})
    return rows


def of_leverage(study: Study) -> list[Row]:
    """Return a row per image and head of the last block: the spread over keys of γ and of the plain logits, in nats."""
    maps = study.with_nra
    return [
        {
            "image": printable(study.paths[image]),
            "head": head + 1,
            "leverage": leverage,
            "logit_spread": maps.logit_spread[image, -1, head],
        }
        for (image, head), leverage in np.ndenumerate(maps.leverage)
    ]


def of_joint(study: Study) -> list[Row]:
    """Return a row per bin of the joint histogram of Q and K norms in the last block. Empty bins are left out."""
    rows = []
    for light, (counts, q, k) in zip(
        (light for light, _ in _each(study)), joint_histogram(study.maps.values()), strict=True
    ):
        for (i, j), patches in np.ndenumerate(counts):
            if patches:
                bins = {"q_low": q[i], "q_high": q[i + 1], "k_low": k[j], "k_high": k[j + 1]}
                rows.append({"light": light} | bins | {"patches": int(patches)})
    return rows


def of_statements(statements: Sequence[Statement]) -> list[Row]:
    """Return a row per statement: the verdict, the statistic and its interval."""
    return [
        {"statement": s.claim, "holds": s.verdict, "statistic": s.statistic} | s.value._asdict() for s in statements
    ]
