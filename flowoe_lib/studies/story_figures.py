"""Figures that explain FlowOE: the method in one picture, noise becoming an action, and one day."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowoe_lib.plotting import LOOKS, line, style, titled

__all__ = ["day_figure", "flow_figure", "method_figure"]


STAGES = {
    "1. Experts": "Each plans the order\nfor one known market.",
    "2. Imitation": "A flow learns to carry\nnoise to experts' trades.",
    "3. Refinement": "A simulator's gradient\nraises their utility.",
    "4. Decision": "One network decides\nin every market.",
}
"""The stages of the method, each with its one-sentence description."""


@style()
def method_figure(message: str) -> Figure:
    """The four stages of the method as sketches in closed form, from experts to a decision."""
    figure, panels = plt.subplots(1, 4, figsize=(7.2, 2.5), gridspec_kw={"wspace": 0.12})
    tau, flow = np.linspace(0, 1, 40), LOOKS["flow_refined"].colour
    experts = {"twap": 0.01, "almgren_chriss": 1.6, "replanned": 2.6, "static_optimal": 4.5}
    for name, pace in experts.items():
        line(panels[0], tau, np.sinh(pace * (1 - tau)) / np.sinh(pace), name)
    ends = np.repeat([-0.9, -0.2, 0.3, 0.8], 4)
    for start, end in zip(np.linspace(-2, 2, 16), ends, strict=True):
        panels[1].plot([0, 1], [start, end], color=LOOKS["flow_imitation"].colour, lw=0.8)
    panels[1].plot(np.ones(16), ends, "_", color="black", ms=9)
    trade, before = np.linspace(-1.6, 1.6, 60), np.array([-1.2, -0.6, 0.5, 1.1])
    panels[2].plot(trade, -(trade**2), color="black", lw=1)
    panels[2].plot(before, -(before**2), LOOKS["flow_imitation"].marker, color=LOOKS["flow_imitation"].colour)
    for at in before:
        panels[2].annotate(
            "", (0.25 * at, -((0.25 * at) ** 2)), (at, -(at**2)), arrowprops={"arrowstyle": "->"}
        )
    panels[2].plot(0, 0, LOOKS["flow_refined"].marker, color=flow, ms=7)
    for i, word in enumerate(("time", "inventory", "variance", "depth", "urgency")):
        y = 0.9 - 0.2 * i
        panels[3].text(0, y, word, va="center", fontsize=8)
        panels[3].annotate("", (0.78, 0.5), (0.46, y), arrowprops={"arrowstyle": "-", "color": flow})
    panels[3].annotate("trade", (0.8, 0.5), va="center", color=flow, fontweight="bold")
    names = ("time", "noise to trade", "trade", "")
    for axes, (title, said), below, beside in zip(
        panels, STAGES.items(), names, ("inventory", "", "utility", ""), strict=True
    ):
        axes.set_title(title, fontweight="bold", color=flow)
        axes.set(xticks=[], yticks=[], xlabel=f"{below}\n\n{said}", ylabel=beside)
    panels[3].set(xlim=(0, 1.1), ylim=(0, 1))
    panels[3].spines[["left", "bottom"]].set_visible(False)
    for axes in panels[1:]:
        axes.annotate("➔", (-0.16, 1.04), xycoords="axes fraction", fontsize=13)
    return titled(figure, message)


@style()
def flow_figure(
    paths: Mapping[str, npt.NDArray[np.float64]], experts: Mapping[str, float], message: str
) -> Figure:
    """Sample paths of the flow from noise to a trade, a panel per policy, with the experts' trades as ticks.

    ``paths[policy]`` is [solver steps + 1, samples] in units of an action; ``experts`` are actions by name.
    """
    figure, panels = plt.subplots(1, len(paths), figsize=(7.2, 3.0), sharey=True)
    for axes, (policy, x) in zip(panels, paths.items(), strict=True):
        look = LOOKS[policy]
        axes.plot(np.linspace(0, 1, len(x)), x, color=look.colour, lw=0.6, alpha=0.6)
        for name, action in experts.items():
            axes.plot(1.04, action, LOOKS[name].marker, color=LOOKS[name].colour, label=LOOKS[name].name)
            axes.plot([1, 1.1], [action, action], color=LOOKS[name].colour, lw=1)
        axes.set(title=look.name, xlabel="time of the flow: 0 noise, 1 trade")
    panels[0].set_ylabel("action: faster than TWAP above 0")
    return titled(figure, message, panels[0])


def _step(axes: Axes, values: npt.NDArray[np.float64], label: str) -> None:
    axes.stairs(values, np.linspace(0, 1, len(values) + 1), baseline=None, color="#22313f", lw=1.2)
    axes.set_ylabel(label)


@style()
def day_figure(
    market: pd.DataFrame,
    inventories: Mapping[str, npt.NDArray[np.float64]],
    cost_bps: Mapping[str, float],
    message: str,
) -> Figure:
    """One day: price and volatility above, inventories below with the cost of each policy in the legend.

    ``market`` has a row a bucket, with columns price_bps (since arrival) and volatility (over its long-run
    level); ``inventories`` are q_0 ... q_N.
    """
    heights = {"height_ratios": [1, 1, 2.4]}
    figure, (price, volatility, below) = plt.subplots(
        3, 1, figsize=(6.4, 4.8), sharex=True, gridspec_kw=heights
    )
    _step(price, market["price_bps"].to_numpy(), "price, bps\nsince arrival")
    _step(volatility, market["volatility"].to_numpy(), "volatility,\nlevel = 1")
    for policy, inventory in inventories.items():
        line(below, np.linspace(0, 1, len(inventory)), inventory, policy)
        below.lines[-1].set_label(f"{LOOKS[policy].name}: {cost_bps[policy]:.1f} bps")
    below.set(xlabel="time, share of the day", ylabel="inventory,\nshare of the order", ylim=(0, 1))
    below.legend(title="cost of impact and risk")
    return titled(figure, message)
