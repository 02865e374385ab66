"""The first trade of the best schedule if forecasts are constant: one integral solves it, without a search.

Source: Almgren (2003), "Optimal execution with nonlinear impact functions and trading-enhanced risk", Applied
Mathematical Finance 10, for the integral; Alfonsi, Fruth, Schied (2010), "Optimal execution strategies in
limit order books with general shape functions", Quantitative Finance 10, for impact with memory.
"""

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

_NODES, _WEIGHTS = (torch.from_numpy(x)[:, None] / 2 for x in (leggauss(4)[0] + 1, leggauss(4)[1]))
"""Gauss-Legendre quadrature on [0, 1], [4, 1]."""


_LOG_LEAST = (-30.0, 12.0)
"""Bounds of the logarithm of beta w^(1 + beta) at the lowest pace w; at the lower one the order waits."""


def lasting_share(rate: Tensor, days: Tensor) -> Tensor:
    """Share that counts, over the next ``days``, of what reverts to its mean at ``rate``, [paths].

    It is the mean of exp(-rate s), weighted by the squared inventory of an even schedule: the exact weight of
    variance in that schedule's risk. A signal has nearly the same weight in the first trade.
    """
    weights = 3 * (1 - _NODES).square() * _WEIGHTS
    return (weights.to(days) * torch.exp(-rate * days * _NODES.to(days))).sum(0)


def first_trade(urgency: Tensor, drift: Tensor, beta: Tensor, n_buckets: int | Tensor) -> Tensor:
    """First trade under concave impact without memory, as a multiple of TWAP's, [paths].

    With pace w relative to TWAP's and inventory u in shares of the order, the schedule minimises
    int w^(1 + beta) + urgency u^2 - drift u. Along it, beta w^(1 + beta) is urgency u^2 - drift u plus a
    constant, and the constant is such that the order ends at the close, int du / w(u) = 1. The first trade is
    what the schedule trades in the first bucket. Where the drift makes it best to wait, it is close to zero.

    Parameters
    ----------
    urgency : Tensor
        :func:`flowoe_lib.market.pre_trade.urgency` of the order, [paths].
    drift : Tensor
        Expected drift of the day over the cost of the order, positive if waiting gains, [paths].
    beta : Tensor
        Exponent of temporary impact, [] or [paths].
    n_buckets : int or Tensor
        Number of buckets of the schedule, or [paths].

    Returns
    -------
    Tensor, [paths]
        Trade of the first bucket times ``n_buckets``, in shares of the order.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> urgency, drift = fo.scalar(1.0)[None], fo.scalar(0.0)[None]
    >>> round(fo.market.first_trade.first_trade(urgency, drift, fo.scalar(0.6), 39).item(), 3)
    1.635
    """
    urgency, power = urgency.clamp_min(1e-5), 1 / (1 + beta)
    nodes, weights = _NODES.to(urgency), _WEIGHTS.to(urgency)
    # Inventory at which the pace is lowest; nodes of the integral cluster there, where it is almost singular.
    slowest = (drift / (2 * urgency)).clamp(0, 1)
    slope = 2 * urgency * slowest - drift
    above = torch.cat(((1 - slowest) * nodes.square(), -slowest * nodes.square()))
    lengths = torch.cat(((1 - slowest) * 2 * nodes * weights, slowest * 2 * nodes * weights))
    pull = above * (slope + urgency * above)

    # The slowest pace under linear impact, of urgency without drift times that of a constant pull.
    root = urgency.sqrt()
    start = root / torch.sinh(root.clamp_max(50)) * (1 - slope.abs() / 4)
    least = beta * start.clamp_min(1e-3) ** (1 + beta)
    # Newton steps for the logarithm of beta w^(1 + beta) at the slowest pace.
    for _ in range(3):
        times = lengths * ((pull + least) / beta).pow(-power)
        total, change = times.sum(0), (times / (pull + least)).sum(0) * power * least
        least = (least.log() + total * total.log() / change).clamp(*_LOG_LEAST).exp()

    def pace(held: Tensor | float) -> Tensor:
        over = held - slowest
        return (((over * (slope + urgency * over)).clamp_min(0) + least) / beta).pow(power)

    # Where the pace falls, it is nearly a power of the inventory; elsewhere this is the midpoint rule.
    opening = pace(1)
    exponent = ((2 * urgency - drift) * power / (beta * opening.pow(1 + beta))).clamp(0, 2)
    half = _inventory_after(0.5 / n_buckets, opening, exponent).clamp_min(0.05)
    rate = pace(half) / half.pow(exponent)
    return n_buckets * (1 - _inventory_after(1 / n_buckets, rate, exponent))


def _inventory_after(days: float | Tensor, rate: Tensor, exponent: Tensor) -> Tensor:
    """Inventory u after ``days`` of u' = -rate u^exponent from one, [paths]."""
    x = (exponent - 1) * rate * days
    x = torch.where(x.abs() < 1e-3, 1e-3, x.clamp_min(-1 + 1e-6))
    return torch.exp(-rate * days * torch.log1p(x) / x)


def first_trade_with_memory(
    urgency: Tensor, drift: Tensor, beta: Tensor, decay: Tensor, state: Tensor, n_left: int, n_buckets: int
) -> Tensor:
    """First trade under concave impact with memory, as a multiple of TWAP's, [paths].

    In terms of inventory plus impact state, which falls only as impact decays, the problem is
    :func:`first_trade`'s with the impact state after the trade in the place of the pace. The block at the
    close counts as further time. Without urgency and drift the result is exact: the state is constant until
    the last trade (Alfonsi, Fruth, Schied 2010).

    Parameters
    ----------
    urgency, drift, beta : Tensor
        As for :func:`first_trade`, for an order over ``n_left`` buckets whose impact has no memory.
    decay : Tensor
        Share of the impact state that remains one bucket later, [] or [paths].
    state : Tensor
        Impact state before the trade over the inventory, [paths].
    n_left, n_buckets : int
        Number of buckets left, and of the day, over which an even schedule costs the same with memory.

    Returns
    -------
    Tensor, [paths]
        Trade of the first bucket times ``n_left``, in shares of what is left; negative where the optimum of
        this problem would buy back. Its gradient is not finite in all states.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> urgency, drift, state = fo.scalar(1.0)[None], fo.scalar(0.0)[None], fo.scalar(0.0)[None]
    >>> decay = torch.exp(-fo.scalar(4.6) / 39)
    >>> trade = fo.market.first_trade.first_trade_with_memory
    >>> round(trade(urgency, drift, fo.scalar(0.6), decay, state, 39, 39).item(), 1)
    11.6
    """
    fall, kept = 1 - decay, 1 - decay ** (1 + beta)
    last = (kept / fall) ** (1 / beta)
    # Inventory plus state over the constant state without urgency, and the cost of that schedule.
    level, whole = (n_left - 1) * fall + last, 1 + state
    cost = (whole * n_left / level) ** (1 + beta) * ((n_left - 1) * kept + last ** (1 + beta)) / n_left
    longer = level / (n_left * fall)
    scale = longer * whole * _even_cost(beta, decay, n_buckets) / cost
    urgent = urgency * scale * whole
    pace = first_trade(urgent, drift * scale, beta, n_left * longer)
    # The trade itself lowers the inventory at risk, which slows it: beta w^(1 + beta) + lowered w^2 is given.
    lowered, given = decay * urgent / level.square(), beta * pace ** (1 + beta)
    for _ in range(3):
        excess = beta * pace ** (1 + beta) + lowered * pace.square() - given
        steep = beta * (1 + beta) * pace**beta + 2 * lowered * pace
        pace = (pace - excess / steep.clamp_min(1e-6)).clamp_min(1e-6)
    return n_left * (pace * whole / level - state)


def _even_cost(beta: Tensor, decay: Tensor, n_buckets: int) -> Tensor:
    """Cost of an even schedule with memory over its cost without, at the same slope of impact, [paths]."""
    through = _NODES.to(decay) * (n_buckets - 1) + 0.5
    states = [(1 - decay**k) / (1 - decay) for k in (through, torch.full_like(decay, float(n_buckets)))]
    running, at_close = (x ** (1 + beta) for x in states)
    mean = (_WEIGHTS.to(decay) * running).sum(0)
    return (mean * (1 - decay ** (1 + beta)) * (n_buckets - 1) + at_close) / n_buckets
