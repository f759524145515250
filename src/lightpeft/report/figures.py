"""From a matplotlib figure to an inline SVG: one style, one palette, nothing left behind in matplotlib."""

import html
import importlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lightpeft.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1b2330"
MUTED = "#7a8490"
FAINT = "#e3e7ec"
KEPT = "#0072b2"
CUT = "#d55e00"
"""The palette (Okabe and Ito's blue and vermilion), safe for colour-blind readers."""

PIXELS_PER_INCH = 100
WIDTH = 4.0
"""Inches of a picture on a page: on the narrowest screen its text is still readable."""

FONTS = "'DejaVu Sans', Verdana"
"""DejaVu is what the layout is measured in, Verdana is as wide."""

_THEMED = {INK: "ink", MUTED: "muted", FAINT: "faint", KEPT: "kept", CUT: "cut"}
_STYLE = {
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.use": True,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "lightpeft",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}


def check_report_extra() -> None:
    """Check that everything a report needs is installed.

    Raises:
        ConfigError: a package of the extra `report` is not.
    """
    need("jinja2")
    need("matplotlib")


def need(package: str) -> None:
    """Check that a package of the extra `report` is there.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"the report needs {package}, which is not installed: pip install lightpeft[report]"
        ) from error


@contextmanager
def house_style() -> Iterator[None]:
    """matplotlib's defaults with our style, whatever the user's own settings are."""
    need("matplotlib")
    from matplotlib import style

    with style.context(["default", _STYLE]), warnings.catch_warnings():
        # A label may hold any character; whoever shows the SVG has the font for it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches (100 pixels each on the page), apart from pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def headline(axes: "Axes", text: str) -> None:
    """A title at the picture's left edge, so that it has room beside long labels, too."""
    axes.figure.suptitle(text, x=0.01, horizontalalignment="left", fontsize=10, fontweight="bold")


def to_svg(figure: "Figure", name: str, label: str, *, card: bool = False) -> str:
    """The figure as an `<svg>` element whose ids start with `name`; the figure is cleared.

    Colours are CSS variables (`--ink`, `--kept`, ...) that fall back to the light theme. A `card` has
    fixed colours and a white ground instead, for pages whose theme it cannot know.
    """
    buffer = io.StringIO()
    ground = {"facecolor": "#ffffff"} if card else {"transparent": True}
    unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=unsaid, **ground)
    width, height = figure.get_size_inches() * PIXELS_PER_INCH
    figure.clear()
    text = buffer.getvalue()
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    body = _shorter(_own_ids(_without_size(body), name)).replace("'DejaVu Sans'", FONTS)
    head = f'<svg role="img" aria-label="{html.escape(label)}" width="{width:.0f}" height="{height:.0f}" '
    body = body.replace("<svg ", head, 1)
    return body.strip() if card else _themed(body).strip()


def _own_ids(svg: str, name: str) -> str:
    svg = re.sub(r'(?<= )id="([^"]*)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]*)"', rf'href="#{name}-\1"', svg)
    return re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", svg)


def _without_size(svg: str) -> str:
    opening, rest = svg.split(">", 1)
    return re.sub(r' (?:width|height|version)="[^"]*"', "", opening) + ">" + rest


def _shorter(svg: str) -> str:
    """Path coordinates with two decimals."""
    paths = re.compile(r' d="[^"]*"')
    return paths.sub(lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)


def _themed(svg: str) -> str:
    for colour, variable in _THEMED.items():
        svg = svg.replace(f": {colour}", f": var(--{variable}, {colour})")
    return svg
