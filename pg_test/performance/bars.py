"""Draws times as bars, for light and dark pages."""

from xml.sax.saxutils import escape

from colours import style

WIDTH, LEFT, RIGHT, TOP, STEP, BAR = 760, 280, 90, 56, 34, 18


def draw(title, times):
    """`times` is {label: microseconds}; returns the text of the SVG."""
    height = TOP + STEP * len(times) + 16
    longest = max(times.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{style()}\n</style>",
        f'<rect class="page" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>',
        f'<text class="text title" x="20" y="32">{escape(title)}</text>',
    ]
    for row, (label, us) in enumerate(times.items()):
        top = TOP + STEP * row
        length = (WIDTH - LEFT - RIGHT) * us / longest
        colour = "blue" if "fernet_" in label else "orange"
        parts += [
            f'<text class="text" x="{LEFT - 12}" y="{top + 14}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="fill {colour}" x="{LEFT}" y="{top}" width="{max(length, 1):.1f}" height="{BAR}"/>',
            f'<text class="faint" x="{LEFT + length + 8:.1f}" y="{top + 14}">{us:.2f} µs</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
