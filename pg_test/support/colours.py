"""The colours of pictures, for light and dark pages."""

# Each name with its colour on a light and on a dark page.
PAGE = {
    ".page": ("fill: #ffffff; stroke: #d0d7de", "fill: #0d1117; stroke: #3d444d"),
    ".text": ("fill: #1f2328", "fill: #f0f6fc"),
    ".faint": ("fill: #59636e", "fill: #9198a1"),
    ".grid": ("stroke: #d8dee4", "stroke: #2a313c"),
}
CURVES = {
    "blue": ("#0969da", "#58a6ff"),
    "orange": ("#bc4c00", "#f0883e"),
    "olive": ("#7d6200", "#d29922"),
    "red": ("#cf222e", "#ff7b72"),
    "purple": ("#8250df", "#bc8cff"),
}


def style():
    def rules(theme):
        for name, declarations in PAGE.items():
            yield f"{name} {{ {declarations[theme]} }}"
        for name, colours in CURVES.items():
            yield f".line.{name} {{ stroke: {colours[theme]} }}"
            yield f".fill.{name} {{ fill: {colours[theme]} }}"

    return "\n".join([
        'svg { font: 13px system-ui, "Segoe UI", sans-serif }',
        ".title { font-size: 15px; font-weight: 600 }",
        ".line { fill: none; stroke-width: 2.5 }",
        *rules(0),
        "@media (prefers-color-scheme: dark) {",
        *rules(1),
        "}",
    ])
