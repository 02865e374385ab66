"""Figures of the calibration: volatility levels, autocovariances and the volume profile.

Each function takes the table it shows.
"""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from flowoe_lib.plotting import style, titled

DARK, MIDDLE, LIGHT = "#22313f", "#c0562f", "#9fb3c8"
"""Colours of data, model and background, distinct in grey too."""


@style()
def volatility_figure(history: pd.DataFrame, levels: Mapping[str, float]) -> Figure:
    """Twenty years of daily volatility, its forecast level, the VIX, and the levels of the conditions.

    ``history``: columns day, level and vix, per sqrt(day), by date. ``levels``: per sqrt(day).
    """
    figure, axes = plt.subplots(figsize=(7.2, 3.4))
    percent = 100 * history
    axes.plot(percent.index, percent["day"], ".", color=LIGHT, markersize=1.5)
    axes.plot([], [], "o", color=LIGHT, markersize=4, label="one day's range")
    axes.plot(percent.index, percent["level"], color=DARK, linewidth=0.9, label="forecast level")
    axes.plot(percent.index, percent["vix"], color=MIDDLE, linewidth=0.9, label="VIX")
    for name, level in levels.items():
        axes.axhline(100 * level, color="black", linestyle="--", linewidth=0.8)
        axes.annotate(name, (1.0, 100 * level), xycoords=("axes fraction", "data"), va="center")
    axes.set(yscale="log", ylabel="volatility, % per sqrt(day)", xlabel="date", ylim=(0.15, 9))
    axes.set_yticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
    axes.yaxis.set_minor_formatter(NullFormatter())
    return titled(figure, "Calm is the median day; in 2008 volatility was beyond crisis", axes)


@style()
def autocovariance_figure(panels: Mapping[str, pd.DataFrame], message: str) -> Figure:
    """Autocovariances within the day with their intervals and fits, one panel each.

    Tables: columns days, value, ci_low, ci_high, and fit where there is one.
    """
    figure, row = plt.subplots(1, len(panels), figsize=(1.8 + 2.7 * len(panels), 2.8), squeeze=False)
    for axes, (name, table) in zip(row[0], panels.items(), strict=True):
        ends, look = (table["ci_low"], table["ci_high"]), {"color": LIGHT, "alpha": 0.5}
        axes.fill_between(table["days"], *ends, label="95 % interval", **look)
        axes.plot(table["days"], table["value"], "o", color=DARK, markersize=3, label="data")
        if "fit" in table:
            axes.plot(table["days"], table["fit"], color=MIDDLE, label="fit")
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set(title=name, xlabel="lag, days")
    row[0][0].set_ylabel("autocovariance")
    return titled(figure, message, row[0][0])


@style()
def profile_figure(volume: pd.DataFrame, fitted: pd.Series) -> Figure:
    """Volume by time of day: each session, their mean, and the fitted U.

    ``volume``: share of a bucket over that of a flat day, [days, buckets]; ``fitted``: [buckets].
    """
    figure, axes = plt.subplots(figsize=(5.4, 3.0))
    middle = (np.arange(volume.shape[1]) + 0.5) / volume.shape[1]
    axes.plot(middle, volume.T, color=LIGHT, linewidth=0.6)
    axes.plot([], [], color=LIGHT, linewidth=0.6, label="one session")
    axes.plot(middle, volume.mean(), color=DARK, label="mean session")
    axes.plot(middle, fitted, "--", color=MIDDLE, label="fitted U")
    axes.axhline(1, color="black", linewidth=0.6)
    axes.set(xlabel="time of the session, days", ylabel="volume over a flat profile", ylim=(0, None))
    return titled(figure, "Trading is busiest at the open and the close", axes)
