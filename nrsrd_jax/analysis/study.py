"""The maps of a checkpoint on some images in several lights, from which figures, tables and statements are made."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..compiled import keep_compiled
from ..data.images import decode_many
from ..errors import InputError
from ..models.attention import NormRatio
from ..retrieval.illumination import darkener
from .maps import Maps, Probe
from .statistics import centre_region, read_masks

# Images that are degraded at once.
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Study:
    """What was computed of a checkpoint.

    Attributes:
        name: the checkpoint's path.
        paths: the image files.
        preset: the name of the degradation.
        grid: the number of (rows, columns) of patches.
        images: uint8 [N, h, w, 3] by light. None stands for the images as given, and comes first.
        maps: of `images`, by light, with NRA or without it, as the model was trained.
        with_nra, without_nra: the maps of the images as given.
        strength: λ of NRA in `with_nra`: the trained λ, or NRA's initial λ for a model without NRA.
        trained: whether the model was trained with NRA.
        person: the patches of the person, bool [P] or [N, P].
        compared: the name of another checkpoint, and its maps of the images as given.
    """

    name: str
    paths: Sequence[Path]
    preset: str
    grid: tuple[int, int]
    images: dict[float | None, np.ndarray]
    maps: dict[float | None, Maps]
    with_nra: Maps
    without_nra: Maps
    strength: float
    trained: bool
    person: np.ndarray | None = None
    compared: tuple[str, Maps] | None = None

    @property
    def given(self) -> Maps:
        return self.maps[None]

    @property
    def about(self) -> str:
        return f"{short(self.name)}, {len(self.paths)} images"


def make_study(
    source: Path,
    paths: Sequence[Path],
    *,
    lights: tuple[float, ...] = (),
    degradation: Mapping[str, Any] = MappingProxyType({}),
    masks: Path | None = None,
    centre: bool = False,
    compare: Path | None = None,
) -> Study:
    """Compute the maps of a checkpoint on images.

    Args:
        source: a checkpoint, or a run, of which the best checkpoint is used.
        paths: the images.
        lights: light intensities in 0..1 to degrade the images to.
        degradation: options of `lowlight.degrade_to`.
        masks: a folder of person masks (`read_masks`).
        centre: take `centre_region` for the person. `masks` takes precedence.
        compare: another checkpoint or run to compare with.

    Returns:
        The study.

    Raises:
        InputError: a checkpoint, an image or a mask cannot be used, or the two checkpoints have different image sizes.
    """
    keep_compiled()
    probe = Probe.load(source)
    other = Probe.load(compare) if compare else None
    size = probe.description.image_size
    if other and other.description.image_size != size:
        raise InputError(
            f"{compare} has images of {other.description.image_size} pixels, {source} of {size}; the sizes must agree"
        )
    person = centre_region(probe.grid) if centre else None
    if masks:
        person = read_masks(masks, paths, probe.grid)
    given = np.empty((len(paths), *size, 3), np.uint8)
    # The evaluation resizes bilinearly, so the maps are those of the pixels that are scored.
    decode_many(paths, size, "bilinear", given, advice="")
    images: dict[float | None, np.ndarray] = {None: given}
    for light in lights:
        darken = darkener(light, degradation, 0)
        # An image's noise depends on its index and not on its batch.
        starts = range(0, len(given), BATCH)
        images[light] = np.concatenate([darken(start, given[start : start + BATCH]) for start in starts])
    maps = {light: probe(pixels, progress=light_name(light)) for light, pixels in images.items()}
    trained = probe.description.norm_ratio is not None
    strength = probe.strength if trained else NormRatio().init
    return Study(
        name=str(source),
        paths=paths,
        # Options without a value are not in `degradation`, so each entry beside the preset changes it.
        preset=degradation.get("preset", "maet") + (" with changes" if len(degradation) > 1 else ""),
        grid=probe.grid,
        images=images,
        maps=maps,
        # The maps of the images as given already are those with NRA, or those without it.
        with_nra=maps[None] if trained else probe(given, strength, "with NRA"),
        without_nra=probe(given, 0.0, "without NRA") if trained else maps[None],
        strength=strength,
        trained=trained,
        person=person,
        compared=(str(compare), other(given, progress="compared")) if other else None,
    )


def evenly(count: int, limit: int) -> list[int]:
    """Return at most `limit` of the indices 0 to `count` − 1, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, count - 1, limit).round().astype(int)).tolist()


def short(name: str) -> str:
    """Return the end of a path, short enough for a figure's title."""
    return name if len(name) <= 40 else f"…{name[-39:]}"


def light_name(light: float | None) -> str:
    return "as given" if light is None else f"light {light:g}"
