"""How all pictures of a report look: in colours that the colour-blind tell apart, never by colour
alone, and readable in grey print."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter

from raymi.formatting import printable
from raymi.overrides import as_typed

WIDTH = 7.2
"""Of a picture, in inches: that of a printed page."""

_LETTERS = 96
"""Of a legend that fit into the width of a picture."""
_LEGEND_LINE = 0.18
"""Height of a line of a legend, in inches."""

FORMATS = {"png": 200, "pdf": 200}
"""Files of a picture, with dots per inch (in a PDF, of the images in it)."""

# Okabe and Ito 2008, without yellow, which is lost on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_FONT = "DejaVu Sans"  # comes with matplotlib
OTHER_SCRIPTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "WenQuanYi Micro Hei",
    "Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic",
    "Malgun Gothic",
)  # fmt: skip
"""For Chinese, Japanese and Korean names, which the first font has no letters for."""
_SETTINGS: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.alpha": 0.35,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.fonttype": "path",  # no font is needed to read it
    "svg.hashsalt": "raymi",  # the same picture is the same file
    "text.parse_math": False,  # names are what users write, also with $ in them
}


class Style(NamedTuple):
    """How one of several things in a picture is drawn."""

    color: str
    marker: str
    line: Any


@dataclass(frozen=True)
class Picture:
    """A picture of a report.

    `name` of its files; title; caption, what it shows and how it is to be read; `alt`, what it says
    to those who cannot see it.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure

    def as_bytes(self, kind: str) -> bytes:
        """The file of the picture.

        Args: kind, "svg" or one of `FORMATS`.
        """
        file = io.BytesIO()
        dates = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
        for text in self.figure.findobj(Text):
            assert isinstance(text, Text)
            text.set_text(printable(text.get_text(), keep="\n"))
        # Of another script's font there may be no bold face: that is no news, either.
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        with looking(), warnings.catch_warnings():
            # A letter that no installed font has becomes a box; that is no news for the terminal.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            self.figure.savefig(file, format=kind, dpi=FORMATS.get(kind, 200), metadata=dates[kind])
        return file.getvalue()


@contextmanager
def looking() -> Iterator[None]:
    """Pictures that are made within look as those of a report."""
    with rc_context({**_SETTINGS, "font.family": fonts()}):
        yield


@cache
def fonts() -> list[str]:
    """Returns the installed fonts that are searched for a letter, in order."""
    there = set(font_manager.get_font_names())
    return [_FONT, *(name for name in OTHER_SCRIPTS if name in there)]


def style_of(position: int) -> Style:
    """Of one of several things, by its place among them; the first 315 are different."""
    return Style(
        _COLOURS[position % len(_COLOURS)],
        _MARKERS[position % len(_MARKERS)],
        _LINES[position % len(_LINES)],
    )


def percent(axis: Axis) -> None:
    """Fractions along an axis are shown as percent."""
    axis.set_major_formatter(PercentFormatter(1.0, decimals=None))


def whole_numbers(axis: Axis) -> None:
    """Epochs are counted."""
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def legend_below(figure: Figure, axes: Axes) -> None:
    """What is drawn, under the picture, where it hides nothing; in as many columns as fit. For more
    than two lines of it the picture grows."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = max(1, min(4, _LETTERS // (max(map(len, labels)) + 8)))
        more = max(0, math.ceil(len(labels) / columns) - 2)
        figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * more)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def short(name: str, longest: int) -> str:
    """Shortens a name to `longest` letters in its middle, as names often differ at their ends."""
    name = printable(name)
    if len(name) <= longest:
        return name
    end = longest // 2
    return f"{name[: longest - end - 3]}...{name[-end:]}"


def threat_text(norm: str, eps: float) -> str:
    """A threat as papers write it, such as `L_inf 8/255`."""
    return f"{norm_text(norm)} {as_typed(eps)}"


def norm_text(norm: str) -> str:
    """A norm as papers write it."""
    return {"linf": "L_inf", "l2": "L2"}.get(norm, norm)


def radius_text(eps: float) -> str:
    """A radius in pixel units, in short: `8/255` where it is so many 255ths, else `0.15`."""
    pixels = round(255 * eps)
    if abs(255 * eps - pixels) < 1e-6 and len(f"{eps:.6g}") > 6:
        return f"{pixels}/255"
    return f"{eps:.3g}"


def percent_text(fraction: float) -> str:
    """A fraction for people, such as `71.3%`."""
    return f"{100 * fraction:.1f}%"
