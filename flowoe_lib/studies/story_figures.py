"""The method of FlowOE in one picture."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from flowoe_lib.plotting import LOOKS, line, style, titled

__all__ = ["method_figure"]


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
