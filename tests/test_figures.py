"""Saved figures and tables are complete, and equal tables give equal bytes."""

from pathlib import Path

import numpy as np
import pandas as pd

from flowoe_lib.plotting import save, save_table
from flowoe_lib.studies.calibration_figures import autocovariance_figure, profile_figure, volatility_figure


def history(seed: int) -> pd.DataFrame:
    values = np.random.default_rng(seed).uniform(0.005, 0.03, (50, 3))
    return pd.DataFrame(values, pd.date_range("2008-01-01", periods=50), ["day", "level", "vix"])


def test_the_same_table_gives_the_same_bytes_and_another_gives_others(tmp_path: Path) -> None:
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        save(volatility_figure(history(seed), {"calm": 0.01}), tmp_path, name)
    for suffix in ("png", "svg"):
        first, again, other = ((tmp_path / f"{n}.{suffix}").read_bytes() for n in ("first", "again", "other"))
        assert first == again
        assert first != other
    assert len(list(tmp_path.iterdir())) == 6


def test_figures_show_their_table() -> None:
    decay = pd.DataFrame(
        {"days": [0.1, 0.2], "value": [0.3, 0.2], "ci_low": [0.1, 0.1], "ci_high": [0.4, 0.4]}
    )
    left, right = autocovariance_figure({"a": decay.assign(fit=0.25), "b": decay}, "message").axes
    np.testing.assert_array_equal(left.lines[0].get_ydata(), decay["value"])
    assert len(left.lines) == len(right.lines) + 1
    axes = profile_figure(pd.DataFrame([[2.0, 1.0], [1.0, 1.0]]), pd.Series([1.4, 1.0])).axes[0]
    shown = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_array_equal(shown["mean session"], [1.5, 1.0])
    np.testing.assert_array_equal(shown["fitted U"], [1.4, 1.0])
    for panel in (left, right, axes):
        assert "days" in panel.get_xlabel()


def test_tables_keep_a_named_index_and_drop_a_counting_one(tmp_path: Path) -> None:
    table = pd.DataFrame({"value": [0.1, 1 / 3]})
    save_table(table, tmp_path, "plain")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "plain.csv"), table)
    named = table.set_axis(pd.Index(["a", "b"], name="figure"))
    save_table(named, tmp_path, "named")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "named.csv", index_col="figure"), named)
