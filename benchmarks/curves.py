"""A drawing of curves, as SVG: both axes linear from nought, a name at the end of each curve. Pure."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, BOTTOM, RIGHT, TOP = 760, 420, 70, 50, 170, 20
COLORS = ("#0b7a75", "#2a9d8f", "#6a4c93", "#8a8a8a", "#d62828", "#f77f00", "#bc6c25", "#003049")
LABEL_PX = 14
TICKS = 5

Curve = tuple[str, Sequence[tuple[float, float]]]
"""A name, and points from left to right."""


def drawing(curves: Sequence[Curve], x_title: str, y_title: str) -> str:
    """The text of an SVG file. `y` are bytes."""
    x_max = max(x for _, points in curves for x, _ in points)
    y_max = max(y for _, points in curves for _, y in points)
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / x_max * plot_width, HEIGHT - BOTTOM - y / y_max * plot_height

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT + plot_width / 2, HEIGHT - 10, x_title, "middle"),
        f'<g transform="translate(14 {TOP + plot_height / 2:.0f}) rotate(-90)">{_text(0, 0, y_title, "middle")}</g>',
    ]
    for tick in range(TICKS + 1):
        x, y = place(x_max * tick / TICKS, y_max * tick / TICKS)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y + 4, _bytes(y_max * tick / TICKS), "end"))
        parts.append(_text(x, HEIGHT - BOTTOM + 18, f"{x_max * tick / TICKS:.0f}", "middle"))
    ends = _apart([place(*points[-1])[1] for _, points in curves])
    for i, (name, points) in enumerate(curves):
        color = COLORS[i % len(COLORS)]
        line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(_text(WIDTH - RIGHT + 8, ends[i] + 4, name, "start", color))
    return "\n".join([*parts, "</svg>\n"])


def _apart(places: Sequence[float]) -> list[float]:
    """Places of labels from below upwards, each a line at least above the one before."""
    moved = list(places)
    below = float(HEIGHT)
    for i in sorted(range(len(places)), key=lambda i: -places[i]):
        below = moved[i] = min(places[i], below - LABEL_PX)
    return moved


def _text(x: float, y: float, text: str, anchor: str, color: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'


def _bytes(size: float) -> str:
    return f"{size / 1_000_000:.1f} MB" if size else "0"
