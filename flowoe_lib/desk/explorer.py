"""The explorer: schedule, frontier and one day of the pretrained policy, for any setting of the market.

All settings use the same random draws, so two pictures differ only by their settings. The risk aversions of
the frontier run in one batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log10

import numpy as np
import pandas as pd
import torch
from scipy.special import gammainc, gammaincinv
from torch import Tensor

from flowoe_lib.evaluation.extrapolation import RangeViolation, violations
from flowoe_lib.evaluation.intervals import paired_interval
from flowoe_lib.execution.execution import execute, execute_schedule
from flowoe_lib.execution.information import Information, exact
from flowoe_lib.market.batching import tile
from flowoe_lib.market.impact import with_half_life
from flowoe_lib.market.model import BPS, Heston, Impact, Liquidity, Market, Order, scalar
from flowoe_lib.market.signal import with_signal
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.policies.almgren_chriss import almgren_chriss
from flowoe_lib.policies.schedules import Schedule, expected_cost, expected_risk, static_optimal
from flowoe_lib.policies.unannounced import UnannouncedLevel, shape_of_spread
from flowoe_lib.randomness import generator
from flowoe_lib.training.pretrained import PretrainedPolicy

N_PATHS = 200
"""Days at each risk aversion. Few suffice: only the difference to a schedule of known cost is estimated."""


SHOWN = N_PATHS // 2
"""Index of the day that is shown, which opens at the median of variance."""


N_AVERSIONS = 8


def _even(market: Market, order: Order, n_buckets: int) -> Schedule:
    left = torch.linspace(1, 0, n_buckets + 1, dtype=torch.float64)
    return Schedule(left.expand(*order.risk_aversion.shape, -1).movedim(-1, 0))


SCHEDULES: dict[str, Callable[[Market, Order, int], Schedule]] = {
    "twap": _even,
    "almgren_chriss": almgren_chriss,
    "static_optimal": static_optimal,
}


@dataclass(frozen=True)
class Settings:
    """The settings of the explorer. By default a tenth of daily volume in a stressed market."""

    volatility: float = 0.02
    """sqrt(theta), per square root of a day."""
    cv: float = 1.3
    """Volatility of volatility: stationary standard deviation of variance over its mean."""
    illiquidity: float = 1.0
    depth_sd: float = 0.3
    size: float = 0.1
    """phi, of ADV, to be sold."""
    eta: float = 0.142
    """This and the next two are the options of :class:`flowoe_lib.data.impact_fit.ImpactFit`; by default the
    published coefficients."""
    beta: float = 0.6
    gamma: float = 0.314
    half_life: float = 0.0
    """Half-life of temporary impact, in days; 0 if it is gone by the next bucket."""
    risk_aversion: float = 5e-4
    """lambda, per bps."""
    drift: float = 0.0
    """Drift known to all policies, in daily standard deviations; a rising price favours waiting."""
    signal: float = 0.0
    """Strength of a signal that is observed exactly, as in :func:`flowoe_lib.market.signal.with_signal`."""
    level: float = 0.0
    """Standard deviation of the log of the day's variance level, which is then drawn and not announced, and
    constant within the day; 0 if it is the one set. ``volatility`` is the root of its mean."""

    def condition(self, trained: PretrainedPolicy) -> tuple[Market, Order]:
        """The market and the order, fields of shape [].

        Raises ValueError naming each setting that is invalid or outside its :func:`bounds`.
        """
        placed = [RangeViolation(name, v, *bounds(trained, name)) for name, v in vars(self).items()]
        if outside := [str(p) for p in placed if not p.low <= round(p.value, 9) <= p.high]:
            raise ValueError("; ".join(outside))
        known = {name: scalar(value) for name, value in trained.calibration.items()}
        rho = scalar(trained.conditions.rho)
        heston = Heston(scalar(self.volatility**2), known["kappa"], scalar(self.cv), rho)
        moving = known["depth_reversion"], known["profile_amplitude"]
        liquidity = Liquidity(scalar(self.illiquidity), scalar(self.depth_sd), *moving)
        impact = Impact(scalar(self.eta), scalar(self.beta), scalar(self.gamma))
        market = Market(heston, impact, liquidity, scalar(self.drift * BPS * self.volatility))
        market = with_half_life(with_signal(market, scalar(self.signal), scalar(0)), scalar(self.half_life))
        return market, Order(scalar(self.size), scalar(self.risk_aversion))


def bounds(trained: PretrainedPolicy, setting: str) -> tuple[float, float]:
    """Lowest and highest value of a setting: its training range, if training draws it on its own."""
    drawn = trained.conditions
    found: dict[str, tuple[float, float]] = vars(drawn) | {
        "drift": (-drawn.drift, drawn.drift),
        "half_life": (0.0, drawn.half_life[1]),
        "signal": (0.0, drawn.signal),
        # Training knows no such days; the law of the level has a mean up to 1.28.
        "level": (0.0, 1.0),
        # Eta acts through urgency, and permanent impact moves no schedule.
        "eta": (0.02, 1.0),
        "gamma": (0.0, 2.0),
    }
    return found[setting]


@dataclass(frozen=True)
class View:
    """The results of one setting."""

    schedule: pd.DataFrame
    """Inventory at each time for each policy: low, middle and high (10, 50 and 90 % quantile over days)."""
    frontier: pd.DataFrame
    """policy, risk_aversion, cost_bps, risk_bps; the first row of a policy is at the setting's own.

    Risk is the standard deviation of P&L from price moves alone, whose square lambda multiplies.
    """
    day: pd.DataFrame
    """One day by bucket: time, volatility as traders know it and liquidity (depth times volume), each over
    its usual level, the signal, and what FlowOE and the static optimum trade (traded, static; fractions of
    the order)."""
    reaction: pd.DataFrame
    """Each day at the open: volatility and depth over their usual level, the signal, in daily standard
    deviations a day, and the first trade (traded)."""
    gain_bps: tuple[float, float, float]
    """Gain in utility over the static optimum on the same days, with the ends of its 95 % interval."""
    outside: list[str]
    """Quantities outside the training range; the settings are within their :func:`bounds` one by one."""

    @property
    def numbers(self) -> pd.DataFrame:
        """By policy at the setting's own risk aversion, in bps: cost_bps, risk_bps, total_bps = cost + lambda
        risk^2, and gain_bps, the total of TWAP less its own."""
        own = self.frontier.groupby("policy", sort=False).first()
        total = own["cost_bps"] + own["risk_aversion"] * own["risk_bps"] ** 2
        return own[["cost_bps", "risk_bps"]].assign(total_bps=total, gain_bps=total["twap"] - total)


def explore(settings: Settings, trained: PretrainedPolicy, seed: int) -> View:
    """Compute the view of ``settings``. Raises ValueError as :meth:`Settings.condition`."""
    market, order = settings.condition(trained)
    n, (low, high) = trained.n_buckets, trained.conditions.risk_aversion
    others = torch.logspace(log10(low), log10(high), N_AVERSIONS)
    orders = replace(order, risk_aversion=torch.cat((order.risk_aversion[None], others)))
    plans = {name: solver(market, orders, n).inventory for name, solver in SCHEDULES.items()}

    drawn, shown, known = _days(market, settings.level, trained.conditions.kappa[0], n, seed)
    copies = len(orders.risk_aversion), N_PATHS
    days, worked, seen = tile(shown, *copies), tile(drawn, *copies), tile(known, *copies)
    wide = replace(order, risk_aversion=orders.risk_aversion.repeat_interleave(N_PATHS))
    fixed = plans["static_optimal"].float().repeat_interleave(N_PATHS, 1)
    static = execute_schedule(fixed, days, worked, wide)
    with torch.no_grad():
        flow = execute(trained.policy(), days, worked, wide, generator(seed, "explore", "policy"), seen)

    def expected(name: str) -> tuple[Tensor, Tensor]:
        return expected_cost(market, orders, plans[name]), expected_risk(market, plans[name])

    def mean(by_path: Tensor) -> Tensor:
        return by_path.double().reshape(-1, N_PATHS).mean(1)

    # Cost and risk of the static optimum are exact, so only the difference to them has sampling error.
    cost, risk = expected("static_optimal")
    cost = cost - mean(flow.controlled_pnl_bps - static.controlled_pnl_bps)
    risk = risk + mean(flow.expected_risk - static.expected_risk)
    points = {name: expected(name) for name in SCHEDULES} | {"flow_refined": (cost, risk)}
    gain = flow.utility_bps(wide) - static.utility_bps(wide)
    inventory = flow.inventory[:, :N_PATHS]
    volatility, opening = ((v / market.heston.theta).sqrt() for v in (known.variance, shown.variance[0]))
    # What is constant has one column for all paths.
    depth = shown.log_depth.exp().expand_as(volatility)
    signal = (shown.signal_bps / (BPS * market.heston.theta.sqrt())).expand_as(volatility)
    return View(
        schedule=_schedule(inventory, {name: plan[:, 0] for name, plan in plans.items()}),
        frontier=pd.concat(
            _columns(policy=name, risk_aversion=orders.risk_aversion, cost_bps=c, risk_bps=r.sqrt())
            for name, (c, r) in points.items()
        ).reset_index(drop=True),
        day=_columns(
            time=(torch.arange(n) + 0.5) / n,
            volatility=volatility[:, SHOWN],
            liquidity=(shown.volume * depth)[:, SHOWN],
            signal=signal[:, SHOWN],
            traded=-inventory[:, SHOWN].diff(),
            static=-plans["static_optimal"][:, 0].diff(),
        ),
        reaction=_columns(volatility=opening, depth=depth[0], signal=signal[0], traded=1 - inventory[1]),
        gain_bps=paired_interval(gain[:N_PATHS]),
        outside=[str(x) for x in violations(trained.conditions, market, order)]
        + ["unannounced level: not part of training"] * (settings.level > 0),
    )


def _days(
    market: Market, level: float, slowest: float, n_buckets: int, seed: int
) -> tuple[Market, MarketPaths, Information]:
    """The market of each day, the days, and what traders know of them.

    Opening variances are at equally spaced quantiles of their law; levels are means of equally probable parts
    of theirs, so that their mean is exact. A policy that is told of no level takes its posterior mean for a
    variance with the ``slowest`` reversion and the dispersion of the level.
    """
    draws, theta = generator(seed, "explore", "days"), market.heston.theta
    if level == 0:
        shape = 1 / market.heston.cv.double() ** 2
        even = (torch.arange(N_PATHS).double() + 0.5) / N_PATHS
        opening = theta / shape * torch.from_numpy(gammaincinv(shape.numpy(), even.numpy()))
        paths = simulate(market, N_PATHS, n_buckets, draws, opening.float())
        return market, paths, exact(paths, market, draws)
    world = UnannouncedLevel(market, shape_of_spread(level))
    below = gammainc(world.shape - 1, gammaincinv(world.shape, np.linspace(0, 1, N_PATHS + 1)))
    levels = theta * torch.from_numpy(N_PATHS * np.diff(below)[::-1].copy()).float()
    drawn = world.market_at(levels)
    paths = simulate(drawn, N_PATHS, n_buckets, draws, levels)
    known = world(paths, drawn, draws)
    heston = replace(known.market.heston, kappa=scalar(slowest), cv=scalar(level))
    return drawn, paths, replace(known, market=replace(known.market, heston=heston))


def _columns(**columns: str | float | Tensor) -> pd.DataFrame:
    return pd.DataFrame({k: v.numpy() if isinstance(v, Tensor) else v for k, v in columns.items()})


def _schedule(inventory: Tensor, plans: dict[str, Tensor]) -> pd.DataFrame:
    """Quantiles of ``inventory`` [N + 1, paths] and the fixed schedules, each [N + 1], in one table."""
    time = torch.linspace(0, 1, len(inventory), dtype=torch.float64)
    low, middle, high = torch.quantile(inventory.double(), torch.tensor([0.1, 0.5, 0.9]).double(), dim=1)
    tables = [_columns(time=time, policy=k, low=q, middle=q, high=q) for k, q in plans.items()]
    return pd.concat([*tables, _columns(time=time, policy="flow_refined", low=low, middle=middle, high=high)])
