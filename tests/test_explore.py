"""The explorer: its numbers against independent computations, its sliders against the training range."""

import asyncio
import threading
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch

from flowoe_lib.desk.explorer import SCHEDULES, Settings, View, explore
from flowoe_lib.desk.explorer_page import DIALS, Page, explore_figure, newest_only
from flowoe_lib.execution.execution import execute
from flowoe_lib.market.model import scalar
from flowoe_lib.market.simulator import simulate
from flowoe_lib.plotting import LOOKS
from flowoe_lib.policies.schedules import expected_cost, expected_risk
from flowoe_lib.randomness import generator
from flowoe_lib.training.pretrained import PretrainedPolicy, load_pretrained

SEED = 7
ELSEWHERE = Settings(
    volatility=0.04, cv=0.6, illiquidity=2.0, depth_sd=0.8, size=0.2, beta=0.5, risk_aversion=2e-4
)


@pytest.fixture(scope="module")
def trained() -> PretrainedPolicy:
    return load_pretrained()


@pytest.fixture(scope="module")
def view(trained: PretrainedPolicy) -> View:
    return explore(Settings(), trained, SEED)


def rows(table: pd.DataFrame, policy: str) -> pd.DataFrame:
    return table[table["policy"] == policy]


def test_schedules_run_from_the_whole_order_to_nothing(view: View) -> None:
    for policy in ("twap", *SCHEDULES, "flow_refined"):
        plan = rows(view.schedule, policy)[["low", "middle", "high"]].to_numpy()
        assert (plan[0] == 1).all()
        assert (plan[-1] == 0).all()
        assert (np.diff(plan, axis=0) <= 0).all()
        assert (np.diff(plan, axis=1) >= 0).all()
    even = rows(view.schedule, "twap")
    np.testing.assert_allclose(even["middle"], 1 - even["time"])
    band = rows(view.schedule, "flow_refined")
    assert (band["high"] - band["low"]).max() > 0.05


@pytest.mark.parametrize("settings", [Settings(), ELSEWHERE, Settings(drift=-0.3)], ids=["0", "1", "2"])
def test_frontiers_of_schedules_are_exact(settings: Settings, trained: PretrainedPolicy) -> None:
    market, order = settings.condition(trained)
    frontier = explore(settings, trained, SEED).frontier
    for policy, solver in SCHEDULES.items():
        for row in rows(frontier, policy).to_dict("records"):
            turned = replace(order, risk_aversion=scalar(row["risk_aversion"]))
            plan = solver(market, turned, trained.n_buckets).inventory
            assert row["cost_bps"] == pytest.approx(expected_cost(market, turned, plan).item(), rel=1e-6)
            assert row["risk_bps"] == pytest.approx(expected_risk(market, plan).sqrt().item(), rel=1e-6)


@pytest.mark.parametrize("settings", [Settings(), ELSEWHERE], ids=["0", "1"])
def test_frontier_of_the_policy_is_that_of_many_other_days(
    settings: Settings, trained: PretrainedPolicy
) -> None:
    market, order = settings.condition(trained)
    # A view has few days, so that it is drawn at once; four of them together are near to what many say.
    views = [rows(explore(settings, trained, SEED + i).frontier, "flow_refined") for i in range(4)]
    mean = pd.concat(views).groupby("risk_aversion", as_index=False)[["cost_bps", "risk_bps"]].mean()
    for row in mean.iloc[[0, 1, -1]].to_dict("records"):
        turned = replace(order, risk_aversion=scalar(row["risk_aversion"]))
        days = simulate(market, 8_000, trained.n_buckets, generator(1, "others"))
        with torch.no_grad():
            done = execute(trained.policy(), days, market, turned, generator(1, "noise"))
        assert row["cost_bps"] == pytest.approx(-done.controlled_pnl_bps.mean().item(), rel=0.03)
        assert row["risk_bps"] == pytest.approx(done.expected_risk.mean().sqrt().item(), rel=0.03)


def test_higher_risk_aversion_means_less_risk_at_a_higher_cost(view: View) -> None:
    for policy in (*SCHEDULES, "flow_refined"):
        curve = rows(view.frontier, policy).sort_values("risk_aversion")
        assert curve["risk_bps"].is_monotonic_decreasing
        assert curve["cost_bps"].is_monotonic_increasing


def test_the_settings_own_risk_aversion_comes_first(trained: PretrainedPolicy) -> None:
    frontier = explore(ELSEWHERE, trained, SEED).frontier
    assert frontier.groupby("policy")["risk_aversion"].first().to_numpy() == pytest.approx(2e-4)


def test_same_settings_give_the_same_bits_and_another_seed_another_day(
    view: View, trained: PretrainedPolicy
) -> None:
    again, other = (explore(Settings(), trained, seed) for seed in (SEED, SEED + 1))
    for table in ("schedule", "frontier", "day"):
        pd.testing.assert_frame_equal(getattr(view, table), getattr(again, table), check_exact=True)
    assert view.gain_bps == again.gain_bps
    assert (view.day["variance"] != other.day["variance"])[1:].all()


@pytest.mark.parametrize(
    "change", [{"size": 0.2}, {"beta": 0.7}, {"illiquidity": 3.0}, {"risk_aversion": 1e-3}]
)
def test_order_and_impact_settings_do_not_change_the_simulated_day(
    change: dict[str, float], view: View, trained: PretrainedPolicy
) -> None:
    day = explore(replace(Settings(), **change), trained, SEED).day
    unmoved = ["variance", "liquidity"]
    pd.testing.assert_frame_equal(day[unmoved], view.day[unmoved], check_exact=True)
    assert (day["traded"] != view.day["traded"]).any()


def test_vol_of_vol_changes_the_day_smoothly(view: View, trained: PretrainedPolicy) -> None:
    near, far = (explore(Settings(cv=cv), trained, SEED).day for cv in (1.301, 0.02))
    np.testing.assert_allclose(near["variance"], view.day["variance"], atol=0.01)
    np.testing.assert_allclose(far["variance"], 1, atol=0.1)
    assert (near["liquidity"] == view.day["liquidity"]).all()


def test_the_day_trades_the_order(view: View) -> None:
    assert view.day["traded"].sum() == pytest.approx(1, abs=1e-5)
    assert view.day["twap"].sum() == pytest.approx(1)


def test_settings_outside_the_training_range_are_refused_by_name(trained: PretrainedPolicy) -> None:
    with pytest.raises(ValueError, match=r"volatility = 0\.3: trained on .*; beta = 0\.9: trained on"):
        explore(Settings(volatility=0.3, beta=0.9), trained, SEED)


def test_figure_marks_the_settings_own_points(view: View) -> None:
    figure = explore_figure(view)
    _, frontier, _, trades = figure.axes
    marked = [
        line for line in frontier.lines if line.get_marker() in {look.marker for look in LOOKS.values()}
    ]
    drawn = [[float(np.asarray(part)[0]) for part in line.get_data()] for line in marked]
    own = view.frontier.groupby("policy", sort=False).first()
    np.testing.assert_allclose(drawn, own[["risk_bps", "cost_bps"]])
    [bars] = trades.patches
    assert bars.get_data().values.sum() == pytest.approx(100, abs=1e-3)  # type: ignore[attr-defined]


def test_there_is_a_slider_for_each_setting_over_the_range_of_training(trained: PretrainedPolicy) -> None:
    assert [dial.setting for dial in DIALS] == [field.name for field in fields(Settings)]
    for dial in DIALS:
        slider = dial.slider(trained)
        assert slider.value == pytest.approx(dial.scale * getattr(Settings(), dial.setting))
        low, high = dial.bounds(trained)
        margin = (high - low) / 100
        for end, bound, outside in ((slider.min, low, low - margin), (slider.max, high, high + margin)):
            slider.value = 10**end if dial.logarithmic else end
            assert slider.value == pytest.approx(bound)
            replace(Settings(), **{dial.setting: slider.value / dial.scale}).condition(trained)
            with pytest.raises(ValueError, match=f"{dial.setting} = "):
                replace(Settings(), **{dial.setting: outside / dial.scale}).condition(trained)


def test_a_move_redraws_and_moving_back_shows_the_same_picture(trained: PretrainedPolicy) -> None:
    page = Page(trained, SEED)
    first = bytes(page.picture.value)
    assert first.startswith(b"\x89PNG")
    page.sliders["beta"].value = 0.7
    assert page.settings == replace(Settings(), beta=0.7)
    assert bytes(page.picture.value) != first
    page.sliders["beta"].value = 0.6
    assert bytes(page.picture.value) == first


def test_an_error_is_a_message_in_the_page(trained: PretrainedPolicy) -> None:
    page = Page(trained, SEED)
    page.trained = replace(trained, calibration=dict(trained.calibration) | {"kappa": -1.0})
    page.draw()
    assert "Heston.kappa = -1: must be finite" in page.message.value
    assert page.picture.layout.visibility == "hidden"
    page.trained = trained
    page.draw()
    assert (page.message.value, page.picture.layout.visibility) == ("", "visible")


def test_of_moves_in_quick_succession_only_the_last_is_drawn_in_the_thread_of_the_page() -> None:
    drawn: list[tuple[int, int]] = []
    position = 0

    async def move() -> None:
        handle = newest_only(lambda: drawn.append((position, threading.get_ident())), 0.001)

        def burst() -> None:
            nonlocal position
            for _ in range(5):
                position += 1
                handle(None)

        thread = threading.Thread(target=burst)
        thread.start()
        thread.join()
        while not drawn:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)

    asyncio.run(move())
    assert drawn == [(5, threading.get_ident())]


def test_without_a_kernel_every_move_is_drawn_at_once() -> None:
    drawn: list[int] = []
    handle = newest_only(lambda: drawn.append(1), 10.0)
    handle(None)
    handle(None)
    assert drawn == [1, 1]
