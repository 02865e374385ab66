"""The common style of figures, and saving figures and tables.

A figure function takes a table and returns the figure. Figures are legible in grey at column width, and
the same table always gives the same bytes.
"""

import io
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from flowoe_lib.store import atomic_write

STYLE: dict[Any, Any] = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "svg.hashsalt": "flowoe",
    "svg.fonttype": "none",
}
"""The style of every figure, with deterministic identifiers in SVG."""


style = partial(mpl.rc_context, STYLE)
"""Context with ``STYLE``, which also decorates functions that draw."""


def save(figure: Figure, folder: Path, name: str) -> Figure:
    """Write ``name``.png (150 dpi) and ``name``.svg into ``folder``, each atomically."""
    with style():
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
            atomic_write(Path(folder) / f"{name}.{suffix}", buffer.getvalue())
    plt.close(figure)
    return figure


def save_table(table: pd.DataFrame, folder: Path, name: str) -> pd.DataFrame:
    """Write ``name``.csv into ``folder``, without the index unless it is named."""
    text = table.to_csv(index=table.index.name is not None)
    atomic_write(Path(folder) / f"{name}.csv", text.encode())
    return table


class Look(NamedTuple):
    """Name, colour, line and marker of a policy in figures."""

    name: str
    colour: str
    line: str
    marker: str


LOOKS: dict[str, Look] = {
    "random": Look("Random", "#d0d0d0", ":", "x"),
    "twap": Look("TWAP", "#8c8c8c", ":", "s"),
    "vwap": Look("VWAP", "#b5b5b5", "--", "d"),
    "almgren_chriss": Look("Almgren-Chriss", "#5b8db8", "--", "v"),
    "static_optimal": Look("Static optimum", "#1b3a6b", "-.", "^"),
    "static_unaware": Look("Static optimum, unaware", "#7d93b8", ":", ">"),
    "alfonsi_fruth_schied": Look("Alfonsi-Fruth-Schied", "#b08d2e", ":", "d"),
    "linear_quadratic": Look("Closed form", "#b08d2e", "--", "d"),
    "replanned": Look("Re-planned", "#4aa89d", (0, (5, 1)), "P"),  # type: ignore[arg-type]
    "mpc": Look("MPC", "#2f7d32", "-.", "D"),
    "mpc_unaware": Look("MPC, unaware", "#9bc59d", ":", "D"),
    "mpc_informed": Look("MPC, informed", "#164a18", ":", "D"),
    "dynamic_program": Look("Dynamic program", "#4a4a8f", (0, (4, 1, 1, 1)), "p"),  # type: ignore[arg-type]
    "dynamic_program_informed": Look("Dynamic program, informed", "#25254a", ":", "p"),
    "specialist": Look("Specialist", "#8a5a2b", "--", "1"),
    "rl": Look("RL expert", "#7a5195", (0, (3, 1, 1, 1)), "X"),  # type: ignore[arg-type]
    "flow_imitation": Look("Imitation only", "#e8a33d", "--", "<"),
    "flow_refined": Look("FlowOE", "#c0392b", "-", "o"),
    "flow_unaware": Look("FlowOE, unaware", "#e39a90", ":", "o"),
    "flow_informed": Look("FlowOE, informed", "#7d1f14", ":", "o"),
    "limit": Look("Limit", "#000000", (0, (1, 2)), "*"),  # type: ignore[arg-type]
    "oracle": Look("Oracle", "#000000", (0, (1, 2)), "*"),  # type: ignore[arg-type]
}
"""Policies in the order in which legends and tables list them."""


def by_name(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the names of figures in place of the keys of policies, in its index and its columns."""
    names = {key: look.name for key, look in LOOKS.items()}
    return table.rename(index=names, columns=names)


TERMS = {
    "blind_optimum": "Optimum, unaware of drift",
    "ci_low": "low",
    "ci_high": "high",
    "utility": "difference",
    "utility_ci_low": "low",
    "utility_ci_high": "high",
    "material_bps": "material size",
    "above_zero": "above zero",
    "solver_steps": "solver steps",
    "training_seed": "training seed",
    "risk_aversion": "risk aversion, per bps",
    "half_life": "half-life, days",
    "capture_mean": "mean capture",
    "capture_worst": "worst capture",
    "regret_worst": "worst regret",
    "orders_needed": "orders needed",
    "least_weight": "least weight",
    "least_cost_bps": "least cost, bps",
    "std_share": "std",
    "cvar95": "CVaR95",
    "price_bps": "price, bps",
}
"""Rows, columns and their levels in tables as readers see them."""


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the names of ``LOOKS`` and ``TERMS`` for its rows, columns and levels."""
    terms: dict[Any, Any] = {key: look.name for key, look in LOOKS.items()} | TERMS
    return table.rename(index=terms, columns=terms).rename_axis(index=terms, columns=terms)


def line(axes: Axes, x: ArrayLike, y: ArrayLike, policy: str) -> None:
    """Draw a curve in the colour, line style and markers of a policy.

    Markers begin at a point of the policy's own, so that curves which coincide can be told apart.
    """
    look, x = LOOKS[policy], np.asarray(x)
    every = max(len(x) // 4, 1)
    [curve] = axes.plot(x, np.asarray(y), color=look.colour, linestyle=look.line, label=look.name)
    curve.set(marker=look.marker, ms=3.5, markevery=(list(LOOKS).index(policy) % every, every))


def panel_grid(count: int, columns: int, height: float = 2.4, ylabel: str = "") -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels in rows of ``columns``, each row of a ``height`` in inches.

    The first panel of each row has the ``ylabel``.
    """
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(7.2, height * rows), squeeze=False)
    flat = list(axes.flat)
    for first in flat[::columns]:
        first.set_ylabel(ylabel)
    for spare in flat[count:]:
        spare.set_visible(False)
    return figure, flat[:count]


def titled(figure: Figure, message: str, *panels: Axes, ncols: int = 5) -> Figure:
    """The figure with its message as a headline and, below, one legend for all these ``panels``."""
    figure.suptitle(message, x=0.01, ha="left", fontsize=10, fontweight="bold")
    handles: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if panels:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=ncols)
    return figure
