"""Makes sample_bars.csv: ten-minute bars of a stock that does not exist, for the examples of these pages.

python docs/sample_bars.py
"""

from pathlib import Path

import numpy as np
import pandas as pd

SESSIONS, STEPS, PER_BAR = 25, 2340, 60
VOLATILITY, ADV = 0.016, 4e6


def sample_bars() -> pd.DataFrame:
    """Bars by their end, in New York time: mean-reverting variance and depth, and a U-shaped volume."""
    draws, dt, price, bars = np.random.default_rng(2025), 1 / STEPS, 84.0, []
    time = np.linspace(-1, 1, STEPS)
    profile = 1 + 0.75 * (3 * time**2 - 1) / 2
    for day in pd.bdate_range("2024-10-21", periods=SESSIONS):
        variance, depth = draws.gamma(1.2) / 1.2, 0.3 * draws.normal()
        prices, volumes = [price := price * np.exp(0.006 * draws.normal())], []
        for usual in profile:
            shocks = draws.normal(size=3)
            prices.append(price := price * np.exp(VOLATILITY * np.sqrt(variance * dt) * shocks[0]))
            volumes.append(ADV * dt * usual * np.exp(depth) * draws.gamma(2) / 2)
            variance += 2.3 * (1 - variance) * dt + 2 * np.sqrt(variance * dt) * shocks[1]
            variance = max(variance, 1e-3)
            depth += -1.8 * depth * dt + 0.3 * np.sqrt(3.6 * dt) * shocks[2]
        for k in range(0, STEPS, PER_BAR):
            inside = prices[k : k + PER_BAR + 1]
            end = day + pd.Timedelta(hours=9, minutes=30, seconds=10 * (k + PER_BAR))
            bars.append((end, inside[0], max(inside), min(inside), inside[-1], sum(volumes[k : k + PER_BAR])))
    table = pd.DataFrame(bars, columns=["time", "open", "high", "low", "close", "volume"])
    return table.set_index("time").round(2).astype({"volume": int})


if __name__ == "__main__":
    sample_bars().to_csv(Path(__file__).with_suffix(".csv"))
