"""Figures drawn by matplotlib without a display, each with the numbers behind it: what all of them share.

Colours: M. Okabe and K. Ito, "Color universal design", 2008, told apart by line and hatch as well for print.
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "png", "pdf")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#4D4D4D")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
HATCHES = ("", "///", "...", "xx")
GREY, PALE = "#767676", "#D0D0D0"


@dataclass(frozen=True)
class Plot:
    """A figure with its file name's stem, a sentence for those who cannot see it, and the numbers behind it."""

    name: str
    alt: str
    figure: Figure
    table: Table

    @property
    def title(self) -> str:
        return self.table.title

    @cached_property
    def svg(self) -> bytes:
        """The figure as an SVG file, for the page and for the folder beside it."""
        return _saved(self.figure, "svg")


def render(plot: Plot, kind: str) -> bytes:
    """The figure as a file of one of FORMATS: the same bytes for the same numbers, without any date."""
    return plot.svg if kind == "svg" else _saved(plot.figure, kind)


def _saved(figure: Figure, kind: str) -> bytes:
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    into = io.BytesIO()
    quiet = {"svg": {"Date": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}[kind]
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # SVG leaves letters to the viewer's fonts
        if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
            figure.draw_without_rendering()  # laid out once for all formats: it takes as long as drawing
            figure.set_layout_engine("none")
        figure.savefig(into, format=kind, metadata=quiet, dpi=160)
    return into.getvalue()


def svg_element(plot: Plot) -> str:
    """The figure as an <svg> element to stand among others in a page: no prologue, no links, ids of its own."""
    text = plot.svg.decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, count=1, flags=re.DOTALL)
    prefix = re.sub(r"[^\w-]", "_", plot.name)
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{prefix}-", text)
    # What is drawn is told in words by whoever shows it, and screen readers should not read out every tick.
    return text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


@contextmanager
def style() -> Iterator[None]:
    """Settings of every figure, for this block only. Names are shown as they are, also with a dollar sign."""
    import matplotlib

    wanted: Any = {
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
        matplotlib.rcParams.update(wanted)
        yield


def new_figure(
    width: float, height: float, *, rows: int = 1, columns: int = 1, heights: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure of inches that no window and no global state knows of, and its axes row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    return figure, list(axes.ravel())


def add_title(figure: Figure, title: str) -> None:
    figure.suptitle(title, fontsize=11, wrap=True)
