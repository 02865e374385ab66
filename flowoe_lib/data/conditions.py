"""The grid of market conditions that the calibration leads to, and conditions as flat records.

A condition crosses how volatile the market is, how thin, and how restless its volatility.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from flowoe_lib.market.model import Condition, Heston, Impact, Liquidity, Market, Order, Regimes, scalar

if TYPE_CHECKING:  # its statistics package is slow to import, and every process needs this module
    from flowoe_lib.data.calibration import Calibration

__all__ = [
    "ILLIQUIDITIES",
    "base_condition",
    "conditions_from_records",
    "conditions_to_records",
    "heston_grid",
]


ILLIQUIDITIES = {"normal": 1.0, "thin": 3.0}
"""Temporary impact as a multiple of the published one; ours, not measured."""


CV_RANGE = (0.4, 1.8)


KAPPA_RANGE = (2.0, 12.0)


_FIELDS = {
    Heston: ("theta", "kappa", "cv", "rho"),
    Impact: ("eta", "beta", "gamma", "delta"),
    Liquidity: (
        "illiquidity",
        "depth_sd",
        "depth_reversion",
        "profile_amplitude",
        "window_start",
        "window_end",
    ),
    Regimes: ("volatility_multiplier", "cost_multiplier", "enter", "leave"),
    Market: ("drift", "drift_sd"),
    Order: ("size", "risk_aversion", "side"),
}


def _one_digit(value: float) -> float:
    """``value`` to one significant digit."""
    return float(f"{value:.0e}")


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])


def heston_grid(
    calibration: "Calibration",
    *,
    size: float = 0.10,
    risk_aversion: float = 5e-4,
    beta: float = 0.6,
) -> list[Condition]:
    """Three volatilities by two illiquidities by two volatilities of volatility: twelve conditions.

    Volatilities and kappa are the estimates to one significant digit; the two cv, those of the month
    and of the years, and rho are the estimates to one decimal; kappa is kept within 2 to 12, cv
    within .4 to 1.8. Volume is flat and depth constant. ``beta`` is the exponent of temporary impact.
    Raises ValueError when two levels coincide.
    """
    c = calibration
    volatilities = {name: _one_digit(getattr(c, name).value) for name in ("calm", "stressed", "crisis")}
    spreads = [_within(round(e.value, 1), CV_RANGE) for e in (c.cv_month, c.cv_years)]
    if len({*volatilities.values()}) < 3 or len({*spreads}) < 2:
        raise ValueError(f"volatilities {volatilities} and cv {spreads}: levels must differ")
    kappa = scalar(_within(_one_digit(c.kappa.value), KAPPA_RANGE))
    rho, impact = scalar(round(c.rho.value, 1)), Impact(beta=scalar(beta))
    order = Order(scalar(size), scalar(risk_aversion))
    grid = []
    for (level, vol), (depth, illiquidity), cv in product(
        volatilities.items(), ILLIQUIDITIES.items(), sorted(spreads)
    ):
        heston = Heston(theta=scalar(vol**2), kappa=kappa, cv=scalar(cv), rho=rho)
        market = Market(heston, impact, Liquidity(illiquidity=scalar(illiquidity)))
        grid.append(Condition("heston", f"{level}/{depth}/cv{cv:g}", market, order))
    return grid


def base_condition(grid: Sequence[Condition]) -> Condition:
    """The stressed condition of normal liquidity and the lower cv, on which single examples are shown.

    Raises ValueError when the grid has none.
    """
    found = [c for c in grid if c.name.startswith("stressed/normal/")]
    if not found:
        raise ValueError("the grid has no stressed/normal condition")
    return min(found, key=lambda c: c.market.heston.cv.item())


def conditions_to_records(conditions: Sequence[Condition]) -> list[dict[str, Any]]:
    """Flat records of strings and floats, one per condition; every tensor field must be a single number."""
    records = []
    for c in conditions:
        record: dict[str, Any] = {"world": c.world, "name": c.name}
        m = c.market
        for part in (m.heston, m.impact, m.liquidity, m.regimes, m, c.order):
            record |= {name: getattr(part, name).item() for name in _FIELDS[type(part)]}
        records.append(record)
    return records


def conditions_from_records(records: Sequence[Mapping[str, Any]]) -> list[Condition]:
    """Conditions from :func:`conditions_to_records`, exactly as they were.

    Raises ValueError naming the condition and its missing, unknown or non-numeric field.
    """
    return [_condition(record) for record in records]


def _condition(record: Mapping[str, Any]) -> Condition:
    label = record.get("name", "unnamed condition")
    numbers = [name for names in _FIELDS.values() for name in names]
    odd = set(record) ^ {"world", "name", *numbers}
    if odd:
        raise ValueError(f"{label}: fields {', '.join(sorted(odd))} are missing or unknown")
    for name in numbers:
        value = record[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{label}: {name} = {value!r}: must be a finite number")

    def values(kind: type) -> dict[str, Any]:
        return {name: scalar(record[name]) for name in _FIELDS[kind]}

    market = Market(
        heston=Heston(**values(Heston)),
        impact=Impact(**values(Impact)),
        liquidity=Liquidity(**values(Liquidity)),
        regimes=Regimes(**values(Regimes)),
        **values(Market),
    )
    return Condition(record["world"], record["name"], market, Order(**values(Order)))
