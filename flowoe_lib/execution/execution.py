"""Execution of an order by a policy on given market paths: observation, trade, costs and P&L.

In each bucket a policy receives an :class:`Observation`, which contains nothing later than the start of the
bucket, and returns the fraction of the remaining inventory to trade. The last bucket trades all that is left.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from flowoe_lib.execution.information import Information, RegimeBelief, exact
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.first_trade import first_trade, first_trade_with_memory, lasting_share
from flowoe_lib.market.impact import impact_path, impact_slope, permanent_shift, temporary_cost, variance_cost
from flowoe_lib.market.model import Market, Order, scalar
from flowoe_lib.market.pre_trade import PreTrade, posterior_drift
from flowoe_lib.market.simulator import MarketPaths

SCORE_LIMIT = 10.0
"""Scores are clamped to +-10: from 1/20,000 of TWAP's trade to almost all of the inventory."""


ACTION_LIMIT = 4.0
"""Scores of reinforcement learners are limited to +-4: from 1/50 to 50 times the odds of TWAP's fraction."""


LEAST_TRADE = 1e-4
"""Smallest trade of the schedule from which learned policies start, as a multiple of TWAP's."""


NO_IMPACT = scalar(0.0)
"""The impact state at the open."""


NO_SIGNAL = scalar(0.0)
"""The estimate of a signal that is absent."""


@dataclass(frozen=True)
class Observation:
    """The information of a trader at the start of bucket ``k``; tensors are [paths] or broadcast to it."""

    k: int
    n_buckets: int
    inventory: Tensor
    """Fraction of the order left."""
    return_bps: Tensor
    """Price change since arrival in the order's favour, less the permanent impact that traders attribute to
    the order itself."""
    variance: Tensor
    """Variance per day at the start of the bucket."""
    log_depth: Tensor
    volume: Tensor
    """Forecast volume profile of the whole day, [N, paths]."""
    market: Market
    """Pre-trade estimates of the condition."""
    order: Order
    pre_trade: PreTrade
    """Urgency, cost and attainable gain from the two."""
    regimes: RegimeBelief | None = None
    """Belief about the regimes; None if traders know only ``market``, which may average over them."""
    impact: Tensor = NO_IMPACT
    """Impact state of earlier trades, see :func:`flowoe_lib.market.impact.temporary_cost`."""
    signal: Tensor = NO_SIGNAL
    """Estimate of the signal in the order's favour, bps per day."""

    def drift_ahead(self, days: float | Tensor, length: float | Tensor) -> Tensor:
        """Expected mean drift over ``length`` days, from ``days`` ahead on, in the order's favour, bps a day.

        The known drift, or the posterior mean of a hidden one, and the signal as it reverts to zero.
        """
        lasting = posterior_drift(self.market, self.order, self.return_bps, self.k / self.n_buckets)
        return lasting + self.signal * self.market.signal.mean_ahead(days, length)

    @cached_property
    def time_left(self) -> Tensor:
        """Days until the close, []."""
        return self.inventory.new_tensor((self.n_buckets - self.k) / self.n_buckets)

    @cached_property
    def held(self) -> Tensor:
        """Inventory by which others are divided: at least a thousandth of the order, [paths]."""
        return self.inventory.clamp_min(1e-3)

    @cached_property
    def drift_to_close(self) -> Tensor:
        """Expected drift until the close over the cost of the order, early times weighing more, [paths].

        Its part that lasts, and the signal by :func:`flowoe_lib.market.first_trade.lasting_share`.
        """
        lasting = posterior_drift(self.market, self.order, self.return_bps, self.k / self.n_buckets)
        fading = self.signal * lasting_share(self.market.signal.reversion, self.time_left)
        return (lasting + fading) / self.pre_trade.cost_bps

    @cached_property
    def rest(self) -> tuple[Tensor, Tensor]:
        """Urgency of what is left of the order, and gain from waiting with it over its cost, each [paths].

        They are the urgency of :func:`flowoe_lib.market.pre_trade.urgency` and the drift for the rest of the
        day and of the order, with the mean forecast of variance, weighted by its part in the risk.
        """
        heston, left = self.market.heston, self.time_left
        excess = (self.variance / heston.theta - 1) * lasting_share(heston.kappa, left)
        scale = (left / self.held).pow(self.market.impact.beta) * left
        return self.pre_trade.urgency * (1 + excess) * scale * self.held, self.drift_to_close * scale

    @cached_property
    def volume_ratio(self) -> Tensor:
        """Volume of this bucket over the mean of those that are left, [paths]."""
        return self.volume[self.k] / self.volume[self.k :].mean(0)

    @cached_property
    def first_trade(self) -> Tensor:
        """First trade of what is left of the order at constant forecasts, as a multiple of TWAP's, [paths].

        By :func:`flowoe_lib.market.first_trade.first_trade`, or where impact has memory
        :func:`flowoe_lib.market.first_trade.first_trade_with_memory`.
        """
        # With memory of impact its gradient is not finite everywhere, and refinement learns as well without.
        urgent, waiting, state = (x.detach() for x in (*self.rest, self.impact / self.held))
        impact, n_left = self.market.impact, self.n_buckets - self.k
        if not impact.has_memory:
            return first_trade(urgent, waiting, impact.beta, n_left)
        decay = torch.exp(-impact.resilience / self.n_buckets)
        return first_trade_with_memory(urgent, waiting, impact.beta, decay, state, n_left, self.n_buckets)

    @cached_property
    def anchor(self) -> Tensor:
        """Score to which the actions of learned policies are corrections, [paths].

        It is that of :attr:`first_trade`, at least ``LEAST_TRADE``. Trades are proportional to volume, and to
        depth in the share of its variation that fades before the close.
        """
        n_left = self.n_buckets - self.k
        trade = LEAST_TRADE + softplus(self.first_trade - LEAST_TRADE, 2 / LEAST_TRADE)
        fading = self.market.liquidity.depth_reversion * self.time_left
        depth = self.log_depth * (1 + torch.expm1(-fading) / fading)
        pace, volume = (score_of_fraction(x / n_left, n_left) for x in (trade, self.volume_ratio))
        return pace + volume + depth


class Policy(Protocol):
    """A function from an observation to the fraction of the remaining inventory to trade."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory to trade in bucket ``obs.k``, within [0, 1], [paths].

        The result has the dtype of ``obs.inventory``, which the policy must not change. ``noise`` is a
        standard normal draw per path for randomised policies.
        """
        ...


Policies = Mapping[str, Policy]
"""Policies by name."""


@dataclass(frozen=True)
class Execution:
    """Inventory, costs and P&L of an order on each path, in bps of the arrival price, [paths]."""

    inventory: Tensor
    """q_0 = 1 to q_N = 0, [N + 1, paths]."""
    temporary_bps: Tensor
    permanent_bps: Tensor
    martingale_bps: Tensor
    """Profit from unpredictable price moves; its mean is zero unless the policy looks ahead."""
    drift_bps: Tensor
    """Profit from expected price moves."""
    risk: Tensor
    """1e8 sum_k q_{k+1}^2 int V ds, bps^2, realised."""
    expected_risk: Tensor
    """The same with E[int V ds | V_k] in each bucket."""
    impact: Tensor
    """Impact state before each trade and after the close, [N + 1, paths], see
    :func:`flowoe_lib.market.impact.temporary_cost`."""

    @property
    def pnl_bps(self) -> Tensor:
        """Profit against the arrival price; implementation shortfall is its negative."""
        return self.martingale_bps + self.controlled_pnl_bps

    @property
    def controlled_pnl_bps(self) -> Tensor:
        """P&L without its zero-mean martingale term: the same mean with far smaller variance."""
        return self.drift_bps - self.temporary_bps - self.permanent_bps

    def utility_bps(self, order: Order) -> Tensor:
        """Control-variate utility, [paths]: the same mean as P&L - lambda risk with far smaller variance."""
        return self.controlled_pnl_bps - order.risk_aversion * self.expected_risk

    def realised_utility_bps(self, order: Order) -> Tensor:
        """P&L - lambda risk, both realised, [paths]."""
        return self.pnl_bps - order.risk_aversion * self.risk


def score_of_fraction(fraction: Tensor, n_left: int) -> Tensor:
    """z = logit(fraction) + log(n_left - 1): zero where TWAP trades 1 / n_left. Clamped to +-10."""
    z = torch.logit(fraction.clamp(1e-7, 1 - 1e-7)) + torch.log(torch.tensor(n_left - 1.0))
    return z.clamp(-SCORE_LIMIT, SCORE_LIMIT)


def fraction_of_score(score: Tensor, n_left: int) -> Tensor:
    """Inverse of :func:`score_of_fraction`, for ``n_left`` >= 2 buckets left."""
    shift = torch.log(torch.tensor(n_left - 1.0))
    return torch.sigmoid(score.clamp(-SCORE_LIMIT, SCORE_LIMIT) - shift)


class OrderSimulation:
    """Simulates an order on given market paths: observations, trades with their costs, and P&L.

    The paths do not depend on the order, because its impact is charged separately; its state is the bucket,
    the remaining inventory and the impact state, which is zero at the open. ``market`` determines the costs,
    ``information`` the observations (by default full information).
    """

    def __init__(
        self, paths: MarketPaths, market: Market, order: Order, information: Information | None = None
    ) -> None:
        self.paths, self.market, self.order = paths, market, order
        self.information = information or exact(paths, market, torch.default_generator)
        pace = order.size / (paths.volume * torch.exp(paths.log_depth))
        self.slope = impact_slope(market, pace, paths.n_buckets)
        """Temporary impact of trading the whole order at once, bps, [N, paths]."""
        if bool((market.impact.variance_exponent > 0).any()):
            self.slope = self.slope * variance_cost(market, paths.variance)
        self.decay = torch.exp(-market.impact.resilience * paths.dt)
        """Share of the impact state that remains one bucket later, [] or [paths]."""
        self.has_memory = market.impact.has_memory
        moves = order.side * (paths.martingale_bps + paths.drift_bps)
        self.returns = list(accumulate(moves, initial=torch.zeros_like(moves[0])))
        """Price change from arrival to the start of each bucket in the order's favour, bps, N + 1 [paths]."""

    @cached_property
    def _shown(self) -> tuple[Information, "partial[Observation]"]:
        """Copies of what policies observe: by bucket, and all day."""
        known: Information
        known, order = (map_tensors(torch.clone, tree) for tree in (self.information, self.order))
        estimates = {"market": known.market, "order": order, "pre_trade": PreTrade.of(known.market, order)}
        n, volume = self.paths.n_buckets, self.paths.volume.clone()
        return known, partial(Observation, n_buckets=n, volume=volume, **estimates)

    def observe(self, k: int, inventory: Tensor, impact: Tensor = NO_IMPACT) -> Observation:
        """The observation at the start of bucket ``k`` with ``inventory`` and ``impact`` state, [paths].

        All but these two are copies, so that writing into them changes neither the day nor what other
        policies observe.
        """
        known, observation = self._shown
        now = {"variance": known.variance[k], "log_depth": known.log_depth[k]}
        now["return_bps"] = self.returns[k] + self._misattributed(k, inventory)
        regimes = known.regimes and replace(known.regimes, stressed=known.regimes.stressed[k])
        now["signal"] = self.order.side * self.paths.signal_bps.expand(self.paths.n_buckets, -1)[k]
        return observation(k=k, inventory=inventory, regimes=regimes, impact=impact, **now)

    def _misattributed(self, k: int, inventory: Tensor) -> Tensor:
        """Own permanent impact before bucket ``k``, as traders believe it, less the actual one, bps, [paths].

        The observed price includes the actual one, and traders subtract what they believe. The two depend on
        ``inventory`` alone if permanent impact is linear; otherwise the pace so far is taken to be even.
        """
        if self.information.market is self.market:
            return torch.zeros_like(inventory)
        pace, markets = (1 - inventory) / max(k, 1), (self.information.market, self.market)
        believed, actual = (permanent_shift(m, self.order.size, pace, self.paths.dt) for m in markets)
        return k * (believed - actual)

    def fill(
        self, k: int | slice, inventory: Tensor, traded: Tensor, impact: Tensor = NO_IMPACT
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Trade ``traded`` of ``inventory`` at the ``impact`` state, in one bucket or in each of several.

        Returns remaining inventory, temporary cost and permanent cost in bps, each [paths] or [buckets,
        paths].
        """
        left, beta = inventory - traded, self.market.impact.beta
        raw = temporary_cost(impact, traded, beta) if self.has_memory else traded ** (1 + beta)
        shift = permanent_shift(self.market, self.order.size, traded, self.paths.dt)
        return left, self.slope[k] * raw, shift * (left + traded / 2)

    def book(
        self, k: int, inventory: Tensor, temporary: Tensor, permanent: Tensor, impact: Tensor = NO_IMPACT
    ) -> Execution:
        """Account for the buckets from ``k`` on.

        ``inventory`` and ``impact`` state are those at the edges of the buckets, [buckets + 1, paths].
        """
        paths, side, left = self.paths, self.order.side, inventory[1:]
        span = slice(k, k + len(left))
        risk = 1e8 * left.square()
        return Execution(
            inventory=inventory,
            temporary_bps=temporary,
            permanent_bps=permanent,
            martingale_bps=(side * left * paths.martingale_bps[span]).sum(0),
            drift_bps=(side * left * paths.drift_bps.expand_as(paths.variance)[span]).sum(0),
            risk=(risk * paths.integrated_variance[span]).sum(0),
            expected_risk=(risk * paths.expected_variance[span]).sum(0),
            impact=impact,
        )


def execute(
    policy: Policy,
    paths: MarketPaths,
    market: Market,
    order: Order,
    generator: torch.Generator,
    information: Information | None = None,
) -> Execution:
    """Execute an order by a policy on given market paths; the result is differentiable in its trades.

    Parameters
    ----------
    policy : callable
        Maps an observation and standard normal noise [paths] to the fraction of the remaining inventory to
        trade, [paths].
    paths : flowoe_lib.market.simulator.MarketPaths
        Simulated or recorded days, such as those of :func:`flowoe_lib.market.simulator.simulate`.
    market : Market
        The market that determines costs, fields of shape [] or [paths].
    order : Order
        The order, fields of shape [] or [paths].
    generator : torch.Generator
        Source of the noise of randomised policies.
    information : flowoe_lib.execution.information.Information, optional
        The information of the policy about the market; by default full information.

    Returns
    -------
    flowoe_lib.execution.execution.Execution
        Inventory [N + 1, paths] in fractions of the order; costs and P&L in bps of the arrival price,
        [paths].

    Raises
    ------
    ValueError
        If the policy returns anything but a fraction within [0, 1] for each path, or changes the inventory
        in its observation.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> market, order = fo.Market(heston), fo.Order(fo.scalar(0.1), fo.scalar(5e-4))
    >>> days = fo.simulate(market, 1_000, 39, fo.generator(1, "days"))
    >>> done = fo.execute(fo.twap, days, market, order, fo.generator(1, "noise"))
    >>> round(done.temporary_bps.mean().item(), 2)
    7.13
    """
    simulation = OrderSimulation(paths, market, order, information)
    n, size, like = paths.n_buckets, paths.n_paths, paths.martingale_bps
    inventory = torch.ones_like(like[0])
    impact = temporary = permanent = torch.zeros_like(inventory)
    inventories, impacts, answers = [inventory], [impact], []
    for k in range(n):
        noise = torch.randn(size, generator=generator, device=like.device, dtype=like.dtype)
        traded = inventory
        if k < n - 1:
            fraction = _fraction(policy(simulation.observe(k, inventory, impact), noise), inventory, k)
            traded = inventory * fraction
            # A copy, as a policy may answer with the same tensor every time.
            answers.append(fraction.detach().clone())
        inventory, paid, shifted = simulation.fill(k, inventory, traded, impact)
        impact = (impact + traded) * simulation.decay
        temporary, permanent = temporary + paid, permanent + shifted
        inventories.append(inventory)
        impacts.append(impact)

    path = torch.stack(inventories)
    _check_day(torch.stack([*answers, torch.ones_like(inventory)]), path.detach())
    return simulation.book(0, path, temporary, permanent, torch.stack(impacts))


def _fraction(answer: Tensor, inventory: Tensor, k: int) -> Tensor:
    """Check that a policy's answer in bucket ``k`` is a number for each path, and return it."""
    if isinstance(answer, Tensor) and (answer.shape, answer.dtype) == (inventory.shape, inventory.dtype):
        return answer
    given, allowed = (
        f"{x.dtype} of shape {list(x.shape)}" if isinstance(x, Tensor) else repr(x)
        for x in (answer, inventory)
    )
    raise ValueError(f"policy: answered {given} in bucket {k}: must be {allowed}, a fraction for each path")


def _check_day(fractions: Tensor, path: Tensor) -> None:
    """Raise ValueError unless ``fractions`` [N, paths] lie in [0, 1] and lead to inventory ``path``."""
    inside = (fractions >= 0) & (fractions <= 1)
    if not bool(inside.all()):
        k, i = (~inside).nonzero()[0].tolist()
        raise ValueError(f"policy: answered {fractions[k, i]:g} in bucket {k}: must be within [0, 1]")
    expected = torch.cat((torch.ones_like(path[:1]), path[:-1] - path[:-1] * fractions))
    same = expected == path
    if not bool(same.all()):
        k = int((~same).any(1).nonzero()[0])
        raise ValueError(f"policy: wrote into obs.inventory of bucket {k}: must leave it as it is")


def execute_schedule(inventory: Tensor, paths: MarketPaths, market: Market, order: Order) -> Execution:
    """Execute ``order`` by a fixed schedule from one to zero, [N + 1] or [N + 1, paths], in one operation."""
    simulation = OrderSimulation(paths, market, order)
    path = inventory.reshape(len(inventory), -1).expand(-1, paths.n_paths)
    traded = path[:-1] - path[1:]
    impact = impact_path(traded, simulation.decay, NO_IMPACT)
    _, temporary, permanent = simulation.fill(slice(None), path[:-1], traded, impact[:-1])
    return simulation.book(0, path, temporary.sum(0), permanent.sum(0), impact)
