"""Information of traders: filters against other solutions of the same problem, and no look-ahead."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.linalg import expm
from torch import Tensor

from flowoe_lib.execution import information as perception
from flowoe_lib.execution.execution import OrderSimulation
from flowoe_lib.execution.information import (
    DEPTH_NOISE,
    Errors,
    Information,
    Perceive,
    blind_to_regimes,
    exact,
    filtered_depth,
    filtered_state,
    realised_variance,
    regimes_as_depth,
    regimes_by_signals,
    with_errors,
)
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.model import BPS, Heston, Liquidity, Market, Order, Regimes, scalar
from flowoe_lib.market.pre_trade import moment_matched, posterior_drift
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.randomness import generator

Array = NDArray[np.float64]

N, THETA, KAPPA = 13, 4e-4, 5.0
LIQUID = Liquidity(depth_sd=scalar(0.5), depth_reversion=scalar(9.0), profile_amplitude=scalar(0.6))
STRESS = Regimes(scalar(2.0), scalar(4.0), scalar(2.0), scalar(4.0))
SHARE = 2 / 6


def market(
    cv: float = 0.8,
    liquidity: Liquidity | None = None,
    regimes: Regimes | None = None,
    drift: float = 0.0,
    drift_sd: float = 0.0,
) -> Market:
    return Market(
        Heston(scalar(THETA), scalar(KAPPA), scalar(cv), scalar(-0.6)),
        liquidity=liquidity or Liquidity(),
        drift=scalar(drift),
        drift_sd=scalar(drift_sd),
        regimes=regimes or Regimes(),
    )


def days(m: Market, n_paths: int, n_buckets: int = N, seed: int = 1) -> MarketPaths:
    return simulate(m, n_paths, n_buckets, generator(seed, "test"))


def z_score(sample: Tensor, expected: float, sd: float | None = None) -> float:
    sample = sample.double()
    spread = float(sample.std()) if sd is None else sd
    return float(sample.mean() - expected) / spread * math.sqrt(len(sample))


def same(a: object, b: object) -> bool:
    """Whether two markets are equal in every field."""
    equal: list[bool] = []

    def note(x: Tensor, y: Tensor) -> Tensor:
        equal.append(torch.equal(x, y))
        return x

    map_tensors(note, a, b)
    return all(equal)


# --- no future --------------------------------------------------------------------------------------

VIEWS: dict[str, tuple[Perceive, Market]] = {
    "exact": (exact, market(liquidity=LIQUID)),
    "blind to regimes": (blind_to_regimes, market(regimes=STRESS)),
    "regimes as depth": (regimes_as_depth, market(liquidity=LIQUID, regimes=STRESS)),
    "regimes by signals": (regimes_by_signals, market(liquidity=LIQUID, regimes=STRESS)),
    "with errors": (with_errors, market(liquidity=LIQUID)),
}


def other_future(paths: MarketPaths, m: Market, k: int) -> MarketPaths:
    """The same day up to the start of bucket ``k``; what happens in it and after is drawn anew."""
    other = days(m, paths.n_paths, seed=99)

    def splice(name: str, known: int) -> Tensor:
        one, two = (getattr(p, name).expand(N, paths.n_paths) for p in (paths, other))
        return torch.cat((one[:known], two[known:]))

    return dataclasses.replace(
        paths,
        martingale_bps=splice("martingale_bps", k),
        drift_bps=splice("drift_bps", k),
        integrated_variance=splice("integrated_variance", k),
        variance=splice("variance", k + 1),
        expected_variance=splice("expected_variance", k + 1),
        log_depth=splice("log_depth", k + 1),
        stressed=splice("stressed", k + 1),
    )


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("k", [0, 5, N - 1])
def test_information_does_not_depend_on_the_future(name: str, k: int) -> None:
    perceive, m = VIEWS[name]
    paths = days(m, 30)
    before, after = (perceive(p, m, generator(2, "errors")) for p in (paths, other_future(paths, m, k)))
    assert same(before.market, after.market)
    for one, other in ((before.variance, after.variance), (before.log_depth, after.log_depth)):
        one, other = one.expand(N, 30), other.expand(N, 30)
        assert torch.equal(one[: k + 1], other[: k + 1])
        if k < N - 1:
            assert (one[k + 1 :] != other[k + 1 :]).float().mean() > 0.3
    if before.regimes and after.regimes:
        one, other = (known.stressed.expand(N, 30) for known in (before.regimes, after.regimes))
        assert torch.equal(one[: k + 1], other[: k + 1])
        assert same(before.regimes.market, after.regimes.market)


@pytest.mark.parametrize("name", VIEWS)
def test_errors_depend_on_their_generator_only(name: str) -> None:
    perceive, m = VIEWS[name]
    paths, state = days(m, 20), torch.get_rng_state()
    kept = map_tensors(torch.clone, paths)
    first, again, other = (perceive(paths, m, generator(seed, "errors")) for seed in (1, 1, 2))
    assert torch.equal(first.variance, again.variance)
    assert torch.equal(first.log_depth, again.log_depth)
    assert same(first.market, again.market)
    assert torch.equal(first.variance, other.variance) == (name in ("exact", "regimes as depth"))
    assert torch.equal(state, torch.get_rng_state())
    assert same(kept, paths)


# --- exact information, and regimes as depth --------------------------------------------------------


def test_exact_information_is_the_truth() -> None:
    m = market(liquidity=LIQUID)
    paths = days(m, 10)
    known = exact(paths, m, generator(0, "unused"))
    assert known.market is m
    assert torch.equal(known.variance, paths.variance)
    assert torch.equal(known.log_depth, paths.log_depth)


def test_regimes_as_depth_have_the_true_cost() -> None:
    m, order = market(liquidity=LIQUID, regimes=STRESS), Order(scalar(0.1), scalar(5e-4))
    paths = days(m, 2_000)
    known = regimes_as_depth(paths, m, generator(0, "unused"))
    assert same(known.market, moment_matched(m))
    assert torch.equal(known.variance, paths.variance)
    # The expected cost in the average market of that depth equals the true cost.
    believed = OrderSimulation(dataclasses.replace(paths, log_depth=known.log_depth), known.market, order)
    torch.testing.assert_close(believed.slope, OrderSimulation(paths, m, order).slope, rtol=1e-4, atol=0)
    # Its mean is about zero, its standard deviation that of the average market.
    spread = float(known.market.liquidity.depth_sd)
    assert float(known.log_depth.std()) == pytest.approx(spread, rel=0.05)
    assert abs(float(known.log_depth.mean())) < 0.1 * spread
    # Without regimes the information is exact.
    plain = market(liquidity=LIQUID)
    paths = days(plain, 10)
    known = regimes_as_depth(paths, plain, generator(0, "unused"))
    torch.testing.assert_close(known.log_depth, paths.log_depth, rtol=0, atol=1e-6)


def believed_stress(known: Information, paths: MarketPaths, m: Market) -> Tensor:
    """The belief that estimated variance implies, [N, paths]."""
    factor = m.regimes.volatility_multiplier.square()
    calm = paths.variance / torch.where(paths.stressed, factor, 1)
    return (known.variance / calm - 1) / (factor - 1)


def test_beliefs_from_regime_signals_are_calibrated() -> None:
    m = market(liquidity=LIQUID, regimes=STRESS)
    paths = days(m, 20_000)
    known = regimes_by_signals(paths, m, generator(0, "signals"))
    assert same(known.market, moment_matched(m))
    belief = believed_stress(known, paths, m)
    # Beliefs range from certainty to the stationary probability.
    assert float((belief < 0.01).double().mean()) > 0.1
    assert float((belief > 0.99).double().mean()) > 0.02
    share = float(m.regimes.stressed_share)
    assert float(((belief - share).abs() < 0.1).double().mean()) > 0.1
    # Of the buckets with a probability p of stress, a share p is stressed, early and late in the day.
    for k in (0, N // 2, N - 1):
        order = belief[k].argsort()
        for part in order.tensor_split(8):
            happened = paths.stressed[k, part].double()
            expected = belief[k, part].double().mean().item()
            error = (expected * (1 - expected) / len(part)) ** 0.5
            assert happened.mean().item() == pytest.approx(expected, abs=4 * error + 1e-3)
    assert known.regimes is not None
    torch.testing.assert_close(known.regimes.stressed, belief, rtol=0, atol=1e-4)
    # Estimated depth gives the expected temporary cost.
    cost = 1 + belief * (m.regimes.cost_multiplier - 1)
    informed = regimes_as_depth(paths, m, generator(0, "unused"))
    true_cost = torch.where(paths.stressed, m.regimes.cost_multiplier, 1)
    shift = -(cost / true_cost).log() / m.impact.beta
    torch.testing.assert_close(known.log_depth - informed.log_depth, shift, rtol=0, atol=1e-4)


def test_precise_signals_reveal_the_regime_and_without_regimes_there_is_no_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(perception, "SIGNALS", (0.02, 0.03))
    m = market(liquidity=LIQUID, regimes=STRESS)
    paths = days(m, 2_000)
    known, informed = (f(paths, m, generator(0, "s")) for f in (regimes_by_signals, regimes_as_depth))
    torch.testing.assert_close(known.variance, informed.variance, rtol=1e-3, atol=0)
    torch.testing.assert_close(known.log_depth, informed.log_depth, rtol=0, atol=1e-3)
    plain = market(liquidity=LIQUID)
    paths = days(plain, 10)
    known = regimes_by_signals(paths, plain, generator(0, "unused"))
    assert torch.equal(known.variance, paths.variance)


# --- realised variance ------------------------------------------------------------------------------


def test_realised_variance_is_that_of_ten_normal_returns() -> None:
    m, n = market(), 40_000
    paths = days(m, n, n_buckets=3)
    measured = realised_variance(paths, generator(3, "errors"))
    ratio = (measured / 3 / paths.integrated_variance).double()
    for k in range(3):
        # Moments of chi-square of ten degrees over ten, and its law.
        assert abs(z_score(ratio[k], 1, math.sqrt(0.2))) < 4.5
        assert abs(z_score((ratio[k] - 1).square(), 0.2)) < 4.5
        assert stats.kstest(10 * ratio[k, :4000].numpy(), stats.chi2(10).cdf).pvalue > 1e-4
        assert abs(z_score((ratio[k] - 1) * (paths.variance[k] / THETA - 1), 0)) < 4.5
    assert abs(z_score((ratio[0] - 1) * (ratio[1] - 1), 0)) < 4.5


# --- variance and regimes ---------------------------------------------------------------------------


def fine_filter(realised: Array, m: Market, dt: float, cells: int = 200) -> tuple[Array, Array]:
    """The same estimates on a fine grid in double precision, a path at a time: [N] of one path each.

    Nodes are medians of cells of the stationary gamma law, weights those of a non-central chi-square.
    """
    cv2, theta = float(m.heston.cv) ** 2, float(m.heston.theta)
    law = stats.gamma(1 / cv2, scale=cv2)
    nodes = law.ppf((np.arange(cells) + 0.5) / cells)
    edges = law.ppf(np.arange(1, cells) / cells)
    decay, unit = math.exp(-float(m.heston.kappa) * dt), cv2 * (1 - math.exp(-float(m.heston.kappa) * dt)) / 2
    below = stats.ncx2.cdf(edges / unit, 2 / cv2, nodes[:, None] * decay / unit)
    step = np.diff(np.hstack((np.zeros((cells, 1)), below, np.ones((cells, 1)))))
    enter, leave = float(m.regimes.enter), float(m.regimes.leave)
    jump = expm(dt * np.array([[-enter, enter], [leave, -leave]]))
    factor = np.array([1.0, float(m.regimes.volatility_multiplier) ** 2])
    belief = np.outer([leave, enter], np.ones(cells)) / (enter + leave) / cells
    variance, stressed = [], []
    for measured in realised:
        variance.append(theta * float((belief * np.outer(factor, nodes)).sum()))
        stressed.append(float(belief[1].sum()))
        likelihood = stats.gamma.pdf(measured, 5, scale=theta * np.outer(factor, nodes) / 5)
        belief = jump.T @ (belief * likelihood / (belief * likelihood).sum()) @ step
    return np.array(variance), np.array(stressed)


@pytest.mark.parametrize("cv", [0.5, 1.3])
@pytest.mark.parametrize("regimes", [Regimes(), STRESS], ids=["one regime", "two regimes"])
def test_filter_is_the_law_of_variance_and_regimes_given_the_measured_past(
    cv: float, regimes: Regimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = market(cv, regimes=regimes)
    paths = days(m, 8)
    realised = realised_variance(paths, generator(4, "errors"))
    coarse, _ = filtered_state(realised, m, 1 / N)
    # On grids that are fine enough the two agree, although their nodes differ.
    monkeypatch.setattr(perception, "CELLS", 200)
    variance, stressed = filtered_state(realised, m, 1 / N)
    assert float(variance[0, 0]) == pytest.approx(float(moment_matched(m).heston.theta), rel=1e-4)
    for i in range(8):
        best, chance = fine_filter(realised[:, i].double().numpy(), m, 1 / N)
        np.testing.assert_allclose(variance[:, i], best, rtol=0.08)
        if regimes.present:
            np.testing.assert_allclose(stressed[:, i], chance, rtol=0, atol=0.02)
    assert (stressed[0] == stressed[0, 0]).all()
    assert (stressed > 0).any() == regimes.present
    # The one in use is coarse, but not too coarse.
    assert (coarse / variance).log().square().mean().sqrt() < 0.2


@pytest.mark.parametrize("cv", [0.5, 1.3])
@pytest.mark.parametrize("regimes", [Regimes(), STRESS], ids=["one regime", "two regimes"])
def test_filtered_variance_is_unbiased_and_better_than_simple_estimates(cv: float, regimes: Regimes) -> None:
    n_buckets, n = 39, 20_000
    m = market(cv, regimes=regimes)
    m = dataclasses.replace(m, heston=dataclasses.replace(m.heston, kappa=scalar(2.0)))
    paths, theta = days(m, n, n_buckets), float(moment_matched(m).heston.theta)
    variance, _ = filtered_state(realised_variance(paths, generator(5, "errors")), m, 1 / n_buckets)
    returns = torch.randn(10, n_buckets, n, generator=generator(6, "returns"))
    realised = returns.square().mean(0) * paths.integrated_variance * n_buckets
    for k in (1, 12, 38):
        truth, estimate = paths.variance[k].double() / theta, variance[k].double() / theta
        error = truth - estimate
        # Up to a hundredth, the error of the grid.
        assert abs(float(error.mean())) < 0.01 + 4.5 * float(error.std()) / math.sqrt(n)
        # It leaves little to correct: errors hardly depend on it. Variance moves within a bucket, the
        # filter thinks it does not.
        centred = estimate - estimate.mean()
        assert abs(float((centred * error).mean() / centred.square().mean())) < 0.1
        rivals = torch.stack((truth - 1, truth - realised[k - 1].double() / theta)).square()
        gain = rivals - error.square()
        assert (gain.mean(1) > 4.5 * gain.std(1) / math.sqrt(n)).all()
        assert (error.square().mean() < 0.8 * rivals.mean(1)).all()


def test_probabilities_of_stress_are_calibrated() -> None:
    m, n = market(0.5, regimes=STRESS), 20_000
    paths = days(m, n)
    _, chance = filtered_state(realised_variance(paths, generator(7, "errors")), m, 1 / N)
    stressed = paths.log_depth < -1
    torch.testing.assert_close(chance[0], torch.full((n,), SHARE))
    assert ((chance >= 0) & (chance <= 1)).all()
    for k in (1, 6, N - 1):
        for part in chance[k].argsort().chunk(5):
            error = stressed[k, part].double() - chance[k, part]
            assert abs(float(error.mean())) < 0.02 + 4.5 * float(error.std()) / math.sqrt(len(part))
        brier = (stressed[k].double() - chance[k]).square().mean()
        assert float(brier) < 0.8 * SHARE * (1 - SHARE)


def test_paths_with_different_estimated_levels_are_filtered_independently() -> None:
    m = market()
    realised = realised_variance(days(m, 6), generator(8, "errors"))
    theta = THETA * torch.tensor([0.5, 0.8, 1.0, 1.1, 1.5, 3.0])
    mixed = dataclasses.replace(m, heston=dataclasses.replace(m.heston, theta=theta))
    together, _ = filtered_state(realised, mixed, 1 / N)
    for i in range(6):
        alone = dataclasses.replace(m, heston=dataclasses.replace(m.heston, theta=theta[i]))
        single, _ = filtered_state(realised[:, i : i + 1], alone, 1 / N)
        torch.testing.assert_close(together[:, i], single[:, 0], rtol=1e-5, atol=0)
    # In its own unit a path looks the same.
    doubled, _ = filtered_state(
        2 * realised,
        dataclasses.replace(m, heston=dataclasses.replace(m.heston, theta=m.heston.theta * 2)),
        1 / N,
    )
    plain, _ = filtered_state(realised, m, 1 / N)
    torch.testing.assert_close(doubled, 2 * plain, rtol=1e-5, atol=0)


def test_without_observed_regimes_the_expected_cost_is_the_average_over_regimes() -> None:
    m, n, order = market(regimes=STRESS), 20_000, Order(scalar(0.1), scalar(5e-4))
    paths = days(m, n)
    known = blind_to_regimes(paths, m, generator(9, "errors"))
    assert same(known.market, moment_matched(m))
    paid = OrderSimulation(paths, m, order).slope
    expected = OrderSimulation(
        dataclasses.replace(paths, log_depth=known.log_depth), known.market, order
    ).slope
    for k in (0, 5, N - 1):
        ratio = (paid[k] / paid.mean()).double(), (expected[k] / paid.mean()).double()
        assert abs(z_score(ratio[0] - ratio[1], 0)) < 4.5
    # At the open all expectations are equal.
    assert float(known.log_depth[0].std()) < 1e-6
    # Later, a higher expected cost goes with an equally higher actual cost.
    error = (paid[-1] - expected[-1]) / paid.mean()
    for part in expected[-1].argsort().chunk(4):
        assert abs(float(error[part].mean())) < 0.03 + 4.5 * float(error[part].std()) / math.sqrt(n / 4)
    first, last = (expected[-1].sort().values[s].mean() for s in (slice(n // 4), slice(-n // 4, None)))
    assert last > 1.5 * first


def test_without_observed_regimes_depth_is_not_observed() -> None:
    m = market(regimes=STRESS)
    paths = days(m, 50)
    blurred = dataclasses.replace(paths, log_depth=torch.randn(N, 50), variance=torch.rand(N, 50))
    one, other = (blind_to_regimes(p, m, generator(10, "errors")) for p in (paths, blurred))
    assert torch.equal(one.log_depth, other.log_depth)
    assert torch.equal(one.variance, other.variance)


# --- depth ------------------------------------------------------------------------------------------


def depth_paths(log_depth: Tensor) -> MarketPaths:
    paths = days(market(), log_depth.shape[1], n_buckets=len(log_depth))
    return dataclasses.replace(paths, log_depth=log_depth)


def conditioning(depth_sd: float, reversion: float) -> Array:
    """Weights of E[l_k | displays 0..k], [N, N], by conditioning one joint normal law on the displays."""
    apart = np.abs(np.subtract.outer(np.arange(N), np.arange(N))) / N
    covariance = depth_sd**2 * np.exp(-reversion * apart)
    weights = np.zeros((N, N))
    for k in range(N):
        obs = covariance[: k + 1, : k + 1] + 0.4**2 * np.eye(k + 1)
        weights[k, : k + 1] = np.linalg.solve(obs, covariance[: k + 1, k])
    return weights


@pytest.mark.parametrize(("depth_sd", "reversion"), [(0.5, 9.0), (0.3, 2.0), (1.0, 60.0)])
def test_filtered_depth_is_the_conditional_mean_of_a_joint_normal_law(
    depth_sd: float, reversion: float
) -> None:
    assert DEPTH_NOISE == 0.4
    m = market(liquidity=Liquidity(depth_sd=scalar(depth_sd), depth_reversion=scalar(reversion)))
    # Estimates are linear in what is displayed: a unit of depth in one bucket shows their weights.
    silent, unit = (
        filtered_depth(depth_paths(depth), m, generator(11, "errors"))
        for depth in (torch.zeros(N, N), torch.eye(N))
    )
    weights = conditioning(depth_sd, reversion)
    np.testing.assert_allclose((unit - silent).numpy(), weights, rtol=1e-4, atol=2e-6)
    # With constant depth the estimate is the noise of the display, .4 in logs, with these weights.
    n = 20_000
    noise = filtered_depth(depth_paths(torch.zeros(N, n)), m, generator(12, "errors")).double()
    spread = 0.4 * np.sqrt((weights**2).sum(1))
    for k in (0, 4, N - 1):
        assert abs(z_score(noise[k], 0, spread[k])) < 4.5
        assert abs(z_score((noise[k] / spread[k]).square(), 1, math.sqrt(2))) < 4.5
    shared = 0.16 * float(weights[3] @ weights[7])
    assert abs(z_score(noise[3] * noise[7], shared)) < 4.5


def test_filtered_depth_has_the_theoretical_error() -> None:
    m, n = market(liquidity=LIQUID), 20_000
    paths = days(m, n)
    estimate = filtered_depth(paths, m, generator(13, "errors"))
    weights = conditioning(0.5, 9.0)
    apart = np.abs(np.subtract.outer(np.arange(N), np.arange(N))) / N
    covariance = 0.25 * np.exp(-9 * apart)
    for k in (0, 4, N - 1):
        error = (paths.log_depth[k] - estimate[k]).double()
        left = math.sqrt(0.25 - float(weights[k] @ covariance[k]))
        assert left < 0.4 * 0.5 / math.hypot(0.4, 0.5) + 1e-9
        assert abs(z_score(error, 0, left)) < 4.5
        assert abs(z_score((error / left).square(), 1, math.sqrt(2))) < 4.5
        assert abs(z_score(error * estimate[k], 0)) < 4.5


def test_market_under_errors_has_the_moments_of_estimated_depth_and_of_impact_given_the_estimate() -> None:
    m, n, beta = market(liquidity=LIQUID), 40_000, 0.6
    paths = days(m, n)
    known = Errors(volatility=0.0, illiquidity=0.0, returns=None)(paths, m, generator(14, "errors"))
    believed = known.market.liquidity
    for k, later in ((4, 4), (4, 6), (N - 1, N - 1)):
        estimate, decay = known.log_depth[k].double(), math.exp(-9.0 * (later - k) / N)
        assert abs(z_score((estimate / believed.depth_sd).square(), 1, math.sqrt(2))) < 4.5
        forecast = (beta * believed.depth_sd.double()).square() * (1 - decay**2) / 2 - beta * estimate * decay
        surprise = torch.exp(-beta * paths.log_depth[later].double()) - believed.illiquidity * forecast.exp()
        assert abs(z_score(surprise, 0)) < 4.5
        assert abs(z_score(surprise * estimate, 0)) < 4.5


def test_constant_depth_is_known_exactly() -> None:
    plain = market()
    assert with_errors(days(plain, 9), plain, generator(14, "errors")).log_depth.count_nonzero() == 0
    some = torch.tensor([0.0, 0.5]).repeat_interleave(6)
    mixed = market(liquidity=dataclasses.replace(LIQUID, depth_sd=some))
    depth = with_errors(days(mixed, 12), mixed, generator(14, "errors")).log_depth
    assert depth[:, :6].count_nonzero() == 0
    assert depth[:, 6:].count_nonzero() == 6 * N


# --- estimates with errors --------------------------------------------------------------------------


def test_errors_are_a_tenth_in_volatility_and_a_fifth_in_illiquidity() -> None:
    m, n = market(liquidity=dataclasses.replace(LIQUID, illiquidity=scalar(3.0)), drift=7.0), 20_000
    paths = days(m, n, n_buckets=3)
    known = with_errors(paths, m, generator(15, "errors"))
    believed = known.market
    volatility = (believed.heston.theta / THETA).double().log() / 2
    # Conditional on three displays, the error of log depth at the close has a standard deviation of .3123.
    illiquidity = (believed.liquidity.illiquidity / 3).double().log() - 0.6**2 * 0.3123**2 / 2
    for error, spread in ((volatility, 0.1), (illiquidity, 0.2)):
        assert error.shape == (n,)
        assert abs(z_score(error, 0, spread)) < 4.5
        assert abs(z_score((error / spread).square(), 1, math.sqrt(2))) < 4.5
        assert abs(z_score((error / spread) ** 4, 3, math.sqrt(96))) < 4.5
    assert abs(z_score(volatility * illiquidity, 0, 0.1 * 0.2)) < 4.5
    # All other parameters are exact, and the simulated day is unchanged.
    told = dataclasses.replace(
        believed,
        heston=dataclasses.replace(believed.heston, theta=m.heston.theta),
        liquidity=dataclasses.replace(believed.liquidity, illiquidity=scalar(3.0), depth_sd=scalar(0.5)),
    )
    assert same(told, m)
    for error in (volatility, illiquidity):
        assert abs(z_score(error * (paths.variance[0] / THETA - 1), 0)) < 4.5
        assert abs(z_score(error * paths.log_depth[0], 0)) < 4.5
    # At the open the estimate of variance is its level.
    torch.testing.assert_close(known.variance[0], believed.heston.theta, rtol=1e-4, atol=0)
    # The day's returns correct it gradually.
    late = (known.variance[2] / believed.heston.theta).log().double()
    assert float(torch.corrcoef(torch.stack((late, volatility)))[0, 1]) < -0.02


# --- drift ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("k", [1, 6, N])
def test_posterior_drift_is_the_regression_of_drift_on_the_return(side: float, k: int) -> None:
    n, told, spread = 60_000, -30.0, 180.0
    m = market(0.02, drift=told, drift_sd=spread)
    order = Order(scalar(0.1), scalar(5e-4), scalar(side))
    paths = days(m, n)
    price = side * (paths.martingale_bps + paths.drift_bps).double()[:k].sum(0)
    drift = side * paths.day_drift_bps.double()
    found = posterior_drift(m, order, price, k / N)
    # Least squares on simulated days: slope and intercept, with their standard errors.
    design = torch.stack((torch.ones(n, dtype=torch.float64), price - price.mean()), 1)
    fitted = torch.linalg.lstsq(design, drift[:, None]).solution[:, 0]
    left = float((drift - design @ fitted).std())
    slope = float((found[1] - found[0]) / (price[1] - price[0]))
    assert abs(slope - float(fitted[1])) < 4.5 * left / float(price.std()) / math.sqrt(n)
    assert abs(float(found.mean() - fitted[0])) < 4.5 * left / math.sqrt(n)
    # What is left is the posterior's own spread, whatever the return.
    posterior = 1 / math.sqrt(spread**-2 + k / N / 200**2)
    assert abs(z_score(((drift - found) / posterior).square(), 1, math.sqrt(2))) < 4.5
    for part in price.argsort().chunk(3):
        assert abs(z_score((drift - found)[part], 0, posterior)) < 4.5


@given(
    side=st.sampled_from([1.0, -1.0]),
    drift=st.floats(-300, 300),
    price=st.floats(-1e3, 1e3),
    elapsed=st.floats(0, 1),
)
def test_posterior_of_a_known_drift_is_that_drift(
    side: float, drift: float, price: float, elapsed: float
) -> None:
    order = Order(scalar(0.1), scalar(5e-4), scalar(side))
    known, hidden = (market(drift=drift, drift_sd=sd) for sd in (0.0, 100.0))
    assert float(posterior_drift(known, order, scalar(price), elapsed)) == float(scalar(side * drift))
    # So does what is hidden before anything has happened; later it lies between belief and experience.
    start = posterior_drift(hidden, order, scalar(0.0), 0.0)
    assert float(start) == float(scalar(side * drift))
    if elapsed > 0.01:
        ends = sorted((side * drift, price / elapsed))
        found = float(posterior_drift(hidden, order, scalar(price), elapsed))
        slack = 1e-4 * (1 + abs(ends[0]) + abs(ends[1]))
        assert ends[0] - slack <= found <= ends[1] + slack


def test_posterior_drift_equals_the_forecast_of_the_simulator_at_constant_variance() -> None:
    # Where variance is steady and says nothing of the price, simulated days foresee this drift.
    heston = Heston(scalar(THETA), scalar(KAPPA), scalar(0.01), scalar(0.0))
    m = Market(heston, drift=scalar(20.0), drift_sd=scalar(150.0))
    paths, order = days(m, 200), Order(scalar(0.1), scalar(5e-4))
    price = (paths.martingale_bps + paths.drift_bps).cumsum(0)
    for k in (1, 6, N - 1):
        found = posterior_drift(m, order, price[k - 1], k / N)
        torch.testing.assert_close(N * paths.drift_bps[k], found, rtol=0.02, atol=0.02 * BPS * 0.02)


def test_information_with_zero_errors_is_exact() -> None:
    m = market(liquidity=LIQUID)
    paths = days(m, 20)
    healed = Errors(volatility=0.0, illiquidity=0.0, returns=None, depth=0.0)
    obs, truth = (see(paths, m, generator(16, "errors")) for see in (healed, exact))
    for name in ("theta", "cv"):
        torch.testing.assert_close(
            getattr(obs.market.heston, name).expand(20), getattr(truth.market.heston, name).expand(20)
        )
    torch.testing.assert_close(obs.variance, truth.variance, rtol=0, atol=0)
    torch.testing.assert_close(obs.log_depth, truth.log_depth)
    flat = market()
    assert healed(days(flat, 5), flat, generator(17, "errors")).log_depth.count_nonzero() == 0
