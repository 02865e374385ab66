"""Figures that explain FlowOE: the method in one picture, noise becoming an action, and one day."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from flowoe_lib.plotting import LOOKS, line, style, titled

Array = npt.NDArray[np.float64]


STAGES = {
    "1. Experts": ("time", "inventory", "Each plans the order\nfor one known market."),
    "2. Imitation": ("noise to trade", "", "A flow learns to carry\nnoise to experts' trades."),
    "3. Refinement": ("trade", "utility", "A simulator's gradient\nraises their utility."),
    "4. Decision": ("", "", "One network decides\nin every market."),
}
"""The stages of the method: names of the axes, and a one-sentence description."""


@style()
def method_figure(message: str) -> Figure:
    """The four stages of the method as sketches in closed form, from experts to a decision."""
    figure, panels = plt.subplots(1, 4, figsize=(7.2, 2.5), gridspec_kw={"wspace": 0.12})
    start, flow = LOOKS["flow_imitation"], LOOKS["flow_refined"]
    tau, trade = np.linspace(0, 1, 40), np.linspace(-1.6, 1.6, 60)
    for name, pace in {"twap": 0.01, "almgren_chriss": 1.6, "replanned": 2.6, "static_optimal": 4.5}.items():
        line(panels[0], tau, np.sinh(pace * (1 - tau)) / np.sinh(pace), name)
    ends = np.repeat([-0.9, -0.2, 0.3, 0.8], 4)
    panels[1].plot([0, 1], [np.linspace(-2, 2, 16), ends], color=start.colour, lw=0.8)
    panels[1].plot(np.ones(16), ends, "_", color="black", ms=9)
    panels[2].plot(trade, -(trade**2), color="black", lw=1)
    for at in (-1.2, -0.6, 0.5, 1.1):
        panels[2].plot(at, -(at**2), start.marker, color=start.colour)
        panels[2].annotate("", (at / 4, -(at**2) / 16), (at, -(at**2)), arrowprops={"arrowstyle": "->"})
    panels[2].plot(0, 0, flow.marker, color=flow.colour, ms=7)
    for i, word in enumerate(("time", "inventory", "variance", "depth", "urgency")):
        y = 0.9 - 0.2 * i
        panels[3].text(0, y, word, va="center", fontsize=8)
        panels[3].annotate("", (0.78, 0.5), (0.46, y), arrowprops={"arrowstyle": "-", "color": flow.colour})
    panels[3].text(0.8, 0.5, "trade", va="center", color=flow.colour, fontweight="bold")
    panels[3].spines[["left", "bottom"]].set_visible(False)
    for axes, (title, (below, beside, said)) in zip(panels, STAGES.items(), strict=True):
        axes.set_title(title, fontweight="bold", color=flow.colour)
        axes.set(xticks=[], yticks=[], xlabel=f"{below}\n\n{said}", ylabel=beside)
    for axes in panels[1:]:
        axes.annotate("➔", (-0.16, 1.04), xycoords="axes fraction", fontsize=13)
    return titled(figure, message)


@style()
def flow_figure(paths: Mapping[str, Array], experts: Mapping[str, float], message: str) -> Figure:
    """Sample paths of the flow from noise to a trade, a panel per policy, with the experts' trades as ticks.

    ``paths[policy]`` is [solver steps + 1, samples] in units of an action; ``experts`` are actions by name.
    """
    figure, panels = plt.subplots(2, len(paths), figsize=(7.2, 4.6), sharey="row", height_ratios=(1, 1.3))
    for (whole, end), (policy, x) in zip(panels.T, paths.items(), strict=True):
        look = LOOKS[policy]
        for axes in (whole, end):
            axes.plot(np.linspace(0, 1, len(x)), x, color=look.colour, lw=0.6, alpha=0.6)
        for i, (name, action) in enumerate(experts.items()):
            mark, x_end = LOOKS[name], 1.03 + 0.025 * i
            end.plot([1, x_end], [action, action], color=mark.colour, lw=1)
            end.plot(x_end, action, mark.marker, color=mark.colour, label=mark.name)
        whole.set(title=f"{look.name}: ends at {x[-1].mean():.3f}, sd {x[-1].std():.3f}", xlim=(0, 1))
        end.set(xlabel="time of the flow: 0 noise, 1 trade", xlim=(0.8, 1.2), xticks=[0.8, 0.9, 1])
    panels[1, 0].set_ylim(min(experts.values()) - 0.1, max(experts.values()) + 0.1)
    panels[0, 0].set_ylabel("action")
    panels[1, 0].set_ylabel("action, enlarged:\n0 as Re-planned, above 0 faster")
    return titled(figure, message, panels[1, 0])


MARKET = {"price_bps": "price, bps\nsince arrival", "volatility": "volatility,\nlevel = 1"}
"""The columns of a day that are drawn, with their axes."""


@style()
def day_figure(
    market: pd.DataFrame, inventories: Mapping[str, Array], cost_bps: Mapping[str, float], message: str
) -> Figure:
    """One day: price, volatility, inventories with each policy's cost, and their distance to the oracle's.

    ``market`` has a row a bucket, with columns price_bps (since arrival) and volatility (over its long-run
    level); ``inventories`` are q_0 ... q_N, that of "oracle" among them.
    """
    figure, panels = plt.subplots(4, 1, sharex=True, figsize=(6.4, 6), height_ratios=[1, 1, 2.4, 1.6])
    for axes, (column, label) in zip(panels, MARKET.items(), strict=False):
        axes.stairs(market[column], np.linspace(0, 1, len(market) + 1), baseline=None, color="#22313f")
        axes.set_ylabel(label)
    below = panels[2]
    for policy, inventory in inventories.items():
        line(below, np.linspace(0, 1, len(inventory)), inventory, policy)
        below.lines[-1].set_label(f"{LOOKS[policy].name}: {cost_bps[policy]:.1f} bps")
        line(panels[3], np.linspace(0, 1, len(inventory)), inventory - inventories["oracle"], policy)
    below.set(ylabel="inventory,\nshare of the order", ylim=(0, 1))
    below.legend(title="cost of impact (permanent included) and risk")
    panels[3].set(xlabel="time, share of the day", ylabel="inventory less\nthe oracle's")
    return titled(figure, message)
