"""Figures drawn by matplotlib without a display, each with the numbers behind it: their style, and their files.

Colours: M. Okabe and K. Ito, "Color universal design", 2008. Lines and hatches differ as well, for print.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from knn_cli.core.tables import Table
from knn_cli.core.visible_text import visible_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "png", "pdf")  # suffixes of the files
DOTS_PER_INCH = 160
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#4D4D4D")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
HATCHES = ("", "///", "...", "xx")
GREY, PALE = "#767676", "#D0D0D0"


@dataclass(frozen=True)
class Plot:
    """A figure with a description and the numbers behind it.

    Attributes
    ----------
    name : str
        Stem of its file names.
    alt : str
        Description of the figure in words, for screen readers.
    figure : matplotlib.figure.Figure
    table : Table
        The numbers behind the figure; its title is also the figure's.
    """

    name: str
    alt: str
    figure: Figure
    table: Table

    @property
    def title(self) -> str:
        return self.table.title

    @cached_property
    def svg(self) -> bytes:
        """The figure as an SVG file, rendered once for a page and for the folder beside it."""
        return _file_bytes(self.figure, "svg")


def render(plot: Plot, suffix: str) -> bytes:
    """Return the figure as a file of a suffix in FORMATS: without a date, so equal numbers give equal bytes."""
    return plot.svg if suffix == "svg" else _file_bytes(plot.figure, suffix)


def _file_bytes(figure: Figure, suffix: str) -> bytes:
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    file = io.BytesIO()
    metadata = {"svg": {"Date": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}[suffix]
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # SVG leaves letters to the viewer's fonts
        if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
            figure.draw_without_rendering()  # once for all formats, since the layout takes as long as drawing
            figure.set_layout_engine("none")
        figure.savefig(file, format=suffix, metadata=metadata, dpi=DOTS_PER_INCH)
    if suffix == "svg":  # matplotlib writes names as they are, and XML cannot hold every character
        return visible_lines(file.getvalue().decode("utf-8")).encode("utf-8")
    return file.getvalue()


def svg_element(plot: Plot) -> str:
    """Return the figure as an <svg> element of a page, without prologue and metadata, with ids unique to it."""
    text = plot.svg.decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, count=1, flags=re.DOTALL)
    prefix = re.sub(r"[^\w-]", "_", plot.name)
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{prefix}-", text)
    # The page describes the figure in words; screen readers should not read out every tick.
    return text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


@contextmanager
def style() -> Iterator[None]:
    """Apply the settings of all figures within this block; dollar signs in names are not read as mathematics."""
    import matplotlib

    settings: Any = {
        "svg.hashsalt": "knn",
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
        "font.size": 9.0,
        "axes.titlesize": 10.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "text.parse_math": False,
        "hatch.linewidth": 0.6,
        "legend.frameon": False,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def new_figure(
    width: float, height: float, *, rows: int = 1, columns: int = 1, heights: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure outside pyplot's state, width and height in inches, and its axes row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    return figure, list(axes.ravel())


def add_title(figure: Figure, title: str) -> None:
    figure.suptitle(title, fontsize=11, wrap=True)
