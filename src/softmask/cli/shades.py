"""Colours of a canvas in a terminal, shared by the view of a text and that of a grid."""

from __future__ import annotations

from rich.style import Style

PROMPT = Style(dim=True)
NEW = Style(color="green", bold=True)
# Endpoints of the shade of a mask, by lambda 0..1.
GREY, AMBER = (48, 48, 56), (176, 112, 16)


def shade(weight: float) -> Style:
    """Background between grey and amber for a mask fed back with this weight."""
    mixed = [
        round(a + (b - a) * min(max(weight, 0.0), 1.0)) for a, b in zip(GREY, AMBER, strict=True)
    ]
    return Style(italic=True, dim=True, bgcolor="#{:02x}{:02x}{:02x}".format(*mixed))
