"""Figures show the numbers of the tables they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import StepPatch

from flowoe_lib.plotting import LOOKS
from flowoe_lib.studies import policy_figures as charts
from flowoe_lib.studies import story_figures as story

CONDITIONS = ["calm", "stressed"]


@pytest.fixture(autouse=True)
def _close() -> None:
    plt.close("all")


def test_inventory_lines_are_the_plans() -> None:
    plan = [1.0, 0.4, 0.0]
    figure = charts.inventory_figure({"calm": {"twap": plan}}, "message")
    line = figure.axes[0].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), plan)
    np.testing.assert_allclose(np.asarray(line.get_xdata(), float), [0, 0.5, 1])
    assert line.get_color() == LOOKS["twap"].colour


def test_advantage_markers_carry_their_intervals() -> None:
    rows = pd.DataFrame(
        {"condition": CONDITIONS, "policy": "flow_refined", "advantage": [0.01, 0.03]}
    ).assign(ci_low=lambda t: t["advantage"] - 0.005, ci_high=lambda t: t["advantage"] + 0.01)
    axes = charts.advantage_figure(rows, "message").axes[0]
    reach = [np.asarray(path.vertices)[:, 0] for path in axes.collections[0].get_paths()]
    np.testing.assert_allclose(np.stack(reach), [[0.005, 0.02], [0.025, 0.04]])
    assert [label.get_text() for label in axes.get_yticklabels()] == CONDITIONS


def test_selection_cells_hold_the_shares() -> None:
    shares = pd.DataFrame([[0.75, 0.25], [0.1, 0.9]], index=CONDITIONS, columns=["twap", "rl"])
    axes = charts.selection_figure(shares, "message").axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.75", "0.25", "0.10", "0.90"]


def test_reaction_speed_is_relative_to_twap() -> None:
    rows = pd.DataFrame(
        {"time": 0.5, "policy": "replanned", "variance_ratio": [0.5, 2.0], "fraction": [0.1, 0.3]}
    ).assign(twap_fraction=0.1)
    line = charts.reaction_figure(rows, "message").axes[0].lines[0]
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [1, 3])


def test_quantities_carry_their_intervals() -> None:
    ends = {"share": [0.5, -2.0], "share_ci_low": [0.2, -3.0], "share_ci_high": [0.7, -1.0]}
    rows = pd.DataFrame({"policy": ["a", "b"], "fee": 1.0, "fee_ci_low": 0.0, "fee_ci_high": 3.0} | ends)
    figure = charts.interval_figure(rows, {"share": "share, %", "fee": "fee, bps"}, "message", linear=0.1)
    expected = {"share, %": [[0.2, 0.7], [-3.0, -1.0]], "fee, bps": [[0.0, 3.0], [0.0, 3.0]]}
    for axes, (label, reach) in zip(figure.axes, expected.items(), strict=True):
        drawn = [np.asarray(path.vertices)[:, 0] for path in axes.collections[0].get_paths()]
        np.testing.assert_allclose(np.stack(drawn), reach)
        assert (axes.get_xlabel(), axes.get_xscale()) == (label, "symlog")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_a_method_below_the_frame_is_labelled_so() -> None:
    rows = pd.DataFrame(
        {
            "opponent": ["PPO", "SAC"],
            "condition": "calm",
            "seed": 0,
            "decisions": 9,
            "seconds": 1.0,
            "capture": [0.9, -3.0],
        }
    )
    legend = charts.rl_figure(rows, "message").legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["PPO", "SAC (below the frame)"]


def test_other_figures_draw_every_row() -> None:
    curve = pd.DataFrame({0: [1.0, 0.5, 0.2], 1: [1.2, 0.4, 0.3]})
    [axes] = charts.loss_figure(curve, "message").axes
    smooth = [1.1, 0.775, 0.6]
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata(), float), smooth)
    measured, gradient = (axes.lines[0] for axes in charts.learning_figure(curve, curve, "message").axes)
    np.testing.assert_allclose(np.asarray(measured.get_ydata(), float), [1.1, 0.45, 0.25])
    np.testing.assert_allclose(np.asarray(measured.get_xdata(), float), [0, 1.5, 3])
    np.testing.assert_allclose(np.asarray(gradient.get_ydata(), float), smooth)
    points = pd.DataFrame({"condition": CONDITIONS, "policy": "twap", "std_bps": 1.0, "cost_bps": 2.0})
    assert len(charts.frontier_figure(points, points, "message").axes[0].lines) == 2
    ends = {"capture": [0.2, 0.9], "capture_ci_low": [0.1, 0.8], "capture_ci_high": [0.3, 1.1]}
    axes = charts.capture_figure(
        pd.DataFrame({"condition": CONDITIONS, "policy": "rl"} | ends), "message"
    ).axes[0]
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_xdata(), float), [0.8, 0.1])
    reach = [np.asarray(path.vertices)[:, 0] for path in axes.collections[0].get_paths()]
    np.testing.assert_allclose(np.stack(reach), [[0.7, 0.9], [1e-5, 0.2]])
    solver = pd.DataFrame({"condition": "calm", "policy": "flow_refined", "solver_steps": [1, 2, 4, 8]})
    lines = charts.solver_figure(solver.assign(advantage=0.01), "message").axes[0].lines
    np.testing.assert_array_equal(lines[0].get_xdata(), [1, 2, 4, 8])
    changes = pd.DataFrame({"expert": ["twap", "almgren_chriss"], "mean": [-1.0, 0.5], "std": [-0.1, -0.2]})
    assert len([a for a in charts.risk_return_figure(changes, "message").axes if a.get_visible()]) == 2
    worlds = pd.DataFrame(
        {"world": ["a", "a", "b"], "condition": ["x", "y", "x"], "utility": [0.02, 0.01, -0.01]}
    )
    worlds = worlds.assign(**{f"utility_ci_{end}": worlds["utility"] for end in ("low", "high")})
    panels = [axes for axes in charts.world_figure(worlds, "message").axes if axes.get_visible()]
    shares = [np.asarray(axes.lines[0].get_xdata(), float) for axes in panels]
    np.testing.assert_allclose(np.concatenate(shares), [0.02, 0.01, -0.01])
    assert [[text.get_text() for text in axes.get_yticklabels()] for axes in panels] == [["x", "y"], ["x"]]


def test_the_flow_and_the_day_are_drawn_as_they_are_given() -> None:
    paths = {"flow_imitation": np.array([[1.0, -1.0], [0.5, 0.0]]), "flow_refined": np.array([[1.0], [0.3]])}
    panels = story.flow_figure(paths, {"twap": 0.0}, "message").axes
    np.testing.assert_array_equal(panels[0].lines[1].get_ydata(), [-1.0, 0.0])
    np.testing.assert_array_equal(panels[1].lines[0].get_ydata(), [1.0, 0.3])
    market = pd.DataFrame({"price_bps": [0.0, 5.0], "volatility": [1.0, 2.0]})
    held = {"twap": np.array([1.0, 0.5, 0.0]), "oracle": np.array([1.0, 0.4, 0.0])}
    *_, below, apart = story.day_figure(market, held, {"twap": 4.24, "oracle": 4.0}, "message").axes
    assert below.lines[0].get_label() == "TWAP: 4.2 bps"
    np.testing.assert_allclose(np.asarray(apart.lines[0].get_ydata(), float), [0, 0.1, 0])


def test_a_replayed_order_shows_the_record_and_the_forecast() -> None:
    names = ("price_bps", "variance", "variance_seen", "volume", "volume_seen")
    market = pd.DataFrame({name: [1.0 + i, 2.0 + i] for i, name in enumerate(names)})
    panels = charts.replay_figure(market, {"twap": [1.0, 0.5, 0.0]}, 2.0, "message").axes
    np.testing.assert_array_equal(panels[0].lines[0].get_ydata(), [0, 1, 2])
    for axes, first in ((panels[1], 2), (panels[2], 4)):
        for steps, label, start in zip(axes.patches, ("in the bucket", "forecast"), (0, 1), strict=True):
            assert isinstance(steps, StepPatch)
            assert steps.get_label() == label
            np.testing.assert_array_equal(steps.get_data()[0], [first + start, first + start + 1])
    np.testing.assert_allclose(np.asarray(panels[3].lines[0].get_xdata(), float), [0, 1, 2])


def test_gains_over_impact_carry_their_band() -> None:
    rows = pd.DataFrame({"comparison": ["a", "a", "b", "b"], "multiple": [0.0, 2.0] * 2})
    rows = rows.assign(mean=[1.0, 2.0, 3.0, 4.0], ci_low=[0.5, 1.5, 2.5, 3.5], ci_high=5.0)
    panels = [axes for axes in charts.impact_figure(rows, "message").axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == ["a", "b"]
    for axes, (first, last) in zip(panels, ((1, 2), (3, 4)), strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), [first, last])
        corners = np.asarray(axes.collections[0].get_paths()[0].vertices)
        assert {(0.0, first - 0.5), (2.0, last - 0.5), (0.0, 5.0), (2.0, 5.0)} <= set(map(tuple, corners))
