"""The page of the explorer: a slider for each setting, and the numbers and pictures of its results."""

import asyncio
import html
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import log10
from typing import Any, NamedTuple

import ipywidgets
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure, FigureBase
from pandas.io.formats.style import Styler

from flowoe_lib.desk.explorer import Settings, View, bounds, explore
from flowoe_lib.plotting import LOOKS, by_name, style
from flowoe_lib.training.pretrained import PretrainedPolicy

Panel = Callable[[FigureBase, View], None]
"""Draws a part of the results; its last axes hold what the legend lists."""


PAUSE_S = 0.05
"""Time after the last move of a slider until the page is redrawn."""


FAST = {"figure.constrained_layout.use": False, "axes.titley": 1.0}
"""Automatic layout and placement of titles would take longer than all other drawing."""


SIZE = (4.8, 3.3)
"""Inches of a panel: in a narrow window the panels stand below each other, and stay legible."""


PRESETS: dict[str, Mapping[str, float]] = {
    "calm": {"volatility": 0.007, "illiquidity": 1.0},
    "stressed": {"volatility": 0.02, "illiquidity": 1.0},
    "crisis": {"volatility": 0.04, "illiquidity": 3.0},
}
"""Settings that a button changes: levels of the grid of conditions."""


WRAPPED = {"flex": "1 1 420px", "min_width": "0px", "max_width": "640px"}
"""Layout of what stands side by side where the window is wide enough."""


ROW = {"flex_flow": "row wrap", "align_items": "flex-start"}


class Dial(NamedTuple):
    """Label, step and units of the slider of a setting."""

    setting: str
    label: str
    step: float
    """Step in units of the slider, or in decades if it is logarithmic."""
    logarithmic: bool = False
    scale: float = 1.0
    """Units of the slider in one unit of the setting."""

    def bounds(self, trained: PretrainedPolicy) -> tuple[float, float]:
        """The range of the setting, in units of the slider."""
        low, high = bounds(trained, self.setting)
        return self.scale * low, self.scale * high

    def slider(self, trained: PretrainedPolicy, start: Settings) -> ipywidgets.Widget:
        """The slider over the range of the setting, at its value in ``start``."""
        kind = ipywidgets.FloatLogSlider if self.logarithmic else ipywidgets.FloatSlider
        low, high = (log10(end) if self.logarithmic else end for end in self.bounds(trained))
        return kind(
            value=self.scale * getattr(start, self.setting),
            min=low,
            max=high,
            step=self.step,
            description=self.label,
            continuous_update=False,
            style={"description_width": "15em"},
            layout=WRAPPED,
        )


DIALS = (
    Dial("volatility", "volatility, % per √day", 0.02, logarithmic=True, scale=100),
    Dial("cv", "variation of variance", 0.02),
    Dial("illiquidity", "illiquidity, normal = 1", 0.1),
    Dial("depth_sd", "depth variability, sd of log", 0.05),
    Dial("size", "order size, % of ADV", 0.02, logarithmic=True, scale=100),
    Dial("eta", "temporary impact η", 0.02, logarithmic=True),
    Dial("beta", "impact exponent β", 0.01),
    Dial("gamma", "permanent impact γ", 0.01),
    Dial("half_life", "half-life of impact, days", 0.05),
    Dial("risk_aversion", "risk aversion λ, 10⁻⁴ per bps", 0.02, logarithmic=True, scale=1e4),
    Dial("drift", "drift, daily sd", 0.05),
    Dial("signal", "signal, daily sd", 0.02),
    Dial("level", "unannounced level, sd of log", 0.05),
)


class Page:
    """Buttons, sliders at ``start``, a line for messages, and the results; display ``widget``.

    ``Settings(**fit.options)`` starts it at the impact coefficients of a fit,
    :func:`flowoe_lib.data.impact_fit.fit_impact`. Raises ValueError as :meth:`Settings.condition`.
    """

    def __init__(self, trained: PretrainedPolicy, seed: int, start: Settings) -> None:
        start.condition(trained)
        self.trained, self.seed = trained, seed
        self.sliders = {dial.setting: dial.slider(trained, start) for dial in DIALS}
        presets = PRESETS | {"reset": vars(start)}
        self.buttons = {name: ipywidgets.Button(description=name) for name in presets}
        self.message, self.numbers = ipywidgets.HTML(), ipywidgets.HTML()
        self.pictures = [ipywidgets.Image(format="png", layout=WRAPPED) for _ in PANELS]
        moved = newest_only(self.draw, PAUSE_S)
        for slider in self.sliders.values():
            slider.observe(moved, "value")
        for name, button in self.buttons.items():
            button.on_click(partial(self.choose, presets[name]))
        parts = (self.buttons.values(), self.sliders.values(), self.pictures)
        rows = [ipywidgets.Box(list(part), layout=ROW) for part in parts]
        self.results = ipywidgets.VBox([self.numbers, rows[2]])
        self.widget = ipywidgets.VBox([*rows[:2], self.message, self.results], layout={"max_width": "1300px"})
        self.draw()

    @property
    def settings(self) -> Settings:
        """The settings of the sliders."""
        return Settings(**{d.setting: self.sliders[d.setting].value / d.scale for d in DIALS})

    def choose(self, preset: Mapping[str, float], button: object) -> None:
        """Move the sliders of ``preset``."""
        for dial in DIALS:
            if dial.setting in preset:
                self.sliders[dial.setting].value = dial.scale * preset[dial.setting]

    def draw(self) -> None:
        """Show the results for the sliders, or the error message."""
        try:
            view = explore(self.settings, self.trained, self.seed)
        except ValueError as error:
            self.message.value = f"<b>Cannot be shown:</b> {html.escape(str(error))}"
            self.results.layout.visibility = "hidden"
            return
        self.numbers.value = numbers_table(view).to_html()
        for panel, picture in zip(PANELS, self.pictures, strict=True):
            buffer = io.BytesIO()
            figure = explore_figure(view, [panel], (1, 1))
            figure.savefig(buffer, format="png", dpi=110, pil_kwargs={"compress_level": 1})
            picture.value = buffer.getvalue()
        outside = f"<b>Outside the training range:</b> {html.escape('; '.join(view.outside))}"
        self.message.value, self.results.layout.visibility = outside * bool(view.outside), "visible"


def newest_only(act: Callable[[], None], pause_s: float) -> Callable[[object], object]:
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

    return lambda event: loop.call_soon_threadsafe(restart)


def headline(view: View) -> str:
    """The gain over the best fixed schedule, in a sentence."""
    gain, low, high = (f"{x:+z.2f}" for x in view.gain_bps)
    return f"FlowOE over the static optimum: {gain} bps of utility (95 %: {low} to {high})"


def numbers_table(view: View) -> Styler:
    """The numbers of the order by policy, formatted, the largest gain in bold."""
    table, gain = by_name(view.numbers), "gain over TWAP, bps"
    table.columns = ["expected cost, bps", "price risk (sd), bps", "cost + λ risk², bps", gain]
    styled = table.rename_axis(None).style.format("{:z.2f}").format("{:+z.2f}", subset=[gain])
    return styled.highlight_max(subset=[gain], props="font-weight: bold").set_caption(headline(view))


def _drawn(policy: str) -> dict[str, Any]:
    look = LOOKS[policy]
    return {"color": look.colour, "linestyle": look.line, "label": look.name}


def _schedule_panel(figure: FigureBase, view: View) -> None:
    axes = figure.subplots()
    for policy, row in view.schedule.groupby("policy", sort=False):
        look = _drawn(str(policy))
        axes.fill_between(row["time"], row["low"], row["high"], color=look["color"], alpha=0.2, lw=0)
        axes.plot(row["time"], row["middle"], **look)
    axes.set(title="Schedule; shaded: 80 % of days", xlabel="time of day", ylabel="inventory, of the order")
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _frontier_panel(figure: FigureBase, view: View) -> None:
    axes = figure.subplots()
    for policy, row in view.frontier.groupby("policy", sort=False):
        curve, look = row.sort_values("risk_aversion"), _drawn(str(policy))
        own = [curve.index.get_loc(row.index[0])]
        axes.plot(curve["risk_bps"], curve["cost_bps"], LOOKS[str(policy)].marker, markevery=own, **look)
    axes.set(title="Frontier; marked: your λ", xlabel="price risk (sd), bps", ylabel="expected cost, bps")


def _cause(table: pd.DataFrame) -> str:
    """What trades react to most: the signal where there is one."""
    return "signal" if table["signal"].any() else "volatility"


def _reaction_panel(figure: FigureBase, view: View) -> None:
    axes, days, colour = figure.subplots(), view.reaction, LOOKS["flow_refined"].colour
    thin = days["depth"] < days["depth"].median()
    cause = _cause(days)
    for name, rows in days.groupby(thin.map({True: "FlowOE, thin market", False: "FlowOE, deep market"})):
        fill = "none" if "thin" in str(name) else colour
        axes.plot(rows[cause], 100 * rows["traded"], "o", ms=4, mec=colour, mfc=fill, label=name)
    axes.axhline(100 * view.day["static"][0], **_drawn("static_optimal"))
    axes.set(title="Reaction: the first trade on each day", ylim=(0, max(1, 1.1 * axes.dataLim.y1)))
    axes.set(ylabel="traded, % of the order")
    if cause == "signal":
        axes.set_xlabel("signal at the open, daily sd; above 0 the price rises")
    else:
        axes.set(xlim=(0, 1.1 * axes.dataLim.x1), xlabel="volatility at the open, over its usual level")


def _day_panel(figure: FigureBase, view: View) -> None:
    upper, liquidity, trades = panels = figure.subplots(3, 1, sharex=True)
    day, flow, edges = view.day, LOOKS["flow_refined"], np.linspace(0, 1, len(view.day) + 1)
    cause = _cause(day)
    upper.plot(day["time"], day[cause], color="black", lw=1.2)
    liquidity.plot(day["time"], day["liquidity"], color="#2f7d72", lw=1.2)
    trades.stairs(100 * day["traded"], edges, fill=True, color=flow.colour, alpha=0.6, label=flow.name)
    trades.stairs(100 * day["static"], edges, lw=1.2, **_drawn("static_optimal"))
    for axes, name in zip(panels, (cause, "liquidity", "traded, %"), strict=True):
        ends = min(0, 1.1 * axes.dataLim.y0), max(0, 1.1 * axes.dataLim.y1)
        axes.set(ylabel=name, xlim=(0, 1), ylim=ends)
    upper.set_title("One day; liquidity: depth × volume; usual = 1")
    trades.set_xlabel("time of day")


PANELS = (_schedule_panel, _frontier_panel, _reaction_panel, _day_panel)


def explore_figure(view: View, panels: Sequence[Panel] = PANELS, shape: tuple[int, int] = (2, 2)) -> Figure:
    """The ``panels`` in ``shape`` rows and columns."""
    with style(), mpl.rc_context(FAST):  # type: ignore[arg-type]
        figure = Figure(figsize=(SIZE[0] * shape[1], SIZE[1] * shape[0]))
        figure.subplots_adjust(left=0.14, right=0.97, top=0.84, bottom=0.24, hspace=0.25)
        for part, panel in zip(figure.subfigures(*shape, squeeze=False).flat, panels, strict=True):
            panel(part, view)
            for axes in part.axes:
                axes.locator_params(nbins=4)
            legend = part.axes[-1].get_legend_handles_labels()
            part.legend(*legend, loc="lower center", ncols=4, fontsize=8, handlelength=1.9, columnspacing=1)
    return figure
