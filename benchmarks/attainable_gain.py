"""Where the constants of ``PreTrade.attainable_gain`` come from, and how well the formula fits.

Conditions fill the range of the universal policy (:func:`flowoe_lib.training.universal.design`); every other
one has a known drift. In each, the oracle's gain over TWAP is computed exactly, by dynamic programming and in
closed form, as a multiple of the cost of an even schedule. Least squares of the logarithm, made robust, fit
the constants of the formula. Those in use are round numbers that fit nearly as well; they stay, since the
pretrained policy's unit of scores depends on them. The term of hidden drift is not refitted.
"""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from _report import report
from scipy.optimize import least_squares

from flowoe_lib.market.model import BPS, Condition, scalar, volume_profile
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.schedules import expected_utility
from flowoe_lib.randomness import generator
from flowoe_lib.training.universal import design, universal_range

Array = npt.NDArray[np.float64]

CONDITIONS, N, SEED, RHO = 64, 13, 1, -0.6
LARGEST_DRIFT = 0.4
"""In units of the day's volatility."""

SMALLEST_GAIN = 1e-3
"""Smaller gains are within the error of the oracle's grid."""

IN_USE = {
    "pull": 0.04,
    "pull, saturation": 0.1,
    "pull, drift against urgency": 0.1,
    "variance": 0.004,
    "variance, saturation": 0.1,
    "depth": 0.35,
    "volume": 0.22,
}


def conditions() -> list[Condition]:
    """The design, with a known drift in every other condition."""
    draws = generator(SEED, "drift of the fit")
    found = []
    for i, c in enumerate(design(universal_range(RHO), CONDITIONS, SEED)):
        share = LARGEST_DRIFT * (2 * torch.rand((), generator=draws) - 1)
        drift = share * BPS * c.market.heston.theta.sqrt() if i % 2 else scalar(0.0)
        found.append(replace(c, market=replace(c.market, drift=drift)))
    return found


def measured(c: Condition) -> float:
    """The oracle's gain over TWAP as a multiple of the cost of an even schedule."""
    even = expected_utility(c.market, c.order, torch.linspace(1, 0, N + 1, dtype=torch.float64))
    best = solve_oracle(c.market, c.order, N, inventory_nodes=31, variance_nodes=17, depth_nodes=9)
    return (best.value_bps - even.item()) / PreTrade.of(c.market, c.order).cost_bps.item()


def inputs(c: Condition) -> list[float]:
    """What the formula is a function of: urgency, drift over cost, cv, depth's and volume's variation."""
    plan, liquidity = PreTrade.of(c.market, c.order), c.market.liquidity
    pace = liquidity.depth_reversion.item()
    timed = 1 - 2 * (pace + math.expm1(-pace)) / pace**2
    drift = float(c.order.side * c.market.drift / plan.cost_bps)
    uneven = volume_profile(liquidity, 12).var(correction=0).item()
    depth = liquidity.depth_sd.item() ** 2 * timed
    return [plan.urgency.item(), drift, c.market.heston.cv.item(), depth, uneven]


def formula(constants: Array, x: Array) -> Array:
    """The gain by the form of ``PreTrade.attainable_gain`` without hidden drift, [conditions]."""
    a, saturation, against, b, slower, depth, volume = constants
    urgency, drift, cv, by_depth, by_volume = x.T
    pull = np.sqrt((urgency - drift) ** 2 + against * np.minimum(urgency, abs(drift)) ** 2)
    static = a * pull**2 / (1 + saturation * pull)
    reactive = b * (urgency * cv) ** 2 / (1 + slower * urgency)
    fitted: Array = static + reactive + depth * by_depth + volume * by_volume
    return fitted


def main() -> None:
    torch.set_num_threads(1)
    everywhere = conditions()
    gains, x = np.array([measured(c) for c in everywhere]), np.array([inputs(c) for c in everywhere])
    used = np.array(list(IN_USE.values()))
    expected = [PreTrade.of(c.market, c.order).attainable_gain.item() for c in everywhere]
    np.testing.assert_allclose(formula(used, x), expected, rtol=1e-4)
    large = gains > SMALLEST_GAIN
    gains, x = gains[large], x[large]

    def errors(log_constants: Array) -> Array:
        off: Array = np.log(formula(np.exp(log_constants), x) / gains)
        return off

    fit = least_squares(errors, np.log(used), loss="soft_l1")
    rows: list[list[object]] = [
        [name, float(old), float(new)] for (name, old), new in zip(IN_USE.items(), np.exp(fit.x), strict=True)
    ]
    ratios = [formula(constants, x) / gains for constants in (used, np.exp(fit.x))]
    for label, share in (("10 %", 0.1), ("median", 0.5), ("90 %", 0.9)):
        rows.append([f"formula over oracle, {label}", *(float(np.quantile(r, share)) for r in ratios)])
    report("attainable_gain", ("constant", "in use", "fitted here"), rows)
    print(f"{len(gains)} of {len(everywhere)} conditions, the others gain less than {SMALLEST_GAIN:g}")


if __name__ == "__main__":
    main()
