"""Figures of a plan: its schedule, its frontier of cost and risk, and one simulated day."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from flowoe_lib.plotting import LOOKS, line, style, titled


def _by_time(axes: Axes, starts: pd.Index, ylabel: str) -> None:
    """Finish a lower panel: its legend, its labels, and the time of day of about seven buckets."""
    step = max(1, len(starts) // 6)
    axes.set_xticks(np.arange(0, len(starts), step), starts.str[:5][::step])
    axes.set(ylabel=ylabel, xlabel="time of day", ylim=(0, None))
    axes.legend(ncols=2)


def schedule_figure(schedule: pd.DataFrame, shares: float, policy: str = "flow_refined") -> Figure:
    """Shares left, with the 80 % band of ``policy`` and the benchmarks, and its participation below.

    ``schedule`` is that of :class:`flowoe_lib.desk.planner.Plan`.
    """
    with style():
        figure, (upper, lower) = plt.subplots(2, 1, figsize=(7.2, 4.6), sharex=True, height_ratios=(2.2, 1))
        edges, look = np.arange(len(schedule) + 1), LOOKS[policy]
        low, high = (np.r_[shares, schedule[c]] for c in ("low", "high"))
        upper.fill_between(edges, low, high, color=look.colour, alpha=0.2, label=f"{look.name}, 80 % of days")
        line(upper, edges, np.r_[shares, schedule["median"]], policy)
        for name in schedule.columns.intersection(list(LOOKS)):
            line(upper, edges, np.r_[shares, schedule[name]], name)
        upper.set(ylabel="shares left", ylim=(0, None))
        upper.yaxis.set_major_formatter(EngFormatter())
        upper.legend(ncols=2)
        percent = 100 * schedule[["participation", "participation_high"]]
        for column, dash, label in zip(percent, ("-", "--"), ("median day", "one day in ten"), strict=True):
            lower.step(edges[:-1], percent[column], dash, where="post", color=look.colour, label=label)
        _by_time(lower, schedule.index, "share of volume, %")
        return titled(figure, "Inventory through the day")


def order_frontier_figure(frontier: pd.DataFrame, costs: pd.DataFrame) -> Figure:
    """Expected cost against risk as risk aversion varies; the markers are at the plan's risk aversion.

    Both tables are those of :class:`flowoe_lib.desk.planner.Plan`.
    """
    with style():
        figure, axes = plt.subplots(figsize=(5.4, 3.4))
        curves = frontier.groupby("policy", sort=False).filter(lambda rows: rows["std_bps"].nunique() > 1)
        for name, rows in curves.groupby("policy", sort=False):
            line(axes, rows["std_bps"], rows["cost_bps"], str(name))
            axes.lines[-1].set_marker("")
        for name, std, cost in zip(costs.index, costs["std_bps"], costs["cost_bps"], strict=True):
            look = LOOKS[name]
            alone = None if name in set(curves["policy"]) else look.name
            axes.plot(std, cost, look.marker, color=look.colour, label=alone)
        axes.set(xlabel="standard deviation of cost, bps", ylabel="expected cost, bps")
        axes.legend()
        return titled(figure, "Less risk costs more; marked: the risk aversion in use")


def day_figure(day: pd.DataFrame, policy: str = "flow_refined") -> Figure:
    """One simulated day: volatility and depth above, trades below.

    ``day`` is that of :class:`flowoe_lib.desk.planner.Plan`.
    """
    with style():
        figure, (upper, lower) = plt.subplots(2, 1, figsize=(7.2, 4.2), sharex=True)
        edges = np.arange(len(day) + 1)
        for name, colour, linestyle in (("volatility", "#22313f", "-"), ("depth", "#8a9bb0", "--")):
            upper.stairs(day[name], edges, baseline=None, color=colour, linestyle=linestyle, label=name)
        upper.axhline(1, color="black", linewidth=0.6)
        upper.set(ylabel="over its usual level")
        upper.legend(ncols=2)
        for column, name in (("traded", policy), ("static_traded", "static_optimal")):
            look = LOOKS[name]
            lower.stairs(day[column], edges, baseline=None, color=look.colour, ls=look.line, label=look.name)
        lower.yaxis.set_major_formatter(EngFormatter())
        _by_time(lower, day.index, "shares traded")
        return titled(figure, "One simulated day: volatility, depth and trades")
