"""The pictures of these pages, drawn with ntkfast itself, for light and for dark pages.

Those of the concepts are `PICTURES`; those of the examples come from sphinx-gallery by `scrape`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from docutils import nodes
from docutils.parsers.rst import directives
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from sphinx.util.docutils import SphinxDirective

import ntkfast as nf

__all__ = ["PICTURES", "scrape", "setup"]

FOLDER = Path(__file__).parents[1] / "generated" / "pictures"
EXTENT = (-1.8, 2.8, -1.4, 1.9)
SHAPE = (40, 55)  # rows and columns of the maps

COLOURS = {
    "light": {"ink": "#2b2f36", "page": "#ffffff", "blue": "#2f6fb5", "orange": "#d9771e"},
    "dark": {"ink": "#cfd4da", "page": "#131416", "blue": "#5aa2ec", "orange": "#f0964a"},
}


class Moons:
    """Two half moons, a small network trained on eight of them, and its posterior.

    The points of the posterior are the pool and the pixels of the maps.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        n = 160
        angle = np.pi * rng.uniform(size=(2, n))
        x = np.stack([np.cos(angle[0]), 1 - np.cos(angle[1])]).ravel()
        y = np.stack([np.sin(angle[0]), 0.5 - np.sin(angle[1])]).ravel()
        points = np.stack([x, y], 1) + 0.12 * rng.normal(size=(2 * n, 2))
        self.pool = torch.tensor(points, dtype=torch.float32)
        self.classes = np.repeat([0, 1], n)
        by_class = (rng.choice(np.flatnonzero(self.classes == c), 4, False) for c in (0, 1))
        self.labeled = np.sort(np.concatenate(list(by_class)))
        rows, columns = SHAPE
        grid = np.stack(
            np.meshgrid(np.linspace(*EXTENT[:2], columns), np.linspace(*EXTENT[2:], rows)), -1
        )
        self.grid = torch.tensor(grid.reshape(-1, 2), dtype=torch.float32)
        self.everything = torch.cat([self.pool, self.grid])
        self.model = self.trained(self.labeled, self.classes[self.labeled])
        self.free = np.setdiff1d(np.arange(len(self.pool)), self.labeled)

    def trained(self, indices: Any, classes: Any) -> torch.nn.Module:
        """Return a network trained from the same beginning on other labels."""
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Linear(2, 40),
            torch.nn.Tanh(),
            torch.nn.Linear(40, 40),
            torch.nn.Tanh(),
            torch.nn.Linear(40, 2),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)
        X, y = self.pool[indices], torch.tensor(classes)
        for _ in range(150):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(X), y).backward()
            optimizer.step()
        return model

    @functools.cached_property
    def features(self) -> Any:
        """Exact tangent features of the pool and of the pixels."""
        return nf.EmpiricalNTK(self.model, sketch=None).features(self.everything)

    @functools.cached_property
    def outputs(self) -> Any:
        """Logits of the pool and of the pixels."""
        return nf.EmpiricalNTK(self.model).outputs(self.everything)

    def posterior(self) -> nf.Posterior:
        """Return a new copy of the network, linearised, with its eight labels."""
        return self._posterior.copy()

    @functools.cached_property
    def _posterior(self) -> nf.Posterior:
        at = self.labeled
        return nf.Posterior.from_features(
            self.features,
            self.outputs,
            self.features[at],
            self.outputs[at],
            self.classes[at],
            loss="cross_entropy",
            labeled_indices=at,
        )

    def map(self, values: Any) -> Any:
        """Values of the pixels, of an array over all points, as an image."""
        return np.asarray(values)[len(self.pool) :].reshape(SHAPE)


@functools.cache
def moons() -> Moons:
    """Return the data and the network that all pictures share."""
    return Moons()


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], xlim=EXTENT[:2], ylim=EXTENT[2:])
        axis.spines[:].set_alpha(0.3)
    return figure, axes


def _probability_map(colours: dict[str, str]) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list(
        "classes", [colours["blue"], colours["page"], colours["orange"]]
    )


def _labels(axis: Any, colours: dict[str, str], indices: Any, classes: Any, **style: Any) -> None:
    style = {"s": 42, "marker": "o", "linewidths": 1.4, "edgecolors": colours["ink"]} | style
    data = moons()
    face = [colours["blue"] if c == 0 else colours["orange"] for c in classes]
    axis.scatter(*data.pool[indices].T, c=face, zorder=3, **style)


def _classes(axis: Any, colours: dict[str, str], logits: Any) -> None:
    probability = torch.as_tensor(np.asarray(logits)).softmax(1)[:, 1]
    image = moons().map(probability)
    axis.imshow(
        image,
        extent=EXTENT,
        origin="lower",
        aspect="auto",
        cmap=_probability_map(colours),
        vmin=0,
        vmax=1,
        interpolation="bilinear",
        alpha=0.75,
    )
    x, y = (np.linspace(*EXTENT[i : i + 2], n) for i, n in ((0, SHAPE[1]), (2, SHAPE[0])))
    axis.contour(x, y, image, levels=[0.5], colors=colours["ink"], linewidths=1.2)


@functools.cache
def _candidate() -> int:
    """Point of the pool that the network would learn most from."""
    picked = nf.select(moons().posterior(), "fisher_variance_reduction", 1, candidates=moons().free)
    return int(picked.indices[0])


@functools.cache
def _trained_again(label: int) -> Any:
    """Return the outputs of a network trained with that label of the candidate, too."""
    data = moons()
    indices = np.append(data.labeled, _candidate())
    model = data.trained(indices, np.append(data.classes[data.labeled], label))
    return model(data.everything).detach()


def look_ahead(colours: dict[str, str]) -> Figure:
    """Show predictions with one more label of either class, by ntkfast and by training."""
    data, c = moons(), _candidate()
    figure, axes = _panels(2, 3, 7.4, 4.6)
    classes = data.classes[data.labeled]
    for i, row in enumerate(axes):
        for column, label in enumerate((None, 0, 1)):
            axis = row[column]
            if label is None:
                _classes(axis, colours, data.outputs)
            elif i == 0:
                after = data.posterior()
                after.condition([c], [label])
                _classes(axis, colours, after.mean)
            else:
                _classes(axis, colours, _trained_again(label))
            _labels(axis, colours, data.labeled, classes)
            style = {"s": 190, "marker": "*"}
            if label is None:
                axis.scatter(*data.pool[c], c=colours["page"], edgecolors=colours["ink"], **style)
            else:
                _labels(axis, colours, [c], [label], **style)
    for axis, title in zip(
        axes[0], ("the network now", "if the star were blue", "if it were orange"), strict=True
    ):
        axis.set_title(title)
    axes[0, 0].set_ylabel("ntkfast")
    axes[1, 0].set_ylabel("trained again")
    return figure


def _surface(axis: Any, colours: dict[str, str], values: Any, top: float | None = None) -> None:
    cmap = LinearSegmentedColormap.from_list("amount", [colours["page"], colours["blue"]])
    axis.imshow(
        moons().map(values),
        extent=EXTENT,
        origin="lower",
        aspect="auto",
        cmap=cmap,
        vmin=0,
        vmax=top,
        interpolation="bilinear",
        alpha=0.85,
    )


def covariance(colours: dict[str, str]) -> Figure:
    """Show how unsure the network is, how far a label reaches, and what it leaves."""
    data, c = moons(), _candidate()
    post = data.posterior()
    figure, axes = _panels(1, 3, 7.4, 2.5)
    before = post.variance
    top = float(np.quantile(np.asarray(before), 0.98))
    reach = np.asarray(post.covariance(np.arange(len(post)), [c]))[:, 0]
    reach = reach / (reach[c] + post.ridge)
    _surface(axes[0, 0], colours, before, top)
    axis = axes[0, 1]
    axis.imshow(
        data.map(reach),
        extent=EXTENT,
        origin="lower",
        aspect="auto",
        cmap=_probability_map(colours),
        vmin=-1,
        vmax=1,
        interpolation="bilinear",
        alpha=0.85,
    )
    post.condition([c], [0])
    _surface(axes[0, 2], colours, post.variance, top)
    for axis, title in zip(
        axes[0],
        ("variance S(x, x)", "reach a(x, c) of the star", "variance after its label"),
        strict=True,
    ):
        axis.set_title(title)
        _labels(axis, colours, data.labeled, data.classes[data.labeled])
        axis.scatter(*data.pool[c], c=colours["page"], edgecolors=colours["ink"], s=190, marker="*")
    return figure


def batches(colours: dict[str, str]) -> Figure:
    """Show the ten best points one by one, and ten chosen together."""
    data = moons()
    variance = data.posterior().variance
    top = float(np.quantile(np.asarray(variance), 0.98))
    figure, axes = _panels(1, 2, 7.4, 3.1)
    for axis, mode, title in zip(
        axes[0], ("top", "sequential"), ('mode="top"', 'mode="sequential"'), strict=True
    ):
        picked = nf.select(
            data.posterior(), "variance_reduction", 10, mode=mode, candidates=data.free
        )
        _surface(axis, colours, variance, top)
        axis.scatter(*data.pool.T, s=9, c=colours["ink"], alpha=0.35, linewidths=0)
        _labels(axis, colours, data.labeled, data.classes[data.labeled])
        points = data.pool[np.asarray(picked.indices)]
        axis.scatter(*points.T, s=170, marker="*", c=colours["page"], edgecolors=colours["ink"])
        axis.set_title(title)
    return figure


@functools.cache
def _utilities() -> dict[str, Any]:
    """Return the utility of a label at every pixel, from 0 to 1, by every criterion."""
    data = moons()
    many = np.arange(0, len(data.pool), 4)  # the better model that expected_log_loss asks for
    better = data.trained(many, data.classes[many])(data.everything).detach().softmax(1).numpy()
    pixels = np.arange(len(data.pool), len(data.everything))
    result = {}
    for row in nf.criteria():
        needs = {}
        if "log_loss_targets" in row.needs:
            needs = {"log_loss_targets": better[: len(data.pool)], "label_probs": better[pixels]}
        utility = nf.utilities(
            data.posterior(), row.name, pixels, np.arange(len(data.pool)), **needs
        )
        low, high = np.quantile(np.asarray(utility), [0.01, 0.995])
        shown = np.clip((np.asarray(utility) - low) / (high - low or 1), 0, 1)
        result[row.name] = np.concatenate([np.zeros(len(data.pool)), shown])
    return result


def criteria(colours: dict[str, str]) -> Figure:
    """Show the utility of a label everywhere, by every criterion."""
    data, shown = moons(), _utilities()
    rows = -(-len(shown) // 3)
    figure, axes = _panels(rows, 3, 7.4, 1.85 * rows)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, (name, values) in zip(axes.flat, shown.items(), strict=False):
        _surface(axis, colours, values, 1)
        _labels(axis, colours, data.labeled, data.classes[data.labeled], s=22, linewidths=0.9)
        axis.set_title(name, fontsize=9)
    return figure


PICTURES: dict[str, Callable[[dict[str, str]], Figure]] = {
    "look-ahead": look_ahead,
    "covariance": covariance,
    "batches": batches,
    "criteria": criteria,
}


def draw() -> None:
    """Write every picture, light and dark, as SVG without a background."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for theme, colours in COLOURS.items():
        style = {
            "text.color": colours["ink"],
            "axes.labelcolor": colours["ink"],
            "axes.edgecolor": colours["ink"],
            "axes.facecolor": "none",
            "font.size": 10,
            "axes.titlesize": 10,
            "svg.hashsalt": "ntkfast",
        }
        for name, make in PICTURES.items():
            with mpl.rc_context(style):
                figure = make(colours)
                path = FOLDER / f"{name}-{theme}.svg"
                figure.savefig(path, transparent=True, metadata={"Date": None})


class Picture(SphinxDirective):
    """A picture of `PICTURES` in both themes, with a caption."""

    required_arguments = 1
    has_content = True
    option_spec = {"alt": directives.unchanged_required}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """Return a figure with both images; the theme hides one of them."""
        name = self.arguments[0]
        if name not in PICTURES:
            raise self.error(f"there is no picture {name!r}; there are {', '.join(PICTURES)}")
        figure = nodes.figure(classes=["picture"])
        for theme in COLOURS:
            figure += nodes.image(
                uri=f"/generated/pictures/{name}-{theme}.svg",
                alt=self.options["alt"],
                classes=[f"only-{theme}"],
            )
        caption = nodes.caption()
        caption += self.parse_inline(" ".join(self.content))[0]
        figure += caption
        return [figure]


def _recoloured(figure: Figure, colours: dict[str, str]) -> Figure:
    """Draw in other ink what was drawn in black, but for text on a ground of its own."""
    for artist in figure.findobj(lambda artist: hasattr(artist, "get_color")):
        on_ground = getattr(artist, "get_bbox_patch", lambda: None)() is not None
        if not on_ground and to_hex(artist.get_color()) == "#000000":
            artist.set_color(colours["ink"])
    for axis in figure.axes:
        axis.set_facecolor("none")
        axis.spines[:].set_color(colours["ink"])
    for legend in figure.findobj(Legend):
        legend.get_frame().set_facecolor(colours["page"])
    return figure


def scrape(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the open figures of an example for light and for dark pages; return what shows them."""
    lines = []
    for number in plt.get_fignums():
        figure = plt.figure(number)
        path = Path(next(block_vars["image_path_iterator"]))
        texts = [axis.get_title() or axis.get_ylabel() for axis in figure.axes]
        # Thumbnails are made of the light one, which has a ground therefore.
        figure.savefig(path, dpi=150)
        dark = path.with_stem(f"{path.stem}-dark")
        _recoloured(figure, COLOURS["dark"]).savefig(dark, dpi=150, transparent=True)
        for theme, file in ("light", path), ("dark", dark):
            lines += [
                f".. image:: /{file.relative_to(gallery_conf['src_dir']).as_posix()}",
                f"   :class: only-{theme}",
                f"   :alt: {', '.join(filter(None, texts))}",
                "",
            ]
        plt.close(figure)
    return "\n".join(lines)


def setup(app: Any) -> dict[str, Any]:
    """Draw, and register the directive."""
    app.add_directive("picture", Picture)
    app.connect("builder-inited", lambda app: draw())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
