"""Settings of the robustness study: moments of jumps, what traders believe, and the cross-test."""

import math

import pytest
import torch

from flowoe_lib.evaluation.intervals import paired_interval
from flowoe_lib.execution.execution import execute
from flowoe_lib.market.model import Heston, Market, Order, scalar
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.flow import unpack
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.replanning import mpc
from flowoe_lib.policies.schedules import expected_utility, twap
from flowoe_lib.randomness import generator
from flowoe_lib.studies.robustness import Setting, cross_test, retrain, settings_around
from flowoe_lib.training.pretrained import load_pretrained

THETA, N = 4e-4, 13
BASE = Market(Heston(scalar(THETA), scalar(4.0), scalar(0.5), scalar(-0.6)))
ORDER = Order(scalar(0.1), scalar(5e-4))


def test_jumps_add_variance_and_no_drift() -> None:
    paths = Setting("jumps", BASE, 0.5).days(15_000, N, 1)
    plain = Setting("base", BASE).days(15_000, N, 1)
    moves = (paths.martingale_bps - plain.martingale_bps).double() / 1e4
    day = moves.sum(0)
    assert abs(day.mean()) < 4 * day.std() / math.sqrt(len(day))
    assert day.square().mean().item() == pytest.approx(0.5 * THETA, rel=0.06)
    # A compound Poisson sum of normals: kurtosis 3 (1 + 1 / rate), two jumps a day.
    assert (day**4).mean().item() == pytest.approx(4.5 * (0.5 * THETA) ** 2, rel=0.2)
    extra = (paths.integrated_variance - plain.integrated_variance).double()
    torch.testing.assert_close(extra, moves.square(), rtol=1e-2, atol=1e-9)
    expected = (paths.expected_variance - plain.expected_variance).double().sum(0)
    torch.testing.assert_close(expected, torch.full_like(expected, 0.5 * THETA), rtol=1e-3, atol=0)


def test_who_knows_the_jumps_expects_their_risk_at_the_same_cost() -> None:
    jumps = Setting("jumps", BASE, 0.5)
    paths = jumps.days(20_000, N, 2)
    believed = jumps.information(paths).market
    u = execute(twap, paths, BASE, ORDER, generator(1, "noise")).utility_bps(ORDER).double()
    even = torch.linspace(1, 0, N + 1, dtype=torch.float64)
    error = u.std() / math.sqrt(len(u))
    assert abs(u.mean() - expected_utility(believed, ORDER, even)) < 4 * error


def test_the_cross_test_is_the_difference_to_the_oracle_on_the_same_days() -> None:
    settings = [s for s in settings_around(BASE) if s.name in ("base", "kappa x 3", "jumps")]
    table = cross_test({"mpc": {s.name: mpc for s in settings}}, settings, ORDER, N, 500, 3)
    assert len(table) == 9
    own = table[table["setting"] == table["tested_in"]].set_index("tested_in")
    assert own.loc["jumps", "regret"] == 0
    assert (own["regret"].abs() < 1e-3).all()
    assert (own["capture"] > 0.99).all()
    rapid = settings[1]
    paths = simulate(rapid.market, 500, N, generator(3, "robustness", "days"))
    noise = generator(3, "robustness", "noise")
    best, planned = (
        execute(policy, paths, rapid.market, ORDER, noise, known).utility_bps(ORDER).double()
        for policy, known in (
            (solve_oracle(rapid.market, ORDER, N), None),
            (mpc, settings[0].information(paths)),
        )
    )
    row = table.query("setting == 'base' and tested_in == 'kappa x 3'").iloc[0]
    # Linear permanent impact costs every policy half of its price move, which is no part of the cost.
    cost = -best.mean().item() - rapid.market.permanent_cost_bps(ORDER.size).item() / 2
    expected = [x / cost for x in paired_interval(best - planned)]
    assert row[["regret", "regret_ci_low", "regret_ci_high"]].tolist() == pytest.approx(expected, abs=1e-8)


def test_settings_without_jumps_are_retrained() -> None:
    settings = settings_around(BASE)
    runs = unpack(retrain(load_pretrained().field, settings, ORDER, 4, 1, 1, paths=8))
    assert list(runs) == [i for i, s in enumerate(settings) if not s.jumps]
    assert all(torch.isfinite(run.curves["utility"]).all() for run in runs.values())
