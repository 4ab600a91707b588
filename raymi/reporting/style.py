"""Style of all pictures, legible for the colour-blind and in grey print."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.rcsetup import cycler
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from raymi.formatting import printable, truncate_middle

WIDTH = 7.2
"""Width of a picture in inches, as wide as a printed page."""

FORMATS = {"png": 200, "pdf": 200}
"""File formats of a picture, with dots per inch (in a PDF, of the images in it)."""

_LEGEND_COLUMNS, _LONGEST_LABEL = 3, 32
_LEGEND_LINE = 0.18  # inches

# Okabe and Ito 2008, without yellow, which is invisible on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_NUM_STYLES = len(COLOURS) * len(_MARKERS) * len(_LINES)  # the lengths have no common factor

STYLES = cycler(
    color=[COLOURS[k % len(COLOURS)] for k in range(_NUM_STYLES)],
    marker=[_MARKERS[k % len(_MARKERS)] for k in range(_NUM_STYLES)],
    linestyle=[_LINES[k % len(_LINES)] for k in range(_NUM_STYLES)],
)
"""Styles of the curves in a picture, in order; all are different."""

Styles = Mapping[str, Mapping[str, Any]]
"""Colour, marker and line of each run, by its name: the same in all pictures of a report."""

_SMALLEST_RANGE = 0.02  # of an axis of fractions, so that its ticks need no decimals

_FONTS = (
    "DejaVu Sans",  # comes with matplotlib; the others have Chinese, Japanese and Korean letters
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "WenQuanYi Micro Hei",
    "Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic",
    "Malgun Gothic",
)  # fmt: skip
_SETTINGS: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.prop_cycle": STYLES,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.family": list(_FONTS),
    "font.size": 9,
    "grid.alpha": 0.35,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.fonttype": "path",  # readers need no font
    "svg.hashsalt": "raymi",  # equal pictures are equal files
    "text.parse_math": False,  # names may contain $
}


@dataclass(frozen=True)
class Picture:
    """Picture of a report.

    Attributes:
        name: of its files, without suffix.
        title: shown above the picture.
        caption: content of the picture and how to read it.
        alt: content of the picture as text, for readers who cannot see it.
        figure: of matplotlib.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure

    def as_bytes(self, kind: str) -> bytes:
        """Renders the picture.

        Args:
            kind: "svg" or one of `FORMATS`.

        Returns:
            The content of the file, a function of the picture alone.
        """
        file = io.BytesIO()
        dates = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
        for text in self.figure.findobj(Text):
            assert isinstance(text, Text)
            text.set_text(printable(text.get_text(), keep="\n"))
        # Missing fonts and faces need no warning: matplotlib uses the next font.
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        with report_style(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as a box
            self.figure.savefig(file, format=kind, dpi=FORMATS.get(kind, 200), metadata=dates[kind])
        return file.getvalue()


def report_style() -> AbstractContextManager[None]:
    """Returns a context in which matplotlib draws in the style of reports."""
    return rc_context(_SETTINGS)


def run_styles(methods: Mapping[str, str]) -> Styles:
    """Returns a style for each run: a colour for each method, and markers within a method.

    Runs of a single method have a colour each.

    Args:
        methods: by the name of the run.
    """
    groups = list(dict.fromkeys(methods.values()))
    if len(groups) == 1:
        methods = {name: name for name in methods}
        groups = list(methods)
    styles: dict[str, Mapping[str, Any]] = {}
    used: Counter[int] = Counter()
    for name, method in methods.items():
        colour = groups.index(method) % len(COLOURS)
        k = colour + used[colour]
        used[colour] += 1
        styles[name] = {
            "color": COLOURS[colour],
            "marker": _MARKERS[k % len(_MARKERS)],
            "linestyle": _LINES[k % len(_LINES)],
        }
    return styles


def plot_curve(axes: Axes, x: Sequence[float], y: Sequence[float], **options: Any) -> Line2D:
    """Plots a curve with about ten markers, in the next style of the axes.

    Args:
        axes: to draw on.
        x: of the points.
        y: of the points; NaN leaves a gap.
        options: of `Axes.plot`, such as its label.
    """
    (line,) = axes.plot(x, y, markevery=max(1, len(x) // 10), **options)
    return line


def percent_axis(axis: Axis) -> None:
    """Labels the fractions along an axis in percent, with one decimal at most."""
    low, high = axis.get_view_interval()
    if high - low < _SMALLEST_RANGE:
        middle = (low + high) / 2
        axis.set_view_interval(
            middle - _SMALLEST_RANGE / 2, middle + _SMALLEST_RANGE / 2, ignore=True
        )
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{round(100 * x, 1) + 0.0:g}%"))


def epoch_axis(axis: Axis) -> None:
    """Restricts the ticks of an axis to whole numbers."""
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def legend_below(figure: Figure, axes: Axes) -> None:
    """Adds the legend of some axes under the picture, which grows with its lines."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        lines = math.ceil(len(labels) / _LEGEND_COLUMNS)
        figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * max(0, lines - 2))
        names = [truncate_middle(label, _LONGEST_LABEL) for label in labels]
        figure.legend(handles, names, loc="outside lower center", ncols=_LEGEND_COLUMNS)
