"""What computing costs, in words: GPU-hours, and money where a price is known."""

from __future__ import annotations


def gpu_hours_text(gpu_hours: float, *, price: float | None) -> str:
    """GPU-hours, and what they cost. price: of a GPU-hour in any currency, which is the user's; None: not known."""
    text = f"{hours_text(gpu_hours)} GPU-hours"
    return text if price is None else f"{text}, {gpu_hours * price:,.2f} at {price:,.6g} each"


def hours_text(hours: float) -> str:
    """A number of hours, without digits that mean nothing."""
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}"
