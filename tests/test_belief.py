"""The optimum under hidden drift against quadrature on a grid, known limits and simulated utility."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flowoe_lib.execution.execution import execute
from flowoe_lib.market.model import BPS, Heston, Liquidity, Market, Order, Regimes, scalar
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.oracle import solve_belief, solve_oracle
from flowoe_lib.randomness import generator

Array = NDArray[np.float64]

VOL = 0.02


def condition(
    drift_sd: float,
    drift: float = 0.0,
    risk_aversion: float = 5e-4,
    side: float = 1.0,
    profile: float = 0.0,
    depth_sd: float = 0.0,
) -> tuple[Market, Order]:
    """An order at nearly constant volatility; drift and its deviation in daily standard deviations."""
    heston = Heston(scalar(VOL**2), scalar(5.0), scalar(0.02), scalar(-0.5))
    liquidity = Liquidity(depth_sd=scalar(depth_sd), profile_amplitude=scalar(profile))
    market = Market(
        heston, liquidity=liquidity, drift=scalar(BPS * VOL * drift), drift_sd=scalar(BPS * VOL * drift_sd)
    )
    return market, Order(scalar(0.1), scalar(risk_aversion), scalar(side))


def blind(market: Market) -> Market:
    """The same market with a known drift, equal to the mean of the hidden one."""
    return dataclasses.replace(market, drift_sd=scalar(0.0))


def by_quadrature(market: Market, order: Order, actions: int, draws: int) -> float:
    """Best utility over four buckets when trades are multiples of 1 / ``actions``.

    Returns and the drift are jointly normal: beliefs are regressions of one on the others, and the returns
    of the first two buckets, the only ones that a decision hangs on, Gauss-Hermite points.
    """
    dt, theta, phi = 1 / 4, float(market.heston.theta), float(order.size)
    prior, sd = float(order.side * market.drift), float(market.drift_sd)
    eta, beta, gamma = (float(x) for x in (market.impact.eta, market.impact.beta, market.impact.gamma))
    minute = (np.arange(40000) + 0.5) / 40000
    legendre = (6 * minute**2 - 6 * minute + 1).reshape(4, -1).mean(1)
    u = 1 + float(market.liquidity.profile_amplitude) * legendre
    covariance = (sd * dt) ** 2 + 1e8 * theta * dt * np.eye(2)
    x, weight = np.polynomial.hermite_e.hermegauss(draws)
    weight = weight / weight.sum()
    pairs = np.stack(np.meshgrid(x, x, indexing="ij"), -1)
    surprise = pairs @ np.linalg.cholesky(covariance).T
    once = prior + surprise[:, 0, 0] * sd**2 * dt / covariance[0, 0]
    twice = prior + surprise @ np.linalg.solve(covariance, np.full(2, sd**2 * dt))

    q = np.arange(actions + 1) / actions
    kept, sold = q[None, :], np.maximum(q[:, None] - q, 0)

    def profit(k: int, belief: Array) -> Array:
        """Of going from q to q', [..., q, q'], minus infinity for buying."""
        temporary = 1e4 * eta * math.sqrt(theta) * (phi * sold / (u[k] * dt)) ** beta * sold
        permanent = 1e4 * gamma * 263**0.25 * math.sqrt(theta) * phi * sold * (kept + sold / 2)
        risk = float(order.risk_aversion) * 1e8 * theta * dt * kept**2
        worth = belief[..., None, None] * dt * kept - temporary - permanent - risk
        return np.where(q[:, None] >= q, worth, -np.inf)

    close = profit(3, np.zeros(()))[:, 0]
    third = (profit(2, twice) + close).max(-1)
    second = (profit(1, once) + np.einsum("abq,b->aq", third, weight)[:, None]).max(-1)
    first = profit(0, np.array(prior))[-1] + weight @ second
    return float(first.max())


@pytest.mark.parametrize(
    ("drift_sd", "drift", "profile"), [(1.0, 0.0, 0.0), (1.0, 0.2, 0.8), (2.0, -0.3, 0.0)]
)
def test_four_buckets_match_quadrature_over_returns(drift_sd: float, drift: float, profile: float) -> None:
    market, order = condition(drift_sd, drift, profile=profile)
    value = solve_belief(market, order, 4).value_bps
    coarse, fine = (by_quadrature(market, order, actions, 48) for actions in (20, 40))
    # The loss from coarse trades falls with the square of their spacing.
    best = fine + (fine - coarse) / 3
    learning = value - solve_oracle(blind(market), order, 4).value_bps
    assert value == pytest.approx(best, abs=3e-3 * learning)


@pytest.mark.parametrize("drift", [0.0, 0.2, -0.2])
def test_a_drift_with_little_variance_is_a_known_drift(drift: float) -> None:
    market, order = condition(1e-4, drift)
    known = solve_oracle(blind(market), order, 39).value_bps
    assert solve_belief(market, order, 39).value_bps == pytest.approx(known, rel=2e-4)


@pytest.mark.parametrize(
    ("drift_sd", "drift", "risk_aversion", "side"),
    [(0.3, 0.0, 5e-4, 1.0), (0.3, 0.2, 1e-5, -1.0), (1.0, 0.0, 5e-4, -1.0)],
)
def test_value_is_its_simulated_utility_and_above_that_without_learning(
    drift_sd: float, drift: float, risk_aversion: float, side: float
) -> None:
    market, order = condition(drift_sd, drift, risk_aversion, side)
    n_buckets, n_paths = 39, 20_000
    optimum, unlearned = solve_belief(market, order, n_buckets), solve_oracle(blind(market), order, n_buckets)
    paths = simulate(market, n_paths, n_buckets, generator(4, "belief"))
    ours, rival = (execute(p, paths, market, order, generator(4, "policy")) for p in (optimum, unlearned))
    # Moments of the day's return are known exactly: as control variates they reduce the sampling error.
    change = (paths.martingale_bps + paths.drift_bps).double().sum(0) - market.drift
    day = change / math.sqrt(1e8 * market.heston.theta + market.drift_sd**2)
    known = torch.stack((day, day.square() - 1), 1)

    def estimate(sample: torch.Tensor) -> tuple[float, float]:
        slope = torch.linalg.lstsq(known, (sample.double() - sample.double().mean())[:, None]).solution
        controlled = sample.double() - (known @ slope)[:, 0]
        return float(controlled.mean()), float(controlled.std()) / math.sqrt(n_paths)

    mean, error = estimate(ours.utility_bps(order))
    gain, gain_error = estimate(ours.utility_bps(order) - rival.utility_bps(order))
    martingale, martingale_error = estimate(ours.martingale_bps)
    assert abs(optimum.value_bps - mean) < 3.5 * error
    assert abs(optimum.value_bps - unlearned.value_bps - gain) < 3.5 * gain_error
    assert gain > 5 * gain_error
    assert abs(martingale) < 3.5 * martingale_error


def test_every_refinement_changes_the_value_less() -> None:
    market, order = condition(1.0)
    values = [
        solve_belief(market, order, 7, inventory_nodes=10 * m + 1, belief_nodes=10 * m + 1).value_bps
        for m in (1, 2, 4, 8)
    ]
    steps = np.abs(np.diff(values))
    assert bool((steps[1:] < steps[:-1] / 4).all())


def test_buying_in_falling_prices_is_selling_in_rising_ones() -> None:
    sold, bought = (solve_belief(*condition(0.5, sign * 0.2, side=sign), 13) for sign in (1.0, -1.0))
    assert bought.value_bps == pytest.approx(sold.value_bps, rel=1e-12)
    assert torch.allclose(bought.fraction, sold.fraction, atol=1e-9)


def test_trades_slower_if_the_expected_drift_is_favourable() -> None:
    table = solve_belief(*condition(1.0), 13).fraction
    whole = table[1:, -1]
    assert bool((whole.diff(dim=1) < 1e-3).all())
    assert bool((whole[:, 0] > whole[:, -1] + 0.1).all())


def test_other_markets_days_and_empty_grids_are_refused() -> None:
    market, order = condition(0.3)
    with pytest.raises(ValueError, match=r"shape \[2\]"):
        solve_belief(market, Order(order.size.expand(2), order.risk_aversion), 5)
    with pytest.raises(ValueError, match="0 buckets"):
        solve_belief(market, order, 0)
    with pytest.raises(ValueError, match="41 x 3 nodes"):
        solve_belief(market, order, 5, belief_nodes=3)
    with pytest.raises(ValueError, match="drift_sd = 0"):
        solve_belief(blind(market), order, 5)
    with pytest.raises(ValueError, match=r"Liquidity.depth_sd = 0\.5"):
        solve_belief(*condition(0.3, depth_sd=0.5), 5)
    with pytest.raises(ValueError, match=r"Market\.regimes"):
        solve_belief(dataclasses.replace(market, regimes=Regimes(cost_multiplier=scalar(2.0))), order, 5)
    optimum = solve_belief(market, order, 5)
    with pytest.raises(ValueError, match="n_buckets = 6: must be 5"):
        execute(optimum, simulate(market, 2, 6, generator(0)), market, order, generator(0))
