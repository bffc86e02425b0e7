"""Draws time against rows as an SVG, both axes logarithmic, for light and dark pages."""

import math

from colours import CURVES, style

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 200, 56, 54


def draw(curves):
    """`curves` is {label: {rows: seconds}}; returns the text of the SVG."""
    points = [point for curve in curves.values() for point in curve.items()]
    x = scale([rows for rows, _ in points], LEFT, WIDTH - RIGHT)
    y = scale([seconds for _, seconds in points], HEIGHT - BOTTOM, TOP, whole_decades=True)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>Time to rotate Airflow connections, against their number</title>",
        f"<style>\n{style()}\n</style>",
        f'<rect class="page" x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="6"/>',
        f'<text class="text title" x="{LEFT}" y="32">Time to rotate, start-up taken off</text>',
        f'<text class="faint" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 14}"'
        ' text-anchor="middle">connections, two tokens each</text>',
    ]
    for decade in range(y.first_decade, y.last_decade + 1):
        seconds = 10.0**decade
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(seconds):.1f}"'
                     f' y2="{y(seconds):.1f}"/>')
        parts.append(f'<text class="faint" x="{LEFT - 8}" y="{y(seconds) + 4:.1f}"'
                     f' text-anchor="end">{duration(decade)}</text>')
    for rows in sorted({rows for rows, _ in points}):
        parts.append(f'<text class="faint" x="{x(rows):.1f}" y="{HEIGHT - BOTTOM + 20}"'
                     f' text-anchor="middle">{rows:,}</text>')

    labels = []
    for (label, curve), colour in zip(curves.items(), CURVES):
        spots = [(x(rows), y(seconds)) for rows, seconds in sorted(curve.items())]
        line = " ".join(f"{across:.1f},{down:.1f}" for across, down in spots)
        parts.append(f'<polyline class="line {colour}" points="{line}"/>')
        parts += [f'<circle class="fill {colour}" cx="{across:.1f}" cy="{down:.1f}" r="3.5"/>'
                  for across, down in spots]
        labels.append([*spots[-1], label, colour])
    for across, down, label, colour in apart(labels):
        parts.append(f'<text class="fill {colour}" x="{across + 10:.1f}" y="{down + 4:.1f}">'
                     f"{label}</text>")
    return "\n".join([*parts, "</svg>", ""])


def scale(values, start, end, whole_decades=False):
    """A logarithmic map of the values' range onto start..end."""
    low, high = math.log10(min(values)), math.log10(max(values))
    if whole_decades:
        low, high = math.floor(low), math.ceil(high)

    def to_place(value):
        return start + (math.log10(value) - low) / (high - low) * (end - start)

    to_place.first_decade, to_place.last_decade = math.ceil(low), math.floor(high)
    return to_place


def apart(labels, gap=17):
    """Moves labels down that would overlap."""
    placed = []
    for across, down, *rest in sorted(labels, key=lambda label: label[1]):
        for other, taken, *_ in placed:
            if abs(across - other) < 180 and down < taken + gap:
                down = taken + gap
        placed.append((across, down, *rest))
    return placed


def duration(decade):
    return f"{10**decade:,} s" if decade >= 0 else f"{10 ** (decade + 3)} ms"
