"""Figures of policies: schedules, learning curves, utility and comparisons.

One look per policy in every figure: colour, line and name. Each function takes the table it shows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter, SymmetricalLogLocator

from flowoe_lib.evaluation.verdicts import MATERIAL
from flowoe_lib.plotting import LOOKS, Look, by_name, line, panel_grid, style, titled

PLAIN = Look("", "#22313f", "-", "o")
"""Rows that are not one policy each."""


@style()
def inventory_figure(plans: Mapping[str, Mapping[str, Sequence[float]]], message: str) -> Figure:
    """Inventory over the day, one panel per condition: ``plans[condition][policy]`` is q_0 ... q_N."""
    figure, panels = panel_grid(len(plans), 3, ylabel="inventory,\nshare of the order")
    for axes, (condition, by_policy) in zip(panels, plans.items(), strict=True):
        for policy, inventory in by_policy.items():
            line(axes, np.linspace(0, 1, len(inventory)), inventory, policy)
        axes.set(title=condition, xlabel="share of the day passed", ylim=(0, 1))
    return titled(figure, message, *panels)


@style()
def frontier_figure(curves: pd.DataFrame, marked: pd.DataFrame, message: str) -> Figure:
    """Expected cost against standard deviation, traced by varying risk aversion.

    ``curves`` and ``marked`` have columns condition, policy, std_bps, cost_bps; ``marked`` are the
    points of the risk aversion in use. A policy that has one has no other marker.
    """
    figure, panels = panel_grid(curves["condition"].nunique(), 3, 2.6, "expected cost, bps")
    for axes, (condition, rows) in zip(panels, curves.groupby("condition", sort=False), strict=True):
        here = marked[marked["condition"] == condition]
        for policy, row in rows.groupby("policy", sort=False):
            line(axes, row["std_bps"], row["cost_bps"], str(policy))
            if policy in set(here["policy"]):
                axes.lines[-1].set(marker="", label=None)
        for policy, point in here.groupby("policy", sort=False):
            look = LOOKS[str(policy)]
            axes.plot(point["std_bps"], point["cost_bps"], look.marker, color=look.colour, label=look.name)
        axes.set(title=condition, xlabel="standard deviation, bps")
        axes.locator_params(axis="x", nbins=4)
    return titled(figure, message, *panels)


@style()
def rl_figure(learning: pd.DataFrame, message: str) -> Figure:
    """Capture over decisions and over processor seconds in every condition; all methods in one condition.

    ``learning`` has columns opponent, condition, seed, decisions, seconds, capture; the first opponent is the
    one in use, the others are other methods.
    """
    floor, colours = -0.2, (LOOKS["rl"].colour, "#22313f", "#7f8c99", "#b3bcc5")
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(7.2, 2.8), sharey=True)
    runs = list(dict.fromkeys(learning["opponent"]))
    main = learning[learning["opponent"] == runs[0]]
    for _, row in main.groupby(["condition", "seed"], sort=False):
        for axes, spent in ((left, "decisions"), (middle, "seconds")):
            axes.plot(row[spent], row["capture"], color=LOOKS["rl"].colour, lw=0.9, alpha=0.7)
    where = learning[learning["opponent"] != runs[0]]["condition"].iloc[0]
    for run, dashes, colour in zip(runs, ("-", "--", ":", "-."), colours, strict=False):
        row = learning.query("opponent == @run and condition == @where and seed == 0")
        label = run if row["capture"].max() > floor else f"{run} (below the frame)"
        right.plot(row["seconds"], row["capture"], color=colour, linestyle=dashes, label=label)
    left.set(title=f"{runs[0]}, one line per condition and seed", xlabel="decisions", ylim=(floor, 1.05))
    left.xaxis.set_major_formatter(EngFormatter(sep=""))
    left.set_ylabel("capture: TWAP 0, oracle 1")
    middle.set(xlabel="processor seconds")
    right.set(title=where, xlabel="processor seconds")
    for axes in (left, middle, right):
        axes.axhline(1, color="black", lw=0.8, ls=":")
    return titled(figure, message, right, ncols=2)


@style()
def selection_figure(shares: pd.DataFrame, message: str) -> Figure:
    """Share of decisions nearest to each expert: ``shares`` is [conditions, experts], rows sum to one."""
    figure, axes = plt.subplots(figsize=(7.2, 0.32 * len(shares) + 1.2))
    named = by_name(shares)
    _heat(axes, named, ".2f", 1)
    axes.set(xlabel="expert whose decision is nearest", ylabel="")
    axes.set_xticklabels([name.replace(" ", "\n").replace("-", "-\n") for name in named.columns])
    return titled(figure, message)


def _heat(axes: Axes, cells: pd.DataFrame, digits: str, top: float) -> None:
    look = {"cmap": "Greys", "vmin": 0, "vmax": 1.8 * top, "annot_kws": {"color": "black"}, "lw": 0.5}
    sns.heatmap(cells.clip(upper=1.8 * top), ax=axes, annot=cells, fmt=digits, cbar=False, **look)
    axes.tick_params(axis="y", rotation=0)
    axes.tick_params(length=0)
    axes.grid(visible=False)


@style()
def loss_figure(losses: pd.DataFrame, message: str) -> Figure:
    """Matching loss over iterations, smoothed, with the range over training seeds (columns)."""
    figure, axes = plt.subplots(figsize=(5.2, 2.8))
    _band(axes, losses.rolling(25, min_periods=1).mean(), LOOKS["flow_imitation"].colour)
    axes.set(xlabel="iteration", ylabel="weighted matching loss", yscale="log")
    return titled(figure, message)


def _band(axes: Axes, runs: pd.DataFrame, colour: str) -> None:
    axes.fill_between(runs.index, runs.min(axis=1), runs.max(axis=1), color=colour, alpha=0.25, lw=0)
    axes.plot(runs.index, runs.mean(axis=1), color=colour)


@style()
def learning_figure(utility: pd.DataFrame, gradient: pd.DataFrame, message: str) -> Figure:
    """Utility over TWAP on validation days and gradient norm, mean and range over training seeds (columns).

    The rows of ``utility`` divide training into equal parts; those of ``gradient`` are iterations.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.6))
    colour = LOOKS["flow_refined"].colour
    _band(left, utility.set_axis(np.linspace(0, len(gradient), len(utility))), colour)
    _band(right, gradient.rolling(15, min_periods=1).mean(), colour)
    left.set(xlabel="iteration", ylabel="utility over TWAP,\nestimated gain = 1")
    right.set(xlabel="iteration", ylabel="gradient norm before clipping", yscale="log")
    return titled(figure, message)


@style()
def reaction_figure(reactions: pd.DataFrame, message: str) -> Figure:
    """Traded share of inventory in a bucket against the current variance, one panel per time of day.

    ``reactions`` has columns time, policy, variance_ratio, fraction, and twap_fraction.
    """
    figure, panels = panel_grid(reactions["time"].nunique(), 3, 3.2, "trading speed, TWAP = 1")
    for axes, (time, rows) in zip(panels, reactions.groupby("time"), strict=True):
        if axes is not panels[0]:
            axes.sharey(panels[0])
        for policy, row in rows.groupby("policy", sort=False):
            line(axes, row["variance_ratio"], row["fraction"] / row["twap_fraction"], str(policy))
        axes.set(title=f"{time:.0%} of the day passed", xlabel="variance over its mean")
        axes.set(xscale="log", yscale="log")
        axes.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
        axes.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
        axes.yaxis.set_minor_formatter(NullFormatter())
    return titled(figure, message, panels[0])


@style()
def solver_figure(rows: pd.DataFrame, message: str) -> Figure:
    """Advantage over the best expert by solver steps, a line per condition.

    ``rows`` has columns condition, policy, solver_steps, advantage (of the best expert's utility).
    """
    figure, axes = plt.subplots(figsize=(5.6, 3.0))
    for policy, by_policy in rows.groupby("policy"):
        look = LOOKS[str(policy)]
        for _, row in by_policy.groupby("condition", sort=False):
            axes.plot(row["solver_steps"], row["advantage"], color=look.colour, ls=look.line, lw=0.9)
        axes.plot([], [], color=look.colour, ls=look.line, label=f"{look.name}, one line per condition")
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axes.set(xlabel="solver steps K", ylabel="utility over the best expert,\nshare of its cost")
    axes.locator_params(axis="y", steps=[1, 2, 5, 10])
    axes.yaxis.set_major_formatter(_percent)
    return titled(figure, message, axes, ncols=2)


def _percent(share: float, place: float) -> str:
    return f"{100 * share:g}%"


def _name_rows(axes: Axes, names: pd.Series) -> npt.NDArray[np.int64]:
    """Label rows from the top with ``names``, each once, and return the row of each entry."""
    places, labels = pd.factorize(names)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    return places


def _intervals(axes: Axes, rows: pd.DataFrame, y: npt.ArrayLike, look: Look, **options: Any) -> None:
    """Markers with error bars: the columns of ``rows`` are the value and the ends of its interval."""
    value, low, high = (rows[column] for column in rows)
    reach = [value - low, high - value]
    axes.errorbar(value, y, xerr=reach, fmt=look.marker, color=look.colour, **{"ms": 4} | options)


def _symmetric_log(axes: Axes, linear: float) -> None:
    """A horizontal axis that is logarithmic beyond ``linear`` on either side of zero, and hatched within."""
    hatched: dict[str, Any] = {"facecolor": "none", "edgecolor": "#dcdcdc", "hatch": "////", "lw": 0}
    axes.axvspan(-linear, linear, zorder=0, label="linear part of the axis", **hatched)
    axes.set_xscale("symlog", linthresh=linear)
    decades = np.log10(np.abs(axes.get_xlim()).max() / linear)
    subs = (1, 2, 5) if decades < 1 else (1,)
    axes.xaxis.set_major_locator(SymmetricalLogLocator(linthresh=linear, base=10, subs=subs))


def _by_condition(
    rows: pd.DataFrame, ends: Sequence[str], apart: float, **options: Any
) -> tuple[Figure, Axes]:
    """Intervals of policies, a row per condition; the markers of a row are ``apart``."""
    figure, axes = plt.subplots(figsize=(6.4, 0.3 * rows["condition"].nunique() + 1.3))
    rows = rows.assign(place=_name_rows(axes, rows["condition"]))
    middle = (rows["policy"].nunique() - 1) / 2
    for i, (policy, row) in enumerate(rows.groupby("policy", sort=False)):
        look, place = LOOKS[str(policy)], row["place"] + apart * (i - middle)
        _intervals(axes, row[ends], place, look, label=look.name, **options)
    return figure, axes


@style()
def advantage_figure(rows: pd.DataFrame, message: str) -> Figure:
    """Utility less the best opponent's, with 95 % intervals: a row per condition, a marker per policy.

    ``rows`` has columns condition, policy, advantage, ci_low, ci_high (shares of the best opponent's cost).
    The axis is logarithmic beyond 1e-5 on either side of zero, and the range in between is hatched.
    """
    figure, axes = _by_condition(rows, ["advantage", "ci_low", "ci_high"], 0.16)
    axes.axvline(0, color="black", lw=0.8)
    _symmetric_log(axes, linear=1e-5)
    axes.xaxis.set_major_formatter(_percent)
    axes.set(xlabel="utility less that of the best opponent, share of its cost")
    return titled(figure, message, axes)


@style()
def capture_figure(rows: pd.DataFrame, message: str) -> Figure:
    """The missed share of the oracle's gain over TWAP, one less capture, with 95 % intervals.

    ``rows`` has columns condition, policy, capture, capture_ci_low, capture_ci_high: a row of the figure per
    condition, in their order. A share below ``least`` is drawn there.
    """
    least = 1e-5
    ends = ["capture", "capture_ci_high", "capture_ci_low"]
    rows = rows[rows["policy"] != "oracle"].assign(**(1 - rows[ends]).clip(lower=least))
    figure, axes = _by_condition(rows, ends, 0.08, elinewidth=0.8)
    label = f"missed share of the oracle's gain over TWAP (1 - capture, at least {least:g})"
    axes.set(xscale="log", xlabel=label)
    return titled(figure, message, axes, ncols=4)


@style()
def interval_figure(
    rows: pd.DataFrame, quantities: Mapping[str, str], message: str, linear: float | None = None
) -> Figure:
    """Quantities with their 95 % intervals: a row per policy, a panel per quantity.

    ``rows`` has the column policy, and each quantity with its ``..._ci_low`` and ``..._ci_high``;
    ``quantities`` names its axis. If ``linear`` is given, axes are logarithmic beyond it on either side of
    zero, and the range in between is hatched.
    """
    size = (7.2, 0.26 * len(rows) + 1.4)
    figure, panels = plt.subplots(1, len(quantities), figsize=size, sharey=True, squeeze=False)
    place = _name_rows(panels[0, 0], rows["policy"])
    for axes, (name, label) in zip(panels[0], quantities.items(), strict=True):
        ends = rows[[name, f"{name}_ci_low", f"{name}_ci_high"]]
        _intervals(axes, ends, place, PLAIN, label="mean with its 95 % interval")
        axes.axvline(0, color="black", lw=0.8)
        axes.set(xlabel=label)
        if linear is not None:
            _symmetric_log(axes, linear)
            axes.xaxis.set_major_formatter("{x:g}")
    return titled(figure, message, panels[0, 0])


@style()
def risk_return_figure(rows: pd.DataFrame, message: str) -> Figure:
    """Change in mean and standard deviation against each benchmark: one panel each, one dot per condition.

    ``rows`` has columns expert, mean (bps above the benchmark's) and std (a share of it). Up and left is
    better at both.
    """
    figure, panels = panel_grid(rows["expert"].nunique(), 3, 2.6, "change in mean P&L, bps")
    for axes, (expert, row) in zip(panels, rows.groupby("expert", sort=False), strict=True):
        look = LOOKS["flow_refined"]
        axes.axvspan(-10, 0, 0.5, 1, color="#dfe9df", lw=0)
        axes.plot(row["std"], row["mean"], look.marker, color=look.colour, ms=4)
        x, y = 1.2 * row["std"].abs().max(), 1.2 * row["mean"].abs().max()
        axes.set(title=f"against {LOOKS[str(expert)].name}", xlabel="change in standard deviation")
        axes.set(xlim=(-x, x), ylim=(-y, y))
        axes.axhline(0, color="black", lw=0.8)
        axes.axvline(0, color="black", lw=0.8)
        axes.xaxis.set_major_formatter(_percent)
        axes.locator_params(axis="x", nbins=5)
    figure.text(0.97, 0.25, "shaded: higher mean and\nlower standard deviation", ha="right")
    return titled(figure, message)


@style()
def world_figure(rows: pd.DataFrame, message: str) -> Figure:
    """Gain over the best opponent with its 95 % interval, a panel per world, a named row per condition.

    ``rows`` has columns world, condition, and utility, utility_ci_low, utility_ci_high as shares of the cost.
    """
    counts = rows["world"].value_counts(sort=False)
    columns = [part for _, part in counts.groupby(counts.cumsum() - counts >= counts.sum() / 2)]
    figure = plt.figure(figsize=(7.2, 0.17 * max(int(part.sum()) for part in columns) + 2.4))
    for half, part in zip(figure.subfigures(1, len(columns), squeeze=False)[0], columns, strict=True):
        panels = half.subplots(len(part), 1, squeeze=False, height_ratios=part + 3)[:, 0]
        for axes, world in zip(panels, part.index, strict=True):
            row = rows[rows["world"] == world]
            place = _name_rows(axes, row["condition"])
            ends = row[["utility", "utility_ci_low", "utility_ci_high"]]
            axes.axvspan(-MATERIAL, MATERIAL, color="#e8e8e8", lw=0, zorder=0)
            _intervals(axes, ends, place, LOOKS["flow_refined"], ms=3)
            axes.tick_params(axis="y", labelsize=7)
            axes.axvline(0, color="black", lw=0.8)
            axes.xaxis.set_major_formatter(lambda share, place: f"{100 * share:g}")
            axes.locator_params(axis="x", nbins=5, steps=[1, 2, 5, 10])
            axes.set(title=world)
    figure.supxlabel(
        "difference in utility with its 95 % interval, % of the best opponent's cost; shaded: not material",
        fontsize=9,
    )
    return titled(figure, message)


@style()
def replay_figure(
    market: pd.DataFrame, inventories: Mapping[str, npt.ArrayLike], hours: float, message: str
) -> Figure:
    """One recorded order: price, variance, volume and the inventory of policies, one panel each.

    ``market``: a row a bucket, columns price_bps (since arrival), variance and volume over their levels
    before it, each also with ``_seen``, what was known of it. ``inventories``: q_0 ... q_N by policy.
    """
    figure, panels = panel_grid(4, 2, height=2.1)
    edges = np.linspace(0, hours, len(market) + 1)
    panels[0].plot(edges, np.r_[0, market["price_bps"]], color="#22313f")
    panels[0].set(title="price", ylabel="bps since arrival")
    for axes, name in zip(panels[1:], ("variance", "volume"), strict=False):
        now, before = market[name], market[f"{name}_seen"]
        axes.stairs(now, edges, baseline=None, color="#9fb3c8", lw=1.5, label="in the bucket")
        axes.stairs(before, edges, baseline=None, color="#22313f", lw=1.5, label="forecast")
        axes.set(title=name, ylabel="over prior level", ylim=(0, 1.3 * max(now.max(), before.max())))
        axes.legend(loc="upper right", ncols=2)
    for policy, inventory in inventories.items():
        line(panels[3], edges, inventory, policy)
    panels[3].set(title="inventory", ylabel="share of the order", ylim=(0, 1))
    panels[3].legend()
    for axes in panels[2:]:
        axes.set_xlabel("hours since arrival")
    return titled(figure, message)


@style()
def impact_figure(rows: pd.DataFrame, message: str) -> Figure:
    """FlowOE's gain over multiples of the modelled impact with its 95 % band, a panel per comparison.

    ``rows`` has columns comparison, multiple, mean, ci_low, ci_high (bps).
    """
    figure, panels = panel_grid(rows["comparison"].nunique(), 3, ylabel="gain, bps")
    for axes, (name, row) in zip(panels, rows.groupby("comparison", sort=False), strict=True):
        line(axes, row["multiple"], row["mean"], "flow_refined")
        colour = LOOKS["flow_refined"].colour
        axes.fill_between(row["multiple"], row["ci_low"], row["ci_high"], color=colour, alpha=0.2, lw=0)
        axes.axhline(0, color="black", lw=0.8)
        axes.axvline(1, color="black", lw=0.8, ls=":")
        axes.set(title=name, xlabel="impact / modelled impact")
    return titled(figure, message)


@style()
def robustness_figure(table: pd.DataFrame, message: str) -> Figure:
    """Heat map of regret, percent of cost: a panel a policy, settings by rows, tests by columns."""
    names, order = table["policy"].unique(), table["tested_in"].unique()
    figure, panels = plt.subplots(1, len(names), figsize=(2.4 * len(names), 3.4), sharey=True)
    for axes, name in zip(panels, names, strict=True):
        rows = table[table["policy"] == name]
        cells = 100 * rows.pivot(index="setting", columns="tested_in", values="regret")
        _heat(axes, cells.reindex(index=order, columns=order), "z.1f", 10)
        axes.set(title=name, xlabel="B, true market", ylabel="")
    panels[0].set_ylabel("A, believed market")
    return titled(figure, f"{message} (regret, % of cost)")
