"""Figures of policies: what they do, how they learn, what they earn.

One look per policy in every figure: colour, line and name. Each function takes the table it shows.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import ArrayLike

from flowoe_lib.plotting import LOOKS, line, panel_grid, style

__all__ = [
    "ablation_figure",
    "advantage_figure",
    "capture_figure",
    "frontier_figure",
    "inventory_figure",
    "learning_figure",
    "loss_figure",
    "paired_figure",
    "reaction_figure",
    "replay_figure",
    "risk_return_figure",
    "rl_figure",
    "selection_figure",
    "solver_figure",
    "world_figure",
]


def inventory_figure(plans: Mapping[str, Mapping[str, Sequence[float]]], message: str) -> Figure:
    """Inventory over the day, a panel per condition: ``plans[condition][policy]`` is q_0 ... q_N."""
    with style():
        figure, panels = panel_grid(len(plans), 3)
        for axes, (condition, by_policy) in zip(panels, plans.items(), strict=True):
            for policy, inventory in by_policy.items():
                line(axes, np.linspace(0, 1, len(inventory)), inventory, policy)
            axes.set(title=condition, xlabel="time of day", ylim=(0, 1))
        panels[0].set_ylabel("inventory, of the order")
        figure.suptitle(message, x=0.01, ha="left", fontsize=10, fontweight="bold")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def frontier_figure(curves: pd.DataFrame, marked: pd.DataFrame, message: str) -> Figure:
    """Expected cost against the standard deviation that risk aversion buys.

    ``curves`` and ``marked`` have columns condition, policy, std_bps, cost_bps; ``marked`` are the
    points of the risk aversion in use.
    """
    with style():
        figure, panels = panel_grid(curves["condition"].nunique(), 3, height=2.6)
        for axes, (condition, rows) in zip(panels, curves.groupby("condition", sort=False), strict=True):
            for policy, row in rows.groupby("policy", sort=False):
                line(axes, row["std_bps"], row["cost_bps"], str(policy))
            for policy, point in marked[marked["condition"] == condition].groupby("policy"):
                look = LOOKS[str(policy)]
                name = None if policy in set(rows["policy"]) else look.name
                axes.plot(point["std_bps"], point["cost_bps"], look.marker, color=look.colour, label=name)
            axes.set(title=condition, xlabel="standard deviation, bps")
        panels[0].set_ylabel("expected cost, bps")
        figure.suptitle(message, x=0.01, ha="left", fontsize=10, fontweight="bold")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def rl_figure(learning: pd.DataFrame, message: str) -> Figure:
    """Capture over decisions and over processor seconds in every condition; all methods in one condition.

    ``learning`` has columns run, condition, seed, steps, seconds, capture; the first run is the one in use.
    """
    floor = -0.2
    with style():
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(7.2, 2.8), sharey=True)
        runs = list(dict.fromkeys(learning["run"]))
        main = learning[learning["run"] == runs[0]]
        for _, row in main.groupby(["condition", "seed"], sort=False):
            for axes, spent in ((left, "steps"), (middle, "seconds")):
                axes.plot(row[spent], row["capture"], color=LOOKS["rl"].colour, lw=0.9, alpha=0.7)
        where = learning[learning["run"] != runs[0]]["condition"].iloc[0]
        for run, line, colour in zip(
            runs, ("-", "--", ":", "-."), ("#7a5195", "#1b3a6b", "#c0562f", "#4aa89d"), strict=False
        ):
            row = learning[
                (learning["run"] == run) & (learning["condition"] == where) & (learning["seed"] == 0)
            ]
            label = run if row["capture"].max() > floor else f"{run} (below the frame)"
            right.plot(row["seconds"], row["capture"], color=colour, linestyle=line, label=label)
        left.set(title=f"{runs[0]}, a line a condition and seed", xlabel="decisions", ylim=(floor, 1.05))
        left.xaxis.set_major_formatter(EngFormatter(sep=""))
        left.set_ylabel("capture: TWAP 0, oracle 1")
        middle.set(xlabel="processor seconds")
        right.set(title=where, xlabel="processor seconds")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        for axes in (left, middle, right):
            axes.axhline(0.98, color="black", lw=0.8, ls=":")
        figure.suptitle(message, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def selection_figure(shares: pd.DataFrame, message: str) -> Figure:
    """Share of decisions nearest to each expert: ``shares`` is [conditions, experts], rows sum to one."""
    with style():
        figure, axes = plt.subplots(figsize=(6.4, 0.32 * len(shares) + 1.2))
        named = shares.rename(columns={k: v.name for k, v in LOOKS.items()})
        sns.heatmap(
            named, ax=axes, cmap="Greys", vmin=0, vmax=1, annot=True, fmt=".2f", cbar=False, linewidths=0.5
        )
        axes.set(title=message, xlabel="expert whose decision is nearest", ylabel="")
        axes.tick_params(axis="y", rotation=0)
        axes.set_xticklabels([name.replace(" ", "\n").replace("-", "-\n") for name in named.columns])
        axes.grid(False)
    return figure


def loss_figure(losses: pd.DataFrame, message: str) -> Figure:
    """Matching loss over iterations, smoothed, with the range over training seeds (columns)."""
    with style():
        figure, axes = plt.subplots(figsize=(5.2, 2.8))
        _band(axes, losses.rolling(25, min_periods=1).mean(), LOOKS["flow_imitation"].colour)
        axes.set(title=message, xlabel="iteration", ylabel="weighted matching loss", yscale="log")
    return figure


def _band(axes: Axes, runs: pd.DataFrame, colour: str) -> None:
    axes.fill_between(runs.index, runs.min(axis=1), runs.max(axis=1), color=colour, alpha=0.25, lw=0)
    axes.plot(runs.index, runs.mean(axis=1), color=colour)


def learning_figure(utility: pd.DataFrame, gradient: pd.DataFrame, message: str) -> Figure:
    """Utility over TWAP and gradient norm by iteration, mean and range over training seeds (columns)."""
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.6))
        colour = LOOKS["flow_refined"].colour
        _band(left, utility.rolling(15, min_periods=1).mean(), colour)
        _band(right, gradient.rolling(15, min_periods=1).mean(), colour)
        left.set(xlabel="iteration", ylabel="utility over TWAP, scaled")
        right.set(xlabel="iteration", ylabel="gradient norm before clipping", yscale="log")
        figure.suptitle(message, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def reaction_figure(reactions: pd.DataFrame, message: str) -> Figure:
    """Share of the rest traded in a bucket against the current variance, a panel per time of day.

    ``reactions`` has columns time, policy, variance_ratio, fraction, and twap_fraction.
    """
    with style():
        figure, panels = panel_grid(reactions["time"].nunique(), 3)
        for axes, (time, rows) in zip(panels, reactions.groupby("time"), strict=True):
            for policy, row in rows.groupby("policy", sort=False):
                line(axes, row["variance_ratio"], row["fraction"] / row["twap_fraction"], str(policy))
            axes.set(title=f"{time:.0%} of the day gone", xlabel="variance over its mean", xscale="log")
        panels[0].set_ylabel("trading speed, TWAP = 1")
        figure.suptitle(message, x=0.01, ha="left", fontsize=10, fontweight="bold")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def solver_figure(rows: pd.DataFrame, message: str) -> Figure:
    """Advantage over the best expert by solver steps, a line per condition.

    ``rows`` has columns condition, policy, solver_steps, advantage (of the best expert's utility).
    """
    with style():
        figure, axes = plt.subplots(figsize=(5.6, 3.0))
        for policy, by_policy in rows.groupby("policy"):
            look = LOOKS[str(policy)]
            for _, row in by_policy.groupby("condition", sort=False):
                axes.plot(row["solver_steps"], row["advantage"], color=look.colour, ls=look.line, lw=0.9)
            axes.plot([], [], color=look.colour, ls=look.line, label=f"{look.name}, one line a condition")
        axes.axhline(0, color="black", lw=0.8)
        axes.set_xscale("log", base=2)
        axes.set(title=message, xlabel="solver steps K", xticks=[1, 2, 4, 8])
        axes.set_xticklabels(["1", "2", "4", "8"])
        axes.set_ylabel("utility over the best expert,\nshare of its cost")
        axes.yaxis.set_major_formatter("{x:+.2%}")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def advantage_figure(rows: pd.DataFrame, message: str) -> Figure:
    """Utility over the best expert with 95 % intervals, a row per condition, a marker per policy.

    ``rows`` has columns condition, policy, advantage, ci_low, ci_high (shares of the best expert's cost).
    """
    with style():
        names = list(dict.fromkeys(rows["condition"]))
        figure, axes = plt.subplots(figsize=(6.4, 0.3 * len(names) + 1.3))
        policies = list(dict.fromkeys(rows["policy"]))
        for i, policy in enumerate(policies):
            look, row = LOOKS[policy], rows[rows["policy"] == policy]
            y = np.array([names.index(c) for c in row["condition"]]) + 0.16 * (i - (len(policies) - 1) / 2)
            reach = [row["advantage"] - row["ci_low"], row["ci_high"] - row["advantage"]]
            axes.errorbar(
                row["advantage"], y, xerr=reach, fmt=look.marker, color=look.colour, ms=4, label=look.name
            )
        axes.axvline(0, color="black", lw=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter("{x:+.2%}")
        axes.locator_params(axis="x", nbins=6)
        axes.set(title=message, xlabel="utility over the best calibrated expert, share of its cost")
        figure.legend(loc="outside lower center", ncols=5)
    return figure


def capture_figure(rows: pd.DataFrame, message: str) -> Figure:
    """Capture of each policy, a row per condition, between TWAP (0) and the oracle (1).

    ``rows`` has columns condition, policy, capture.
    """
    with style():
        names = list(dict.fromkeys(rows["condition"]))
        figure, axes = plt.subplots(figsize=(6.4, 0.3 * len(names) + 1.3))
        for policy, row in rows.groupby("policy", sort=False):
            look = LOOKS[str(policy)]
            y = [names.index(c) for c in row["condition"]]
            axes.plot(row["capture"], y, look.marker, color=look.colour, ms=5, label=look.name, alpha=0.85)
        axes.axvline(0, color="black", lw=0.8)
        axes.axvline(1, color="black", lw=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set(title=message, xlabel="capture: TWAP 0, oracle 1")
        figure.legend(loc="outside lower center", ncols=4)
    return figure


def ablation_figure(rows: pd.DataFrame, message: str) -> Figure:
    """Capture lost by each variant on a logarithmic axis, a marker for each way to sample from it.

    ``rows`` has columns variant, sampled, "capture, mean" and "capture, worst".
    """
    with style():
        names = list(dict.fromkeys(rows["variant"]))
        figure, axes = plt.subplots(figsize=(7.2, 0.26 * len(names) + 1.4))
        markers = {"K = 1": "o", "K = 2": "<", "K = 4": "^", "K = 8": "s"}
        for sampled, row in rows.groupby("sampled", sort=False):
            y = [names.index(v) for v in row["variant"]]
            several = sampled in markers
            marker, colour = markers.get(str(sampled), "D"), "#c0392b" if several else "#7f8c8d"
            label = str(sampled) if several else None
            axes.plot(1 - row["capture, mean"], y, marker, ms=5, color=colour, alpha=0.85, label=label)
        axes.set(
            title=message,
            xlabel="share of the oracle's gain that is lost, mean over conditions",
            xscale="log",
        )
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        figure.legend(loc="outside lower center", ncols=4)
    return figure


def risk_return_figure(rows: pd.DataFrame, message: str) -> Figure:
    """Change in mean and in standard deviation against each benchmark, a panel each, a dot a condition.

    ``rows`` has columns expert, mean (bps above the benchmark's) and std (a share of it). Up and left is
    better at both.
    """
    with style():
        figure, panels = panel_grid(rows["expert"].nunique(), 3, height=2.6)
        for axes, (expert, row) in zip(panels, rows.groupby("expert", sort=False), strict=True):
            look = LOOKS["flow_refined"]
            axes.axvspan(-10, 0, 0.5, 1, color="#dfe9df", lw=0)
            axes.plot(row["std"], row["mean"], look.marker, color=look.colour, ms=4)
            reach_x, reach_y = 1.2 * row["std"].abs().max(), 1.2 * row["mean"].abs().max()
            axes.set(
                xlim=(-reach_x, reach_x), ylim=(-reach_y, reach_y), title=f"against {LOOKS[str(expert)].name}"
            )
            axes.axhline(0, color="black", lw=0.8)
            axes.axvline(0, color="black", lw=0.8)
            axes.xaxis.set_major_formatter("{x:+.0%}")
            axes.set_xlabel("standard deviation")
        for axes in panels[::3]:
            axes.set_ylabel("mean P&L, bps")
        figure.suptitle(message, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def world_figure(rows: pd.DataFrame, message: str) -> Figure:
    """Gain over the best expert with its 95 % interval, a panel per world, a point per condition.

    ``rows`` are comparisons with the best expert: world, utility, utility_ci_low, utility_ci_high and
    reference_bps.
    """
    with style():
        figure, panels = panel_grid(rows["world"].nunique(), 3, height=2.2)
        look = LOOKS["flow_refined"]
        for axes, (world, row) in zip(panels, rows.groupby("world", sort=False), strict=True):
            row = row.sort_values("utility")
            cost = row["reference_bps"].abs()
            reach = [row["utility"] - row["utility_ci_low"], row["utility_ci_high"] - row["utility"]]
            place = np.arange(len(row))
            axes.errorbar(
                row["utility"] / cost,
                place,
                xerr=[r / cost for r in reach],
                fmt=look.marker,
                color=look.colour,
                ms=3,
            )
            axes.axvline(0, color="black", lw=0.8)
            axes.xaxis.set_major_formatter("{x:+.1%}")
            axes.set(title=str(world), yticks=[])
        for axes in panels:
            axes.set_xlabel("share of its utility")
        figure.suptitle(message, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def replay_figure(
    market: pd.DataFrame, inventories: Mapping[str, ArrayLike], hours: float, message: str
) -> Figure:
    """One recorded order: price, variance, volume, and what policies held; a panel each.

    ``market``: a row a bucket, columns price_bps (since arrival), variance and volume over their levels
    before it, each also with ``_seen``, what was known of it. ``inventories``: q_0 ... q_N by policy.
    """
    with style():
        figure, panels = panel_grid(4, 2, height=2.1)
        edges = np.linspace(0, hours, len(market) + 1)
        panels[0].plot(edges, np.r_[0, market["price_bps"]], color="#22313f")
        panels[0].set(title="price", ylabel="bps since arrival")
        for axes, name in zip(panels[1:], ("variance", "volume"), strict=False):
            for column, colour, label in (
                (name, "#9fb3c8", "in the bucket"),
                (f"{name}_seen", "#22313f", "known before"),
            ):
                axes.stairs(market[column], edges, baseline=None, color=colour, lw=1.5, label=label)
            axes.set(title=name, ylabel="over its level before", ylim=(0, None))
        panels[2].legend(loc="upper right")
        for policy, inventory in inventories.items():
            line(panels[3], edges, inventory, policy)
        panels[3].set(title="inventory", ylabel="of the order", ylim=(0, 1))
        panels[3].legend()
        for axes in panels[2:]:
            axes.set_xlabel("hours since arrival")
        figure.suptitle(message, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def paired_figure(rows: pd.DataFrame, message: str) -> Figure:
    """Mean differences with their 95 % intervals, a panel per measure, a marker per reference.

    Logarithmic but for a hundredth of a bp either side of zero. ``rows`` has columns measure, sample,
    reference, mean, ci_low, ci_high (bps).
    """
    with style():
        names = list(dict.fromkeys(rows["sample"]))
        measures = rows["measure"].nunique()
        figure, panels = plt.subplots(1, measures, figsize=(7.2, 0.36 * len(names) + 1.3), sharey=True)
        for axes, (measure, panel) in zip(panels, rows.groupby("measure", sort=False), strict=True):
            for i, (reference, row) in enumerate(panel.groupby("reference", sort=False)):
                look = LOOKS[str(reference)]
                y = np.array([names.index(s) for s in row["sample"]]) + 0.24 * i - 0.12
                reach = [row["mean"] - row["ci_low"], row["ci_high"] - row["mean"]]
                label = f"over {look.name}"
                axes.errorbar(
                    row["mean"], y, xerr=reach, fmt=look.marker, color=look.colour, ms=4, label=label
                )
            axes.axvline(0, color="black", lw=0.8)
            # Gains against one reference are a hundred times those against the other.
            axes.set_xscale("symlog", linthresh=0.01)
            axes.set_xticks([-1, -0.1, -0.01, 0, 0.01, 0.1, 1])
            axes.xaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
            axes.set(title=str(measure), xlabel="FlowOE's gain, bps (logarithmic)")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.suptitle(message, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure
