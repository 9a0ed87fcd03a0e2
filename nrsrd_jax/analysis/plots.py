"""The figures of an analysis, as PNG and SVG.

Norms are those of whole vectors in the last block, unless a figure says otherwise.

R rows of a figure, L blocks, H heads, P patches
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..files import written_whole
from ..sheet import brighten
from .maps import Maps
from .statistics import VECTORS, centre_distance, joint_histogram, patch_attention, patch_norms, trend
from .study import Study, evenly, light_name, short
from .tables import by_image

COLOURS: dict[str, str] = {"q": "C0", "k": "C1", "v": "C2"}
# The largest number of points per vector and block in a scatter plot.
POINTS = 4000
# The number of images in the figure of single images.
SHOWN = 8


def write_all(study: Study, folder: Path) -> None:
    """Write every figure to a folder. InputError if a file cannot be written."""
    for name, figure in figures(study):
        save(figure, folder, name)


def figures(study: Study) -> Iterator[tuple[str, Figure]]:
    """Yield each figure with its file name."""
    given, grid, about = study.given, study.grid, study.about
    yield "images", single_images(study)
    for name in ("q_norm", "k_norm", "v_norm", "attention"):
        mean = getattr(given, name).mean(0)[..., 1:]
        yield f"heads_{name}", heads(mean, grid, f"mean {name.replace('_', ' ')}: {about}")
    yield "distance", distances(given, grid, f"Norm and distance from the centre: {about}")
    yield "layers", layers(study)
    yield "joint", joint(study)
    yield "leverage", leverage(study)
    if len(study.maps) > 1:
        yield "light", against_light(study)
        yield "falling_light", falling_light(study)


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure to `name`.png and `name`.svg in a folder."""
    # A fixed salt and no date make the SVG the same in each run.
    for ending in ("png", "svg"):
        with (
            written_whole(folder / f"{name}.{ending}") as partial,
            matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}),
        ):
            figure.savefig(partial, format=ending, dpi=120, metadata={"Date": None} if ending == "svg" else None)


def rows_of_maps(
    images: np.ndarray,
    row_names: Sequence[str],
    columns: Mapping[str, np.ndarray],
    grid: tuple[int, int],
    title: str,
) -> Figure:
    """Draw a row per image: the image, brightened, and its maps.

    Norms share a scale within their column, which its title shows. A difference has a scale symmetric around 0.
    Attention has a scale of its own in each map.

    Args:
        images: uint8 [R, h, w, 3].
        row_names: a name for each row.
        columns: maps [R, P] by title. A title with ‖ is that of norms, one with − that of a difference.
        grid: the number of (rows, columns) of patches.
        title: the figure's title.

    Returns:
        The figure.
    """
    count = 1 + len(columns)
    height, width = images.shape[1:3]
    figure = Figure(figsize=(1.15 * count + 0.6, 1.15 * height / width * len(images) + 0.9), layout="constrained")
    axes = figure.subplots(len(images), count, squeeze=False)
    for y, image in enumerate(images):
        axes[y, 0].imshow(brighten(image[None])[0])
        axes[y, 0].set_ylabel(row_names[y], fontsize=7)
        for x, (name, values) in enumerate(columns.items(), start=1):
            low, high, colours, scale = 0.0, values[y].max(), "viridis", ""
            if "‖" in name:
                low, high = values.min(), values.max()
                scale = f"{low:.3g} to {high:.3g}"
            elif "−" in name:
                # Equal limits would draw differences of 0 in the lowest value's colour instead of the neutral one.
                high = np.abs(values).max() or 1
                low, colours, scale = -high, "RdBu_r", f"±{high:.2g}"
            # The extent stretches the grid of patches over the image.
            axes[y, x].imshow(values[y].reshape(grid), colours, vmin=low, vmax=high, extent=(0, width, height, 0))
            if y == 0:
                axes[y, x].set_title(f"{name}\n{scale}", fontsize=7)
    axes[0, 0].set_title("brightened\n", fontsize=7)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize=8)
    return figure


def norm_columns(maps: Maps) -> dict[str, np.ndarray]:
    """Return the patch norms [N, P] of q, k and v by their titles in `rows_of_maps`."""
    return {f"‖{vector.upper()}‖": patch_norms(maps, vector) for vector in VECTORS}


def single_images(study: Study) -> Figure:
    """Draw attention with and without NRA and the norms on some images, and the compared model's (figures 5, 7)."""
    columns = {
        f"attention\nλ = {study.strength:.3g}{'' if study.trained else ', untrained'}": patch_attention(study.with_nra),
        "attention\nwithout NRA": patch_attention(study.without_nra),
        "with −\nwithout": patch_attention(study.with_nra) - patch_attention(study.without_nra),
    } | norm_columns(study.given)
    title = f"Last block: {study.about}"
    if study.compared:
        name, maps = study.compared
        columns["compared:\nattention"] = patch_attention(maps)
        columns |= {f"its {norm}": values for norm, values in norm_columns(maps).items()}
        title += f"; compared: {short(name)}"
    shown = evenly(len(study.paths), SHOWN)
    chosen = {name: values[shown] for name, values in columns.items()}
    names = [study.paths[index].name[:24] for index in shown]
    return rows_of_maps(study.images[None][shown], names, chosen, study.grid, title)


def falling_light(study: Study) -> Figure:
    """Draw one image in every light (figure 1)."""
    one = len(study.paths) // 2
    every = [{"attention": patch_attention(maps)} | norm_columns(maps) for maps in study.maps.values()]
    columns = {name: np.stack([of_light[name][one] for of_light in every]) for name in every[0]}
    pixels = np.stack([images[one] for images in study.images.values()])
    names = [light_name(light) for light in study.maps]
    title = f"{study.paths[one].name}, degraded by preset {study.preset}: {study.name}"
    return rows_of_maps(pixels, names, columns, study.grid, title)


def heads(values: np.ndarray, grid: tuple[int, int], title: str) -> Figure:
    """Draw the maps [L, H, P] of every block (row) and head (column), each scaled to its own range."""
    blocks, count, _ = values.shape
    low, high = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
    # A constant map would divide by 0. It is drawn as all lowest.
    shown = (values - low) / np.where(high > low, high - low, 1)
    # A row and a column of NaN, which is drawn blank, separate each map from the next.
    padded = np.pad(shown.reshape(blocks, count, *grid), [(0, 0), (0, 0), (0, 1), (0, 1)], constant_values=np.nan)
    mosaic = padded.transpose(0, 2, 1, 3).reshape(blocks * (grid[0] + 1), count * (grid[1] + 1))
    figure = Figure(figsize=(0.5 * count + 1.5, 0.5 * blocks * grid[0] / grid[1] + 1), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(mosaic, interpolation="nearest")
    axes.set_xticks(np.arange(count) * (grid[1] + 1) + grid[1] / 2 - 0.5, [str(head + 1) for head in range(count)])
    axes.set_yticks(np.arange(blocks) * (grid[0] + 1) + grid[0] / 2 - 0.5, [str(block + 1) for block in range(blocks)])
    axes.set(xlabel="head", ylabel="block")
    axes.set_title(title, fontsize=8)
    figure.colorbar(picture, ax=axes, ticks=[0, 1], shrink=0.5).ax.set_yticklabels(["lowest", "highest"], fontsize=7)
    return figure


def distances(maps: Maps, grid: tuple[int, int], title: str) -> Figure:
    """Plot norms over the distance from the image's centre, block by block, with a fitted line (figure 6)."""
    blocks = maps.q_norm.shape[1]
    distance = centre_distance(grid)
    across = min(blocks, 6)
    down = -(-blocks // across)
    figure = Figure(figsize=(2.3 * across, 2.3 * down + 0.6), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharex=True)
    for block, ax in enumerate(axes.flat):
        if block >= blocks:
            ax.set_axis_off()
            continue
        for vector, colour in COLOURS.items():
            norms = patch_norms(maps, vector, block)
            # More points would hide each other and make the files large.
            chosen = np.linspace(0, norms.size - 1, min(norms.size, POINTS)).astype(int)
            x = np.broadcast_to(distance, norms.shape).ravel()[chosen]
            ax.plot(x, norms.ravel()[chosen], ".", markersize=1, color=colour, alpha=0.4, rasterized=True)
            fit = trend(distance, norms)
            ends = np.array([distance.min(), distance.max()])
            ax.plot(
                ends, fit.slope * ends + fit.intercept, color=colour, label=f"{vector.upper()} r {fit.correlation:+.2f}"
            )
        ax.set_title(f"block {block + 1}", fontsize=8)
        ax.legend(fontsize=6)
        ax.tick_params(labelsize=6)
    figure.supxlabel("distance from the image's centre, 1 = half the diagonal", fontsize=8)
    figure.supylabel("norm", fontsize=8)
    figure.suptitle(title, fontsize=8)
    return figure


def layers(study: Study) -> Figure:
    """Plot the patches' mean Q, K and V norms by block: of the images as given, and in the least light."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    given, *lights = study.maps
    # Without lights there are only the solid lines of the images as given.
    for light, style in zip([given, *lights[-1:]], ("-", "--"), strict=False):
        blocks = range(study.given.q_norm.shape[1])
        for vector, colour in COLOURS.items():
            means = [patch_norms(study.maps[light], vector, block).mean() for block in blocks]
            label = f"{vector.upper()}, {light_name(light)}"
            axes.plot([b + 1 for b in blocks], means, style, marker="o", markersize=3, color=colour, label=label)
    axes.set(xlabel="block", ylabel="mean norm of the patches", ylim=(0, None))
    axes.set_title(f"Norms by block: {study.about}", fontsize=8)
    axes.legend(fontsize=7, handlelength=4)
    return figure


def joint(study: Study) -> Figure:
    """Draw the joint histogram of the patches' Q and K norms (figure 3), as given and in the least light.

    Grey lines mark the medians.
    """
    given, *lights = study.maps
    shown = {light: study.maps[light] for light in (given, *lights[-1:])}
    # All lights share the bins, so that the panels can be compared.
    every = dict(zip(study.maps, joint_histogram(study.maps.values()), strict=True))
    histograms = [every[light] for light in shown]
    figure = Figure(figsize=(4.4 * len(shown) + 0.6, 4.2), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    most = max(counts.max() for counts, _, _ in histograms)
    for axes, (light, maps), (counts, q_edges, k_edges) in zip(panels, shown.items(), histograms, strict=True):
        # NaN stays blank, so that bins of a single patch differ from empty ones.
        filled = np.where(counts > 0, counts, np.nan)
        drawn = axes.pcolormesh(k_edges, q_edges, filled, vmin=0, vmax=most, rasterized=True)
        q, k = (patch_norms(maps, vector) for vector in "qk")
        axes.axhline(float(np.median(q)), color="grey", linewidth=0.8)
        axes.axvline(float(np.median(k)), color="grey", linewidth=0.8)
        if study.person is not None:
            region = np.broadcast_to(study.person, q.shape)
            for name, where, marker in (("person", region, "o"), ("background", ~region, "X")):
                axes.plot(
                    k[where].mean(), q[where].mean(), marker, color="crimson", markeredgecolor="white", label=name
                )
            axes.legend(fontsize=7, title="mean")
        axes.set(xlabel="‖K‖ of a patch", ylabel="‖Q‖ of a patch" if light == given else "")
        axes.set_title(light_name(light), fontsize=8)
    figure.colorbar(drawn, ax=panels, label="patches", ticks=MaxNLocator(integer=True))
    figure.suptitle(f"Q and K norms in the last block: {study.about}", fontsize=8)
    return figure


def against_light(study: Study) -> Figure:
    """Plot means over images against light (figure 1): norms, the attention's entropy and the person's share of it."""
    rows = by_image(study)
    lights = [light for light in study.maps if light is not None]
    names = [name for name in rows[0] if name not in ("light", "image")]
    panels = {"norm": "_norm", "entropy of attention (nats)": "entropy", "share of attention": "share"}
    # A panel without columns is left out, such as the share of attention if there is no person region.
    panels = {label: found for label, part in panels.items() if (found := [name for name in names if part in name])}
    styles = {"person": "--", "background": ":"}
    figure = Figure(figsize=(4.2 * len(panels), 3.8), layout="constrained")
    for ax, (label, columns) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in columns:
            means = [np.mean([row[name] for row in rows if row["light"] == light]) for light in lights]
            style, colour = styles.get(name.rpartition("_")[2], "-"), COLOURS.get(name[0], "C3")
            ax.plot(lights, means, style, marker="o", markersize=3, color=colour, label=name.replace("_", " "))
        ax.set(xscale="log", xlabel=f"light ({study.preset})", ylabel=f"mean {label}")
        ax.set_xticks(lights, [f"{light:g}" for light in lights])
        # A logarithmic axis also labels its minor ticks, across the labels of the lights.
        ax.minorticks_off()
        ax.invert_xaxis()
        ax.legend(fontsize=6, handlelength=4)
    figure.suptitle(f"Last block as light falls: {study.about}", fontsize=8)
    return figure


def leverage(study: Study) -> Figure:
    """Draw box plots, head by head, of the spreads over the keys of γ and of the plain logits."""
    maps = study.with_nra
    head_count = maps.leverage.shape[1]
    figure = Figure(figsize=(max(5, 0.5 * head_count), 3.6), layout="constrained")
    axes = figure.subplots()
    for values, shift, colour, name in (
        (maps.logit_spread[:, -1], -0.15, "C0", "plain logits"),
        (maps.leverage, 0.15, "C1", "γ (leverage)"),
    ):
        positions = np.arange(1, head_count + 1) + shift
        drawn = axes.boxplot(values, positions=positions, widths=0.25, patch_artist=True, showfliers=False)
        for box in drawn["boxes"]:
            box.set_facecolor(colour)
        # A box plot has no entry in the legend, but this empty line has.
        axes.plot([], [], "s", color=colour, label=name)
    axes.set_xticks(range(1, head_count + 1), [str(head + 1) for head in range(head_count)])
    axes.set(yscale="log", xlabel="head", ylabel="standard deviation over keys (nats)")
    axes.set_title(f"What NRA can do at λ = {study.strength:.3g}: {study.about}", fontsize=8)
    axes.legend(fontsize=7)
    return figure
