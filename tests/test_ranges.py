"""The training range: distributions of the drawn parameters, and draws of drift and regimes."""

import dataclasses
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from flowoe_lib.evaluation.extrapolation import violations
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.impact import expected_cost_factor
from flowoe_lib.market.model import Market, Order, scalar
from flowoe_lib.market.pre_trade import moment_matched, urgency
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.randomness import generator

N = 20_000
EVERYTHING = TrainingRange(
    kappa=(1.0, 12.0),
    rho=-0.7,
    depth_sd=(0.1, 0.6),
    depth_reversion=(1.5, 12.0),
    profile_amplitude=(-0.2, 1.2),
    drift=0.4,
    beta=(0.5, 0.7),
    window=0.3,
)


def draw(conditions: TrainingRange = EVERYTHING, n: int = N, seed: int = 1) -> tuple[Market, Order]:
    return conditions.draw(n, generator(seed, "test"))


def z_share(found: Tensor, share: float) -> float:
    """Difference between a share of paths and its expected value, in standard errors."""
    return float(found.double().mean() - share) / math.sqrt(share * (1 - share) / len(found))


def test_each_quantity_has_its_law_and_its_bounds() -> None:
    market, order = draw()
    heston, liquidity, c = market.heston, market.liquidity, EVERYTHING
    cut = 1 - (liquidity.window_end - liquidity.window_start)
    logarithmic = {
        "volatility": (heston.theta.sqrt(), c.volatility),
        "kappa": (heston.kappa, c.kappa),
        "size": (order.size, c.size),
        "risk aversion": (order.risk_aversion, c.risk_aversion),
        "depth reversion": (liquidity.depth_reversion, c.depth_reversion),
    }
    for name, (value, bounds) in logarithmic.items():
        low, high = (math.log(b) for b in bounds)
        law = stats.uniform(low, high - low)
        assert stats.kstest(value.double().log().numpy(), law.cdf).pvalue > 1e-4, name
    uniform = {
        "illiquidity": (liquidity.illiquidity, c.illiquidity),
        "cv": (heston.cv[market.drift_sd == 0], c.cv),
        "depth": (liquidity.depth_sd[liquidity.depth_sd > 0.1], c.depth_sd),
        "beta": (market.impact.beta, c.beta),
        "part cut off": (cut[cut > 1e-6], (0.0, 0.7)),
        "share of it cut off the start": ((liquidity.window_start / cut)[cut > 1e-2], (0.0, 1.0)),
        "profile": (liquidity.profile_amplitude[liquidity.profile_amplitude > -0.2], c.profile_amplitude),
    }
    for name, (value, (low, high)) in uniform.items():
        law = stats.uniform(low, high - low)
        assert stats.kstest(value.double().numpy(), law.cdf).pvalue > 1e-4, name
        assert value.min() >= low - 1e-6
        assert value.max() <= high + 1e-6
    assert (heston.rho == heston.rho.new_tensor(-0.7)).all()
    assert (order.side == 1).all()


def test_quantities_are_drawn_independently() -> None:
    market, order = draw()
    drawn = [
        market.heston.theta.log(),
        market.heston.kappa.log(),
        market.liquidity.illiquidity,
        market.liquidity.depth_sd,
        market.liquidity.depth_reversion.log(),
        market.liquidity.profile_amplitude,
        order.size.log(),
        order.risk_aversion.log(),
    ]
    hidden = market.drift_sd > 0
    # Drifts are known or hidden, never both, and variance is steady where they are hidden.
    open_days = [x[~hidden] for x in (*drawn, market.heston.cv, market.drift / market.heston.theta.sqrt())]
    closed_days = [x[hidden] for x in (*drawn, market.drift_sd / market.heston.theta.sqrt())]
    for columns in (open_days, closed_days):
        correlation = torch.corrcoef(torch.stack(columns).double())
        apart = correlation - torch.eye(len(columns))
        assert apart.abs().max() < 4.5 / math.sqrt(len(columns[0]))


def test_half_of_the_days_are_whole() -> None:
    liquidity = draw()[0].liquidity
    assert abs(z_share((liquidity.window_start == 0) & (liquidity.window_end == 1), 0.5)) < 4.5
    whole = draw(dataclasses.replace(EVERYTHING, window=1.0))[0].liquidity
    assert bool(((whole.window_start == 0) & (whole.window_end == 1)).all())


def test_depth_and_profile_are_at_their_lower_bound_half_of_the_time() -> None:
    market, _ = draw()
    constant = market.liquidity.depth_sd == market.liquidity.depth_sd.new_tensor(0.1)
    flat = market.liquidity.profile_amplitude == market.liquidity.profile_amplitude.new_tensor(-0.2)
    assert abs(z_share(constant, 0.5)) < 4.5
    assert abs(z_share(flat, 0.5)) < 4.5
    assert abs(z_share(constant & flat, 0.25)) < 4.5
    none, _ = draw(TrainingRange(kappa=(2.0, 2.0), rho=-0.7), 50)
    assert none.liquidity.depth_sd.count_nonzero() == 0
    assert none.liquidity.profile_amplitude.count_nonzero() == 0
    torch.testing.assert_close(none.heston.kappa.expand(50), torch.full((50,), 2.0))


def test_a_third_of_days_have_a_signal_unless_drift_is_hidden_and_half_of_those_noise() -> None:
    market, _ = draw(dataclasses.replace(EVERYTHING, signal=0.4))
    signal, volatility = market.signal, 1e4 * market.heston.theta.sqrt()
    hidden, present = market.drift_sd > 0, signal.sd > 0
    assert not bool((hidden & present).any())
    assert abs(z_share(present[~hidden], 1 / 3)) < 4.5
    assert abs(z_share(signal.noise_sd[present] > 0, 0.5)) < 4.5
    # The variance of the day's mean of an Ornstein-Uhlenbeck process, by double summation of its covariance.
    times = (torch.arange(2_000).double() + 0.5) / 2_000
    lasting = torch.exp(-signal.reversion.double() * (times[:, None] - times).abs()).mean()
    strength = (signal.sd / volatility)[present].double() * lasting.sqrt()
    assert stats.kstest(strength.numpy(), stats.uniform(0, 0.4).cdf).pvalue > 1e-4
    noise = (signal.noise_sd / signal.sd)[signal.noise_sd > 0].double()
    assert stats.kstest(noise.numpy(), stats.uniform(0, 4).cdf).pvalue > 1e-4
    assert not draw()[0].signal.present


def test_drift_is_known_on_one_day_in_four_and_hidden_on_another() -> None:
    market, _ = draw()
    known, hidden = market.drift != 0, market.drift_sd != 0
    assert not (known & hidden).any()
    assert abs(z_share(known, 0.25)) < 4.5
    assert abs(z_share(hidden, 0.25)) < 4.5
    daily = 1e4 * market.heston.theta.double().sqrt()
    either_way = (market.drift / daily)[known].numpy()
    assert stats.kstest(either_way, stats.uniform(-0.4, 0.8).cdf).pvalue > 1e-4
    spread = (market.drift_sd / daily)[hidden].numpy()
    assert stats.kstest(spread, stats.uniform(0, 0.4).cdf).pvalue > 1e-4
    # What prices tell of it is simple where variance is as steady as can be.
    assert (market.heston.cv[hidden] == market.heston.cv.new_tensor(EVERYTHING.cv[0])).all()
    assert (market.heston.cv[~hidden] > EVERYTHING.cv[0]).float().mean() > 0.99
    without, _ = draw(dataclasses.replace(EVERYTHING, drift=0.0))
    assert without.drift.count_nonzero() == without.drift_sd.count_nonzero() == 0


def test_regimes_keep_the_averages_that_were_drawn() -> None:
    switching = dataclasses.replace(EVERYTHING, regimes=0.3)
    (market, order), (plain, same) = draw(switching), draw()
    assert not plain.regimes.present
    map_tensors(lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0) or a, order, same)
    regimes = market.regimes
    here = regimes.volatility_multiplier != 1
    # A hidden drift is filtered from prices of one regime.
    hidden = market.drift_sd != 0
    assert not (here & hidden).any()
    assert abs(z_share(here[~hidden], 0.3)) < 4.5
    assert (here == (regimes.cost_multiplier != 1)).all()
    for value, (low, high) in ((regimes.volatility_multiplier, (1, 3)), (regimes.cost_multiplier, (1, 7))):
        law = stats.uniform(low, high - low)
        assert stats.kstest(value[here].numpy(), law.cdf).pvalue > 1e-4
    for rate in (regimes.enter, regimes.leave):
        assert stats.kstest(rate.log().numpy() / math.log(8), stats.uniform().cdf).pvalue > 1e-4
    believed = moment_matched(market)
    torch.testing.assert_close(believed.heston.theta, plain.heston.theta, rtol=1e-4, atol=0)
    paid, meant = (m.temporary_cost_bps(order.size) * expected_cost_factor(m) for m in (believed, plain))
    torch.testing.assert_close(paid, meant, rtol=1e-4, atol=0)
    # Without regimes the draws are unchanged.
    for name in ("theta", "cv", "kappa"):
        assert torch.equal(getattr(market.heston, name)[~here], getattr(plain.heston, name)[~here])


def test_draws_are_inside_the_range_and_each_violation_is_named() -> None:
    market, order = draw(n=400)
    named = []
    for i in range(400):
        one = [map_tensors(lambda x, i=i: x[i] if x.dim() else x, part) for part in (market, order)]
        named += [d.quantity for d in violations(EVERYTHING, *one)]
    # Ranges of single quantities hold every draw; those of ratios hold 99 % of them.
    assert set(named) <= {"urgency", "drift over cost", "sd of the hidden drift over cost"}
    assert len(named) <= 20
    market, order = (map_tensors(lambda x: x[0] if x.dim() else x, part) for part in (market, order))
    heston = dataclasses.replace(market.heston, kappa=scalar(30.0), cv=scalar(2.5))
    far = dataclasses.replace(market, heston=heston, drift=scalar(-1e4), drift_sd=scalar(0.0))
    tiny = dataclasses.replace(order, size=scalar(1e-9))
    found = violations(EVERYTHING, far, tiny)
    assert [d.quantity for d in found] == ["urgency", "kappa", "cv", "drift over cost"]
    assert str(found[2]) == "cv = 2.5: trained on 0.4 to 1.8"


def test_only_dimensionless_quantities_count() -> None:
    """A market with other units of volatility, size and risk aversion but equal ratios is as far away."""
    market, order = (map_tensors(lambda x: x[0] if x.dim() else x, part) for part in draw(n=1))
    for volatility, size in ((1e-4, 1e-5), (0.3, 0.9)):
        heston = dataclasses.replace(market.heston, theta=scalar(volatility**2))
        moved = dataclasses.replace(market, heston=heston, drift=scalar(0.0), drift_sd=scalar(0.0))
        other = dataclasses.replace(order, size=scalar(size))
        aversion = other.risk_aversion / urgency(moved, other)
        assert violations(EVERYTHING, moved, dataclasses.replace(other, risk_aversion=aversion)) == []


def test_constant_depth_cannot_violate_the_range_of_its_reversion() -> None:
    market, order = (map_tensors(lambda x: x[0] if x.dim() else x, part) for part in draw(n=1))
    for sd, named in ((0.0, ["depth_sd"]), (0.3, ["depth_reversion"])):
        liquidity = dataclasses.replace(market.liquidity, depth_sd=scalar(sd), depth_reversion=scalar(50.0))
        found = violations(EVERYTHING, dataclasses.replace(market, liquidity=liquidity), order)
        assert [d.quantity for d in found] == named


@pytest.mark.parametrize("seed", [1, 2])
def test_draws_are_determined_by_their_stream(seed: int) -> None:
    first, again, other = (draw(n=20, seed=s)[0].heston.theta for s in (seed, seed, seed + 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
