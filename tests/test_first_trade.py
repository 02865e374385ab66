"""The first trade at constant forecasts: against adaptive quadrature, closed forms and numerical optima."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq, minimize
from scipy.special import softmax

from flowoe_lib.market.first_trade import first_trade, first_trade_with_memory, lasting_share
from flowoe_lib.market.model import scalar

N = 39


def first_pace(urgency: float, drift: float, beta: float, n_buckets: int) -> float:
    """Mean pace in the first bucket of the schedule of continuous time, by adaptive quadrature."""
    at = min(max(drift / (2 * urgency), 0.0), 1.0)
    worst = max(drift * u - urgency * u**2 for u in (0.0, at, 1.0))

    def days(least: float, until: float) -> float:
        """Days in which inventory falls from one to ``until``."""

        def slowness(u: float) -> float:
            return float(((urgency * u**2 - drift * u + worst + least) / beta) ** (-1 / (1 + beta)))

        above, below = ((max(sign * (until - at), 0.0)) ** 0.5 for sign in (1, -1))
        first = quad(lambda s: 2 * s * slowness(at + s**2), above, (1 - at) ** 0.5, epsrel=1e-6)[0]
        return float(first + quad(lambda s: 2 * s * slowness(at - s**2), 0, below, epsrel=1e-6)[0])

    least = math.exp(brentq(lambda x: days(math.exp(x), 0) - 1, -25, 1))
    return n_buckets * (1 - brentq(lambda until: days(least, until) - 1 / n_buckets, 0, 1))


@pytest.mark.parametrize("rate", [0.5, 4.0, 12.0])
def test_lasting_share_is_the_weight_of_variance_in_the_risk_of_twap(rate: float) -> None:
    exact = quad(lambda s: 3 * (1 - s) ** 2 * math.exp(-rate * 0.7 * s), 0, 1)[0]
    found = lasting_share(scalar(rate).double(), scalar(0.7).double())
    assert float(found) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("beta", [0.45, 0.6, 1.0])
@pytest.mark.parametrize(
    ("urgency", "drift"), [(0.01, 0.0), (1.0, 0.0), (6.0, 0.0), (1.0, -1.0), (0.2, 0.5), (3.0, 2.0)]
)
def test_first_trade_is_that_of_the_continuous_schedule(urgency: float, drift: float, beta: float) -> None:
    given = torch.tensor([[urgency], [drift], [beta]], dtype=torch.float64)
    found = first_trade(given[0], given[1], given[2], N)
    assert float(found) == pytest.approx(first_pace(urgency, drift, beta, N), rel=6e-3)


def test_first_trade_at_linear_impact_is_the_closed_form() -> None:
    """1 - sinh(kappa (N - 1) / N) / sinh(kappa) with kappa the root of urgency, of Almgren and Chriss."""
    urgency = torch.tensor([0.01, 0.5, 3.0, 12.0], dtype=torch.float64)
    kappa = urgency.sqrt()
    exact = N * (1 - torch.sinh(kappa * (N - 1) / N) / torch.sinh(kappa))
    found = first_trade(urgency, torch.zeros_like(urgency), scalar(1.0).double(), N)
    torch.testing.assert_close(found, exact, rtol=4e-3, atol=0.0)


@pytest.mark.parametrize("n", [4, 13, 39])
@pytest.mark.parametrize("beta", [0.45, 0.75])
@pytest.mark.parametrize(("urgency", "drift"), [(0.5, 0.0), (8.0, -4.0), (60.0, 0.0), (2.0, 1.5)])
def test_first_trade_is_close_to_the_optimum_in_few_buckets(
    urgency: float, drift: float, beta: float, n: int
) -> None:
    """The optimum is minimised numerically, over the trades of all buckets."""

    def cost(shares: Any) -> float:
        trades = softmax(shares)
        left = 1 - trades.cumsum()
        return float((n**beta * trades ** (1 + beta) + (urgency * left**2 - drift * left) / n).sum())

    found = minimize(cost, np.zeros(n), method="L-BFGS-B", options={"maxfun": 10**6, "ftol": 1e-14}).x
    best = float(softmax(found)[0])
    given = torch.tensor([[urgency], [drift], [beta]], dtype=torch.float64)
    share = float(first_trade(given[0], given[1], given[2], n)) / n
    assert share == pytest.approx(best, rel=0.08)


@pytest.mark.parametrize("half_life", [0.05, 0.15, 0.4])
@pytest.mark.parametrize("urgency", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("already", [0.0, 0.2])
def test_first_trade_with_memory_is_close_to_the_optimum(
    half_life: float, urgency: float, already: float
) -> None:
    """The optimum is minimised numerically, over the trades of all buckets and from an impact state."""
    n, beta = 13, 0.6
    decay = 0.5 ** (1 / half_life / n)

    def impact(trades: Any, state: float) -> float:
        cost = 0.0
        for x in trades:
            cost += abs(state + x) ** (1 + beta) - abs(state) ** (1 + beta)
            state = (state + x) * decay
        return cost

    slope = 1 / impact(np.full(n, 1 / n), 0.0)

    def cost(shares: Any) -> float:
        trades = softmax(shares)
        return float(slope * impact(trades, already) + urgency * ((1 - trades.cumsum()) ** 2).sum() / n)

    found = minimize(cost, np.zeros(n), method="L-BFGS-B", options={"maxfun": 10**6, "ftol": 1e-13}).x
    of, zero, exponent, kept, state = (scalar(x).double()[None] for x in (urgency, 0, beta, decay, already))
    share = float(first_trade_with_memory(of, zero, exponent, kept, state, n, n)) / n
    # Policies do not trade where the optimum of this problem would buy back.
    assert max(share, 0.0) == pytest.approx(float(softmax(found)[0]), rel=0.1, abs=0.01)


def test_gradient_of_the_first_trade_is_its_slope() -> None:
    points = torch.tensor([[0.3, 2.0, 6.0, 3.0], [-2.0, 1.0, -4.0, 4.0]], dtype=torch.float64)
    beta, h = scalar(0.6).double(), 1e-5
    for axis in range(2):
        there = points.clone().requires_grad_()
        first_trade(there[0], there[1], beta, N).sum().backward()
        step = torch.zeros_like(points)
        step[axis] = h
        (up, down), (ahead, behind) = points + step, points - step
        ends = first_trade(up, down, beta, N), first_trade(ahead, behind, beta, N)
        assert there.grad is not None
        torch.testing.assert_close(there.grad[axis], (ends[0] - ends[1]) / (2 * h), rtol=0.02, atol=1e-3)


def test_it_is_best_to_wait_under_a_strong_drift() -> None:
    waits = first_trade(scalar(1.0)[None], scalar(10.0)[None], scalar(0.6), N)
    assert float(waits) < 1e-3
