"""The explorer: its numbers against independent computations, its sliders against the training range."""

import asyncio
import threading
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch

from flowoe_lib.desk.explorer import SCHEDULES, Settings, View, explore
from flowoe_lib.desk.explorer_page import DIALS, PRESETS, Page, explore_figure, newest_only, numbers_table
from flowoe_lib.execution.execution import Policy, execute
from flowoe_lib.execution.features import FEATURES, MEMORY_FEATURES, SIGNAL_FEATURES
from flowoe_lib.market.model import scalar
from flowoe_lib.market.simulator import simulate
from flowoe_lib.plotting import LOOKS
from flowoe_lib.policies.flow import EndpointField
from flowoe_lib.policies.schedules import expected_cost, expected_risk, twap
from flowoe_lib.policies.unannounced import UnannouncedLevel, shape_of_spread
from flowoe_lib.randomness import generator
from flowoe_lib.studies.unannounced_world import LevelAsVariance
from flowoe_lib.training.pretrained import PretrainedPolicy, load_pretrained

SEED = 7
ELSEWHERE = Settings(
    volatility=0.04, cv=0.6, illiquidity=2.0, depth_sd=0.8, size=0.2, beta=0.5, risk_aversion=2e-4
)
REMEMBERED = replace(ELSEWHERE, half_life=0.15, signal=0.3)
FIT = {"eta": 0.1, "beta": 0.5, "gamma": 0.4}
"""The options of a fit of past orders."""


@pytest.fixture(scope="module")
def trained() -> PretrainedPolicy:
    return load_pretrained()


@pytest.fixture(scope="module")
def aware(trained: PretrainedPolicy) -> PretrainedPolicy:
    """A network, not trained, that observes memory and signal."""
    everything = len(FEATURES) + len(MEMORY_FEATURES) + len(SIGNAL_FEATURES)
    field = EndpointField(generator(1, "network"), everything)
    return replace(trained, field=field, conditions=replace(trained.conditions, memory=0.3, signal=0.4))


@pytest.fixture(scope="module")
def view(trained: PretrainedPolicy) -> View:
    return explore(Settings(), trained, SEED)


def rows(table: pd.DataFrame, policy: str) -> pd.DataFrame:
    return table[table["policy"] == policy]


def test_schedules_run_from_the_whole_order_to_nothing(view: View) -> None:
    for policy in (*SCHEDULES, "flow_refined"):
        plan = rows(view.schedule, policy)[["low", "middle", "high"]].to_numpy()
        assert (plan[0] == 1).all()
        assert (plan[-1] == 0).all()
        assert (np.diff(plan, axis=0) <= 0).all()
        assert (np.diff(plan, axis=1) >= 0).all()
    even = rows(view.schedule, "twap")
    np.testing.assert_allclose(even["middle"], 1 - even["time"])
    band = rows(view.schedule, "flow_refined")
    assert (band["high"] - band["low"]).max() > 0.05


@pytest.mark.parametrize(
    "settings",
    [Settings(), ELSEWHERE, Settings(drift=-0.3), REMEMBERED, Settings(level=0.8)],
    ids=[*"01234"],
)
def test_frontiers_of_schedules_are_exact(settings: Settings, aware: PretrainedPolicy) -> None:
    market, order = settings.condition(aware)
    frontier = explore(settings, aware, SEED).frontier
    for policy, solver in SCHEDULES.items():
        for row in rows(frontier, policy).to_dict("records"):
            turned = replace(order, risk_aversion=scalar(row["risk_aversion"]))
            plan = solver(market, turned, aware.n_buckets).inventory
            # Newton's method ends at the batch's precision, which is 1e-6 of the cost of a block trade.
            precision = 1e-5 if settings.half_life else 1e-6
            cost, risk = expected_cost(market, turned, plan), expected_risk(market, plan).sqrt()
            assert row["cost_bps"] == pytest.approx(cost.item(), rel=precision)
            assert row["risk_bps"] == pytest.approx(risk.item(), rel=precision)


@pytest.mark.parametrize("settings", [Settings(), ELSEWHERE, REMEMBERED], ids=["0", "1", "2"])
def test_frontier_of_the_policy_is_that_of_many_other_days(
    settings: Settings, trained: PretrainedPolicy, aware: PretrainedPolicy
) -> None:
    trained = aware if settings is REMEMBERED else trained
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


def test_an_unannounced_level_is_inferred_on_days_of_its_law(trained: PretrainedPolicy) -> None:
    settings = Settings(level=0.6, depth_sd=0.0)
    market, order = settings.condition(trained)
    views = [explore(settings, trained, SEED + i) for i in range(4)]
    level = views[0].reaction["volatility"] ** 2
    assert level.mean() == pytest.approx(1, rel=1e-5)
    assert np.log(level).std() == pytest.approx(0.6, rel=0.03)
    # At the open nobody knows the level; later the estimate has learned something of it.
    announced = explore(Settings(depth_sd=0.0), trained, SEED).reaction["traded"].std()
    assert views[0].reaction["traded"].std() < 0.1 * announced
    assert views[0].day["volatility"][0] == pytest.approx(1)
    assert views[0].day["volatility"].nunique() > 30
    assert views[0].outside == ["unannounced level: not part of training"]

    world, n, draws = UnannouncedLevel(market, shape_of_spread(0.6)), 20_000, generator(3, "levels")
    theta = (
        market.heston.theta * (world.shape - 1) / torch._standard_gamma(torch.full((n,), world.shape), draws)
    )
    drawn = world.market_at(theta)
    days = simulate(drawn, n, trained.n_buckets, draws)
    slow = {"kappa": scalar(trained.conditions.kappa[0]), "cv": scalar(0.6)}
    policy = LevelAsVariance(trained.policy(), **slow)
    with torch.no_grad():
        done = execute(policy, days, drawn, order, draws, world(days, drawn, draws))
    mean = pd.concat([v.numbers for v in views]).groupby(level=0).mean().loc["flow_refined"]
    assert mean["cost_bps"] == pytest.approx(-done.controlled_pnl_bps.mean().item(), rel=0.02)
    assert mean["risk_bps"] == pytest.approx(done.expected_risk.mean().sqrt().item(), rel=0.02)


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
    for table in ("schedule", "frontier", "day", "reaction", "numbers"):
        pd.testing.assert_frame_equal(getattr(view, table), getattr(again, table), check_exact=True)
    assert view.gain_bps == again.gain_bps
    assert (view.day["volatility"] != other.day["volatility"])[1:].all()


@pytest.mark.parametrize(
    "change", [{"size": 0.2}, {"beta": 0.7}, {"illiquidity": 3.0}, {"risk_aversion": 1e-3}]
)
def test_order_and_impact_settings_do_not_change_the_simulated_day(
    change: dict[str, float], view: View, trained: PretrainedPolicy
) -> None:
    day = explore(replace(Settings(), **change), trained, SEED).day
    unmoved = ["volatility", "liquidity"]
    pd.testing.assert_frame_equal(day[unmoved], view.day[unmoved], check_exact=True)
    assert (day["traded"] != view.day["traded"]).any()


def test_vol_of_vol_changes_the_day_smoothly(view: View, trained: PretrainedPolicy) -> None:
    near, far = (explore(Settings(cv=cv), trained, SEED).day for cv in (1.301, 0.02))
    np.testing.assert_allclose(near["volatility"] ** 2, view.day["volatility"] ** 2, atol=0.01)
    np.testing.assert_allclose(far["volatility"] ** 2, 1, atol=0.1)
    assert (near["liquidity"] == view.day["liquidity"]).all()


def test_the_day_trades_the_order(view: View) -> None:
    assert view.day["traded"].sum() == pytest.approx(1, abs=1e-5)
    assert view.day["static"].sum() == pytest.approx(1)


def test_numbers_are_those_of_the_executed_schedules(view: View, trained: PretrainedPolicy) -> None:
    market, order = Settings().condition(trained)
    days = simulate(market, 8_000, trained.n_buckets, generator(2, "others"))
    policies: dict[str, Policy] = {"twap": twap, "flow_refined": trained.policy()}
    for name, policy in policies.items():
        with torch.no_grad():
            utility = execute(policy, days, market, order, generator(2, "noise")).utility_bps(order)
        assert view.numbers.loc[name, "total_bps"] == pytest.approx(-utility.mean().item(), rel=0.03)
    assert view.numbers.loc["twap", "gain_bps"] == 0
    over_static = view.numbers["gain_bps"]["flow_refined"] - view.numbers["gain_bps"]["static_optimal"]
    assert over_static == pytest.approx(view.gain_bps[0], abs=1e-3)


def test_reaction_at_the_open_rises_with_volatility_and_depth(view: View, trained: PretrainedPolicy) -> None:
    days = view.reaction
    ranks = days.rank()
    for state in ("volatility", "depth"):
        other = ranks[["depth" if state == "volatility" else "volatility"]].assign(one=1.0)
        trade, cause = (
            ranks[c] - other @ np.linalg.lstsq(other, ranks[c], rcond=None)[0] for c in ("traded", state)
        )
        assert np.corrcoef(trade, cause)[0, 1] > 0.5
    nothing = explore(Settings(cv=0.02, depth_sd=0.0), trained, SEED).reaction
    assert nothing["traded"].std() < 0.1 * days["traded"].std()


def test_reaction_shows_the_signal_whose_mean_over_the_day_has_the_strength_of_the_slider(
    aware: PretrainedPolicy,
) -> None:
    view = explore(REMEMBERED, aware, SEED)
    # Of a process with covariance sd^2 exp(-r |s - t|), which halves in an hour, over the day.
    times = (np.arange(390) + 0.5) / 390
    mean_variance = np.mean(0.5 ** (6.5 * np.abs(times[:, None] - times)))
    assert view.reaction["signal"].std() == pytest.approx(0.3 / np.sqrt(mean_variance), rel=0.15)
    _, _, drawn, day, *_ = explore_figure(view).axes
    assert "signal" in drawn.get_xlabel()
    np.testing.assert_allclose(np.asarray(day.lines[0].get_ydata(), float), view.day["signal"])
    assert day.get_ylabel() == "signal"
    assert sorted(np.concatenate([line.get_xdata() for line in drawn.lines[:2]])) == pytest.approx(
        view.reaction["signal"].sort_values()
    )


def test_own_impact_counts_as_illiquidity_and_as_a_price_move_that_no_policy_changes(
    view: View, trained: PretrainedPolicy
) -> None:
    costly, thin = (explore(s, trained, SEED) for s in (Settings(eta=0.284), Settings(illiquidity=2.0)))
    pd.testing.assert_frame_equal(costly.frontier, thin.frontier, rtol=1e-5)
    more = explore(Settings(gamma=0.514), trained, SEED).numbers["cost_bps"] - view.numbers["cost_bps"]
    assert more.to_numpy() == pytest.approx(1e4 * 0.2 * 0.02 * 263**0.25 * 0.1 / 2, rel=1e-3)


def test_what_is_outside_the_training_range_is_named_beside_the_results(
    view: View, trained: PretrainedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert view.outside == []
    [told] = explore(Settings(eta=0.02, size=0.01, risk_aversion=4e-3), trained, SEED).outside
    assert told.startswith("urgency = ")
    monkeypatch.setattr("flowoe_lib.desk.explorer_page.explore", lambda *_: replace(view, outside=[told]))
    page = Page(trained, SEED, Settings())
    assert page.message.value.endswith(told)
    assert page.results.layout.visibility == "visible"


def test_formatted_numbers_have_no_negative_zero(view: View) -> None:
    nearly = replace(view, gain_bps=(-0.001, -0.004, 0.001))
    text = numbers_table(nearly).to_html()
    assert "+0.00 bps of utility (95 %: +0.00 to +0.00)" in text
    assert "-0.00" not in text
    assert f"{view.numbers['cost_bps']['twap']:.2f}" in text


def test_settings_outside_the_training_range_are_refused_by_name(trained: PretrainedPolicy) -> None:
    with pytest.raises(ValueError, match=r"volatility = 0\.3: trained on .*; beta = 0\.9: trained on"):
        explore(Settings(volatility=0.3, beta=0.9), trained, SEED)


def test_figure_marks_the_settings_own_points(view: View) -> None:
    figure = explore_figure(view)
    _, frontier, reaction, volatility, liquidity, trades = figure.axes
    drawn = [
        [float(np.asarray(part)[line.get_markevery()[0]]) for part in line.get_data()]  # type: ignore[index]
        for line in frontier.lines
    ]
    assert [line.get_marker() for line in frontier.lines] == [
        LOOKS[name].marker for name in (*SCHEDULES, "flow_refined")
    ]
    own = view.frontier.groupby("policy", sort=False).first()
    np.testing.assert_allclose(drawn, own[["risk_bps", "cost_bps"]])
    assert sum(np.size(line.get_xdata()) for line in reaction.lines[:2]) == len(view.reaction)
    for axes, state in ((volatility, "volatility"), (liquidity, "liquidity")):
        np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata(), float), view.day[state])
        assert axes.get_ylim()[1] == pytest.approx(view.day[state].max(), rel=0.2)
    for stairs in trades.patches:
        assert stairs.get_data().values.sum() == pytest.approx(100, abs=1e-3)  # type: ignore[attr-defined]


def test_no_legend_of_the_figure_covers_a_label_or_leaves_it(view: View) -> None:
    figure = explore_figure(view)
    figure.draw_without_rendering()
    legends = [part.legends[0].get_window_extent() for part in figure.subfigs]
    # With titles, labels and ticks.
    panels = [box for axes in figure.axes if (box := axes.get_tightbbox()) is not None]
    assert len(panels) == 6
    assert not any(legend.overlaps(panel) for legend in legends for panel in panels)
    for box in [*legends, *panels]:
        assert box.width > 100
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1


def test_there_is_a_slider_for_each_setting_over_its_range(aware: PretrainedPolicy) -> None:
    assert [dial.setting for dial in DIALS] == [field.name for field in fields(Settings)]
    for dial in DIALS:
        slider = dial.slider(aware, Settings())
        assert slider.value == pytest.approx(dial.scale * getattr(Settings(), dial.setting))
        low, high = dial.bounds(aware)
        margin = (high - low) / 100
        for end, bound, outside in ((slider.min, low, low - margin), (slider.max, high, high + margin)):
            slider.value = 10**end if dial.logarithmic else end
            assert slider.value == pytest.approx(bound)
            replace(Settings(), **{dial.setting: slider.value / dial.scale}).condition(aware)
            with pytest.raises(ValueError, match=f"{dial.setting} = "):
                replace(Settings(), **{dial.setting: outside / dial.scale}).condition(aware)


def test_a_move_redraws_and_moving_back_shows_the_same_picture(trained: PretrainedPolicy) -> None:
    page = Page(trained, SEED, Settings())
    first = [bytes(picture.value) for picture in page.pictures]
    assert all(picture.startswith(b"\x89PNG") for picture in first)
    page.sliders["beta"].value = 0.7
    assert page.settings == replace(Settings(), beta=0.7)
    assert all(bytes(picture.value) != old for picture, old in zip(page.pictures, first, strict=True))
    page.sliders["beta"].value = 0.6
    assert [bytes(picture.value) for picture in page.pictures] == first


def test_presets_move_the_market_and_reset_moves_everything_back_to_the_start(
    trained: PretrainedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Page, "draw", lambda page: None)
    start = Settings(**FIT)
    page = Page(trained, SEED, start)
    assert vars(page.settings) == pytest.approx(vars(start))
    page.sliders["beta"].value = 0.7
    for name in ("calm", "crisis", "stressed"):
        page.buttons[name].click()
        expected = replace(start, beta=0.7, **PRESETS[name])
        assert vars(page.settings) == pytest.approx(vars(expected))
        page.settings.condition(trained)
    page.buttons["reset"].click()
    assert vars(page.settings) == pytest.approx(vars(start))


def test_a_fit_that_the_policy_was_not_trained_for_is_refused(trained: PretrainedPolicy) -> None:
    with pytest.raises(ValueError, match=r"beta = 0\.9: trained on 0\.45 to 0\.75"):
        Page(trained, SEED, Settings(**FIT | {"beta": 0.9}))


def test_an_error_is_a_message_in_the_page(trained: PretrainedPolicy) -> None:
    page = Page(trained, SEED, Settings())
    page.trained = replace(trained, calibration=dict(trained.calibration) | {"kappa": -1.0})
    page.draw()
    assert "Heston.kappa = -1: must be finite" in page.message.value
    assert page.results.layout.visibility == "hidden"
    page.trained = trained
    page.draw()
    assert (page.message.value, page.results.layout.visibility) == ("", "visible")


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
