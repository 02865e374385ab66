"""Worlds: grids of conditions of one market type, with the information of agents about them.

All agents of a world have the same information.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, product

from flowoe_lib.data.conditions import one_digit
from flowoe_lib.evaluation.tested import TESTED_BUCKETS, TESTED_LIMITS
from flowoe_lib.execution.execution import Policy
from flowoe_lib.execution.information import CONSTANT_CV, Perceive, blind_to_regimes, exact, with_errors
from flowoe_lib.market.impact import with_half_life
from flowoe_lib.market.model import BPS, Condition, Heston, Liquidity, Market, Order, Regimes, scalar
from flowoe_lib.market.pre_trade import urgency
from flowoe_lib.market.signal import with_signal
from flowoe_lib.policies.oracle import solve_belief, solve_oracle
from flowoe_lib.policies.signal import solve_on_estimates, solve_signal

DRIFT = 0.3
"""Absolute drift of the day, in daily standard deviations; in the hidden world its standard deviation."""


LEVELS = {"normal": 1.0, "lean": 2.0, "thin": 3.0}


JUMPS = {"rare": 2.0, "frequent": 6.0}
"""Rates of transition into and out of the stressed regime, per day."""


HALF_LIVES = (0.05, 0.15, 0.4)
"""Half-lives of impact, in days."""


STRENGTHS = {"strong": 0.3, "weak": 0.1}
"""Strength of a signal, :func:`flowoe_lib.market.signal.with_signal`."""


NOISES = {"exact": 0.0, "noisy": 2.0}
"""Noise of a signal, in the same units."""


LOW, HIGH = 0, 1


AT_ONCE: Sequence[Mapping[str, int]] = ({"urgency": HIGH, "cv": HIGH}, {"cv": HIGH, "kappa": LOW})
"""Ends of ``TESTED_LIMITS`` that are tested together."""


@dataclass(frozen=True)
class World:
    """A grid of conditions, and the information of its agents."""

    name: str
    conditions: list[Condition]
    perceive: Perceive = exact
    """What every agent knows."""


def limit_solver(market: Market) -> Callable[[Market, Order, int], Policy]:
    """The solver of the limit, which observes all but a hidden drift, which it learns from prices.

    With memory of impact and a signal at once the limit is not known, and the best known plan stands for it.
    """
    if market.signal.present:
        return solve_on_estimates if market.impact.has_memory else solve_signal
    if market.drift_sd > 0:
        return solve_belief
    return partial(solve_oracle, variance_nodes=17) if market.impact.has_memory else solve_oracle


def liquid_day(estimates: Mapping[str, Mapping[str, float]]) -> Liquidity:
    """Random depth and volume profile by the calibration's estimates, each to one significant digit.

    ``estimates`` are the records of :class:`flowoe_lib.data.calibration.Calibration`.
    """
    names = ("depth_sd", "depth_reversion", "profile_amplitude")
    return Liquidity(**{name: scalar(one_digit(estimates[name]["value"])) for name in names})


def dynamic_worlds(grid: Sequence[Condition], day: Liquidity) -> list[World]:
    """The worlds beyond the Heston ``grid``, with its volatilities and cv and the liquidity of ``day``."""
    normal = [c for c in grid if "/normal/" in c.name]
    calmest = min(c.market.heston.cv for c in grid)
    steady = [c for c in grid if c.market.heston.cv == calmest]
    return [
        World("liquidity", _liquidity(normal, day, "liquidity")),
        World("drift", [_drifting(c, way) for c in steady for way in ("down", "none", "up")]),
        World("hidden", [_hidden(c) for c in steady]),
        World("switching", _switching(normal), blind_to_regimes),
        World("realistic", _liquidity(normal, day, "realistic"), with_errors),
    ]


def transient_world(grid: Sequence[Condition]) -> World:
    """Impact with memory: the grid with normal liquidity, by turns at each of ``HALF_LIVES``."""
    return World("transient", _with_memory([c for c in grid if "/normal/" in c.name], "transient"))


def signal_world(grid: Sequence[Condition]) -> World:
    """A drift that reverts to zero: the volatilities of the grid at constant variance, with every signal."""
    calmest = min(c.market.heston.cv for c in grid)
    steady = [c for c in grid if "/normal/" in c.name and c.market.heston.cv == calmest]
    out = []
    for c, (strength, drift), (noise, of_sd) in product(steady, STRENGTHS.items(), NOISES.items()):
        market = with_signal(replace(c.market, heston=_uncorrelated(c)), scalar(drift), scalar(of_sd))
        out.append(_named(c, "signal", f"{c.name.split('/')[0]}/{strength}/{noise}", market))
    return World("signal", out)


def full_world(grid: Sequence[Condition], day: Liquidity) -> World:
    """Everything at once: the realistic world with memory of impact and a noisy signal."""
    normal = [replace(c, market=replace(c.market, liquidity=day)) for c in grid if "/normal/" in c.name]
    signal = scalar(STRENGTHS["strong"]), scalar(NOISES["noisy"])
    out = [replace(c, market=with_signal(c.market, *signal)) for c in _with_memory(normal, "full")]
    return World("full", out, with_errors)


def _with_memory(normal: Sequence[Condition], world: str) -> list[Condition]:
    """The conditions by turns at each of ``HALF_LIVES``.

    Of three volatilities and two cv, each half-life has two conditions, which differ in both.
    """
    out = []
    for i, c in enumerate(normal):
        half_life = HALF_LIVES[(i // 2 + i % 2) % len(HALF_LIVES)]
        name = c.name.replace("/normal/", f"/half-life {half_life:g}/")
        out.append(_named(c, world, name, with_half_life(c.market, scalar(half_life))))
    return out


def _named(condition: Condition, world: str, name: str, market: Market) -> Condition:
    return replace(condition, world=world, name=name, market=market)


def _liquidity(normal: Sequence[Condition], day: Liquidity, world: str) -> list[Condition]:
    levels = {level: replace(day, illiquidity=scalar(value)) for level, value in LEVELS.items()}
    return [
        _named(c, world, c.name.replace("/normal/", f"/{level}/"), replace(c.market, liquidity=liquidity))
        for c in normal
        for level, liquidity in levels.items()
    ]


def _drifting(condition: Condition, way: str) -> Condition:
    sign = {"down": -1, "none": 0, "up": 1}[way]
    drift = sign * DRIFT * BPS * condition.market.heston.theta.sqrt()
    name = f"{condition.name.rsplit('/', 1)[0]}/{way}"
    return _named(condition, "drift", name, replace(condition.market, drift=drift))


def _uncorrelated(condition: Condition) -> Heston:
    """The condition's mean variance, constant and without correlation to the price.

    Correlated shocks would reveal the price's noise, and so the drift, to those who observe variance.
    """
    return replace(condition.market.heston, cv=scalar(CONSTANT_CV), rho=scalar(0.0))


def _hidden(condition: Condition) -> Condition:
    heston = _uncorrelated(condition)
    market = replace(condition.market, heston=heston, drift_sd=DRIFT * BPS * heston.theta.sqrt())
    return _named(condition, "hidden", condition.name.rsplit("/", 1)[0], market)


def _switching(normal: Sequence[Condition]) -> list[Condition]:
    """From each volatility level to the next, with the lean market's cost on top of the volatility's.

    Besides the grid's coefficients of variation there is a constant variance, at which the optimum of agents
    who observe neither regime nor depth is known exactly.
    """
    grid_cvs = sorted({c.market.heston.cv.item() for c in normal})
    levels = [c for c in normal if c.market.heston.cv.item() == grid_cvs[0]]
    out = []
    for cv in (CONSTANT_CV, *grid_cvs):
        for calm, stressed in pairwise(levels):
            ratio = (stressed.market.heston.theta / calm.market.heston.theta).sqrt()
            heston = replace(calm.market.heston, cv=scalar(cv))
            for pace, rate in JUMPS.items():
                regimes = Regimes(ratio, LEVELS["lean"] * ratio, scalar(rate), scalar(rate))
                name = f"{calm.name.split('/')[0]}-{stressed.name.split('/')[0]}/{pace}/cv{cv:g}"
                market = replace(calm.market, heston=heston, regimes=regimes)
                out.append(_named(calm, "switching", name, market))
    return out


def beyond_training(base: Condition, day: Liquidity) -> dict[str, tuple[Condition, int]]:
    """Conditions at the ends of ``TESTED_LIMITS``, alone and ``AT_ONCE``, and their number of buckets."""
    base = _named(base, "unseen", "as trained", replace(base.market, liquidity=day))
    out = {base.name: (base, 39)}
    alone = [{quantity: end} for quantity in TESTED_LIMITS for end in (LOW, HIGH)]
    for ends in [*alone, *AT_ONCE]:
        moved, values = base, {quantity: TESTED_LIMITS[quantity][end] for quantity, end in ends.items()}
        for quantity, value in values.items():
            moved = _moved(moved, quantity, value)
        name = ", ".join(f"{quantity} {value:g}" for quantity, value in values.items())
        out[name] = replace(moved, name=name), 39
    return out | {f"{n} buckets": (replace(base, name=f"{n} buckets"), n) for n in TESTED_BUCKETS}


def _moved(condition: Condition, quantity: str, value: float) -> Condition:
    """The condition with one quantity of ``TESTED_LIMITS`` replaced."""
    market, order = condition.market, condition.order
    if quantity == "urgency":
        aversion = order.risk_aversion * value / urgency(market, order)
        return replace(condition, order=replace(order, risk_aversion=aversion))
    part = "liquidity" if quantity == "depth_reversion" else "heston"
    changed = replace(getattr(market, part), **{quantity: scalar(value)})
    return replace(condition, market=replace(market, **{part: changed}))
