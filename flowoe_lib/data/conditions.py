"""The grid of market conditions from the calibration, and conditions as flat records.

The grid crosses levels of volatility, illiquidity and volatility of volatility.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import product
from typing import TYPE_CHECKING, Any

from torch import Tensor

from flowoe_lib.market.model import Condition, Heston, Impact, Liquidity, Market, Order, Regimes, scalar

if TYPE_CHECKING:  # the statistics packages it imports are slow to load
    from flowoe_lib.data.calibration import Calibration

ILLIQUIDITIES = {"normal": 1.0, "thin": 3.0}
"""Multiples of the published temporary impact; our choice, not an estimate."""


CV_RANGE = (0.4, 1.8)


KAPPA_RANGE = (2.0, 12.0)


_FIELDS: dict[type, list[str]] = {
    kind: [f.name for f in fields(kind) if f.type is Tensor]
    for kind in (Heston, Impact, Liquidity, Regimes, Market, Order)
}
"""The numbers of each part of a condition, by name."""


def one_digit(value: float) -> float:
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
    """Make the grid of conditions: up to three levels of volatility, two of illiquidity, two of cv.

    Volatilities and kappa are estimates rounded to one significant digit. The two values of cv, ``cv_month``
    and ``cv_years``, and rho are rounded to one decimal. Kappa is clipped to [2, 12] and cv to [.4, 1.8].
    Volume is flat and depth constant.

    Parameters
    ----------
    calibration : flowoe_lib.data.calibration.Calibration
        Estimates of volatilities, kappa, cv and rho.
    size : float
        Order size phi, shares over average daily volume.
    risk_aversion : float
        lambda, per bps.
    beta : float
        Exponent of temporary impact.

    Returns
    -------
    list of Condition
        Conditions of the world "heston", named volatility/illiquidity/cv, fields of shape [].

    Raises
    ------
    ValueError
        If two levels are equal after rounding.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> from flowoe_lib.data.calibration import Calibration, Estimate
    >>> values = [0.007, 0.02, 0.05, 0.9, 0.9, -0.8, 4, 0.5, 0.6, 0.3, 6, 1.3]
    >>> calibration = Calibration(*(Estimate(x, x, x) for x in values))
    >>> [condition.name for condition in fo.heston_grid(calibration)][:2]
    ['calm/normal/cv0.5', 'calm/normal/cv1.3']
    """
    c = calibration
    levels = {name: getattr(c, name).value for name in ("calm", "stressed", "crisis")}
    volatilities = {name: one_digit(value) for name, value in levels.items() if not math.isnan(value)}
    cvs = [_within(round(e.value, 1), CV_RANGE) for e in (c.cv_month, c.cv_years)]
    if len({*volatilities.values()}) < len(volatilities) or len({*cvs}) < 2:
        raise ValueError(f"volatilities {volatilities} and cv {cvs}: levels must differ")
    kappa = scalar(_within(one_digit(c.kappa.value), KAPPA_RANGE))
    rho, impact = scalar(round(c.rho.value, 1)), Impact(beta=scalar(beta))
    order = Order(scalar(size), scalar(risk_aversion))
    grid = []
    for (level, vol), (depth, illiquidity), cv in product(
        volatilities.items(), ILLIQUIDITIES.items(), sorted(cvs)
    ):
        heston = Heston(theta=scalar(vol**2), kappa=kappa, cv=scalar(cv), rho=rho)
        market = Market(heston, impact, Liquidity(illiquidity=scalar(illiquidity)))
        grid.append(Condition("heston", f"{level}/{depth}/cv{cv:g}", market, order))
    return grid


def base_condition(grid: Sequence[Condition]) -> Condition:
    """The stressed condition with normal liquidity and the lower cv, used for single examples.

    Raises ValueError if the grid has no such condition.
    """
    found = [c for c in grid if c.name.startswith("stressed/normal/")]
    if not found:
        raise ValueError("the grid has no stressed/normal condition")
    return min(found, key=lambda c: c.market.heston.cv.item())


def conditions_to_records(conditions: Sequence[Condition]) -> list[dict[str, Any]]:
    """Convert conditions, fields of shape [], to flat records of strings and floats.

    JSON has no infinity, so infinite resilience, of impact without memory, is None. Raises ValueError for a
    condition with a signal, which a record does not hold.
    """
    records = []
    for c in conditions:
        if c.market.signal.present:
            raise ValueError(f"{c.name}: Signal.sd = {float(c.market.signal.sd):g}: must be 0 in a record")
        record: dict[str, Any] = {"world": c.world, "name": c.name}
        m = c.market
        for part in (m.heston, m.impact, m.liquidity, m.regimes, m, c.order):
            record |= {name: getattr(part, name).item() for name in _FIELDS[type(part)]}
        records.append(record | ({} if m.impact.has_memory else {"resilience": None}))
    return records


def conditions_from_records(records: Sequence[Mapping[str, Any]]) -> list[Condition]:
    """Rebuild conditions from :func:`conditions_to_records`.

    Raises ValueError naming the condition and its missing, unknown or non-numeric field.
    """
    return [_condition(record) for record in records]


def _condition(record: Mapping[str, Any]) -> Condition:
    label = record.get("name", "unnamed condition")
    numbers = [name for names in _FIELDS.values() for name in names]
    odd = set(record) ^ {"world", "name", *numbers}
    if odd:
        raise ValueError(f"{label}: fields {', '.join(sorted(odd))} are missing or unknown")
    if record["resilience"] is None:
        record = {**record, "resilience": math.inf}
    for name in set(numbers) - {"resilience"}:
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
