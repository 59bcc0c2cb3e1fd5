"""Plots in the HTML pages of `keek_server.pages`."""

import base64
import io
from collections.abc import Callable
from html import escape

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def figure(title: str, image: bytes) -> str:
    """HTML of a PNG with its title."""
    encoded = base64.b64encode(image).decode()
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<img alt="{escape(title)}" src="data:image/png;base64,{encoded}"></figure>\n'
    )


def png(draw: Callable[[Axes], None], height: float = 3.2) -> bytes:
    """A plot of one pair of axes, `height` inches high."""
    # No pyplot: its figures are the whole process's, and this may run in any thread.
    drawing = Figure(figsize=(8, height), layout="constrained")
    axes = drawing.add_subplot()
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    draw(axes)
    buffer = io.BytesIO()
    drawing.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()
