"""The page of the explorer: a slider for each setting, and the picture of its results."""

import asyncio
import html
import io
from collections.abc import Callable
from math import log10
from typing import NamedTuple

import ipywidgets
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowoe_lib.desk.explorer import Settings, View, bounds, explore
from flowoe_lib.plotting import LOOKS, style
from flowoe_lib.training.pretrained import PretrainedPolicy

__all__ = ["DIALS", "Page", "explore_figure"]


PAUSE_S = 0.05
"""Time after the last move of a slider until the page is redrawn."""


FAST = {"figure.constrained_layout.use": False, "axes.titley": 1.0}
"""Automatic layout and placement of titles would take longer than all other drawing."""


class Dial(NamedTuple):
    """Label, step and units of the slider of a setting."""

    setting: str
    label: str
    step: float
    """Step in units of the slider, or in decades if it is logarithmic."""
    logarithmic: bool = False
    scale: float = 1.0
    """Units of the slider in one unit of the setting."""
    digits: str = ".2f"

    def bounds(self, trained: PretrainedPolicy) -> tuple[float, float]:
        """The training range, in units of the slider."""
        low, high = bounds(trained, self.setting)
        return self.scale * low, self.scale * high

    def slider(self, trained: PretrainedPolicy) -> ipywidgets.Widget:
        """The slider over the training range, at the default of the setting."""
        low, high = self.bounds(trained)
        kind, ends = ipywidgets.FloatSlider, (low, high)
        if self.logarithmic:
            kind, ends = ipywidgets.FloatLogSlider, (log10(low), log10(high))
        return kind(
            value=self.scale * getattr(Settings, self.setting),
            min=ends[0],
            max=ends[1],
            step=self.step,
            description=self.label,
            readout_format=self.digits,
            continuous_update=False,
            style={"description_width": "15em"},
            layout={"width": "99%"},
        )


DIALS = (
    Dial("volatility", "volatility, % per √day", 0.02, logarithmic=True, scale=100),
    Dial("cv", "volatility of volatility", 0.02),
    Dial("illiquidity", "illiquidity, normal = 1", 0.1, digits=".1f"),
    Dial("depth_sd", "depth variability, sd of log", 0.05),
    Dial("size", "order size, % of ADV", 0.02, logarithmic=True, scale=100, digits=".1f"),
    Dial("beta", "impact exponent β", 0.01),
    Dial("risk_aversion", "risk aversion λ, 10⁻⁴ per bps", 0.02, logarithmic=True, scale=1e4),
    Dial("drift", "drift, daily sd", 0.05, digits="+.2f"),
)


class Page:
    """Sliders, a line for error messages, and the picture; display ``widget``."""

    def __init__(self, trained: PretrainedPolicy, seed: int) -> None:
        self.trained, self.seed = trained, seed
        self.sliders = {dial.setting: dial.slider(trained) for dial in DIALS}
        self.message = ipywidgets.HTML()
        self.picture = ipywidgets.Image(format="png", layout={"width": "100%", "max_width": "1200px"})
        moved = newest_only(self.draw, PAUSE_S)
        for slider in self.sliders.values():
            slider.observe(moved, "value")
        sliders = list(self.sliders.values())
        columns = [ipywidgets.VBox(half, layout={"width": "50%"}) for half in (sliders[:4], sliders[4:])]
        top = ipywidgets.HBox(columns, layout={"max_width": "1200px"})
        self.widget = ipywidgets.VBox([top, self.message, self.picture])
        self.draw()

    @property
    def settings(self) -> Settings:
        """The settings of the sliders."""
        return Settings(**{d.setting: self.sliders[d.setting].value / d.scale for d in DIALS})

    def draw(self) -> None:
        """Draw the picture for the sliders, or show the error message."""
        try:
            view = explore(self.settings, self.trained, self.seed)
        except ValueError as error:
            self.message.value = f"<b>Cannot be shown:</b> {html.escape(str(error))}"
            self.picture.layout.visibility = "hidden"
            return
        buffer = io.BytesIO()
        with style():
            explore_figure(view).savefig(buffer, format="png", dpi=120, pil_kwargs={"compress_level": 1})
        self.picture.value, self.message.value = buffer.getvalue(), ""
        self.picture.layout.visibility = "visible"


def newest_only(act: Callable[[], None], pause_s: float) -> Callable[[object], None]:
    """An event handler that calls ``act`` once no event has come for ``pause_s`` seconds.

    Outside a kernel it acts at once. Kernels may handle events in another thread while a cell runs;
    matplotlib's settings are global, so ``act`` runs in the event loop from which this function was called.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return lambda event: act()
    waiting: asyncio.TimerHandle | None = None

    def restart() -> None:
        nonlocal waiting
        if waiting is not None:
            waiting.cancel()
        waiting = loop.call_later(pause_s, act)

    def handle(event: object) -> None:
        loop.call_soon_threadsafe(restart)

    return handle


def explore_figure(view: View) -> Figure:
    """Schedule, frontier and one day, in three panels."""
    with style(), mpl.rc_context(FAST):  # type: ignore[arg-type]
        figure = Figure(figsize=(10, 3.6))
        figure.subplots_adjust(left=0.055, right=0.99, top=0.83, bottom=0.23, wspace=0.22, hspace=0.12)
        panels = figure.subplot_mosaic("abc;abd")
        _schedule_panel(panels["a"], view)
        _frontier_panel(panels["b"], view)
        _day_panels(panels["c"], panels["d"], view)
        gain, low, high = view.gain_bps
        message = (
            f"FlowOE over the static optimum: {gain:+.2f} bps of utility (95 %: {low:+.2f} to {high:+.2f})"
        )
        figure.suptitle(message, x=0.01, ha="left", fontsize=10, fontweight="bold")
        figure.legend(*panels["a"].get_legend_handles_labels(), loc="lower left", ncols=4)
    return figure


def _schedule_panel(axes: Axes, view: View) -> None:
    for policy, row in view.schedule.groupby("policy", sort=False):
        look = LOOKS[str(policy)]
        axes.fill_between(row["time"], row["low"], row["high"], color=look.colour, alpha=0.2, lw=0)
        axes.plot(row["time"], row["middle"], color=look.colour, linestyle=look.line, label=look.name)
    axes.set(title="Schedule; shaded: 80 % of days", xlabel="time of day", ylabel="inventory, of the order")
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _frontier_panel(axes: Axes, view: View) -> None:
    for policy, row in view.frontier.groupby("policy", sort=False):
        look, curve, own = LOOKS[str(policy)], row.sort_values("risk_aversion"), row.iloc[0]
        axes.plot(curve["risk_bps"], curve["cost_bps"], color=look.colour, linestyle=look.line)
        axes.plot(own["risk_bps"], own["cost_bps"], look.marker, color=look.colour)
    axes.set(title="Frontier; marked: your λ", xlabel="price risk (sd), bps", ylabel="expected cost, bps")


def _day_panels(market: Axes, trades: Axes, view: View) -> None:
    day, flow, twap = view.day, LOOKS["flow_refined"], LOOKS["twap"]
    market.plot(day["time"], day["variance"], color="black", lw=1.2, label="variance")
    market.plot(day["time"], day["liquidity"], color="#4aa89d", lw=1.2, ls="--", label="depth × volume")
    market.set(title="One day", ylabel="over its usual level", xlim=(0, 1), ylim=(0, None))
    market.tick_params(labelbottom=False)
    # The legend goes above the frame, beside the title.
    market.legend(
        loc="lower right",
        bbox_to_anchor=(1.02, 0.97),
        borderaxespad=0,
        ncols=2,
        fontsize=8,
        handlelength=1.3,
        columnspacing=1,
    )
    trades.stairs(100 * day["traded"], np.linspace(0, 1, len(day) + 1), fill=True, color=flow.colour)
    trades.plot(day["time"], 100 * day["twap"], color=twap.colour, linestyle=twap.line)
    trades.set(xlabel="time of day", ylabel="traded, %", xlim=(0, 1), ylim=(0, None))
