"""A checkpoint looked at on some images, in several lights: what figures, tables and statements are made of."""

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

BATCH = 64  # images to degrade at once


@dataclasses.dataclass(frozen=True)
class Study:
    """`maps` and `images` (uint8 [N, h, w, 3]) are by light: first, under None, the images as given, then degraded.

    `maps` are as the model was trained, NRA or not; `with_nra` and `without_nra` of the images as given. `strength` is
    λ, NRA's initial one if the model has none (`trained` is false). `person` is a region of patches, bool [P] or
    [N, P]. `compared` are another checkpoint's maps of the images as given, under its name.
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
    """Looks at a checkpoint, or a run's best one, on images.

    `lights` are intensities to degrade the images to, `degradation` options of `lowlight.degrade`; `masks` a folder of
    person masks, `centre` a prior instead; `compare` another checkpoint. InputError if one of them, or an image, cannot
    be used.
    """
    keep_compiled()
    probe = Probe.load(source)
    other = Probe.load(compare) if compare else None
    size = probe.description.image_size
    if other and other.description.image_size != size:
        raise InputError(f"{compare} takes images of {other.description.image_size}, {source} of {size}: no comparison")
    person = centre_region(probe.grid) if centre else None
    if masks:
        person = read_masks(masks, paths, probe.grid)
    given = np.empty((len(paths), *size, 3), np.uint8)
    decode_many(paths, size, "bilinear", given)
    images: dict[float | None, np.ndarray] = {None: given}
    for light in lights:
        darken = darkener(light, degradation, 0)
        starts = range(0, len(given), BATCH)
        images[light] = np.concatenate([darken(start, given[start : start + BATCH]) for start in starts])
    maps = {light: probe(pixels, progress=light_name(light)) for light, pixels in images.items()}
    trained = probe.description.norm_ratio is not None
    strength = probe.strength if trained else NormRatio().init
    return Study(
        name=str(source),
        paths=paths,
        preset=degradation.get("preset", "maet") + (" with changes" if len(degradation) > 1 else ""),
        grid=probe.grid,
        images=images,
        maps=maps,
        with_nra=maps[None] if trained else probe(given, strength, "with NRA"),
        without_nra=probe(given, 0.0, "without NRA") if trained else maps[None],
        strength=strength,
        trained=trained,
        person=person,
        compared=(str(compare), other(given, progress="compared")) if other else None,
    )


def evenly(count: int, limit: int) -> list[int]:
    """Indices of at most `limit` of `count` things, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, count - 1, limit).round().astype(int)).tolist()


def short(name: str) -> str:
    """A path's end, short enough for a figure's title."""
    return name if len(name) <= 40 else f"…{name[-39:]}"


def light_name(light: float | None) -> str:
    return "as given" if light is None else f"light {light:g}"
