"""What a comparison of policies can claim: multiple testing, power, bootstrap intervals, the set of the best.

Policies run on the same paths, so comparisons are paired. Simulated paths are independent and the bootstrap
draws single ones; recorded orders that follow or overlap each other are drawn in blocks. P-values of a
bootstrap move in steps of 1 / reps: 0 says below the first step.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from arch.bootstrap import MCS, SPA, IIDBootstrap, StationaryBootstrap
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import normal_sample_size_one_tail
from torch import Tensor

from flowoe_lib.evaluation.intervals import Z95

__all__ = [
    "RESOLUTION",
    "block_intervals",
    "bootstrap_intervals",
    "holm",
    "model_confidence_set",
    "required_paths",
    "spa_pvalue",
]


RESOLUTION = 1e-4
"""Spread of a difference, bps, up to which it is float32 rounding and no test can be made of it."""


Array = npt.NDArray[np.float64]


def _on_same_paths(series: Sequence[Tensor], reps: int) -> Array:
    """Series side by side, [paths, series], once they and the number of draws are fit to resample."""
    if reps < 100:
        raise ValueError(f"reps = {reps}: must be at least 100, fewer draws have no 2.5 % tail")
    shapes = [list(x.shape) for x in series]
    if len(shapes) < 2 or len(shapes[0]) != 1 or shapes[0][0] < 3 or any(s != shapes[0] for s in shapes):
        raise ValueError(f"series of shape {shapes}: must be two or more of [paths], the same three or more")
    values = np.stack([x.detach().double().cpu().numpy() for x in series], axis=1)
    if not np.isfinite(values).all():
        raise ValueError("a series holds NaN or infinity: must be finite on every path")
    return values


def holm(comparisons: pd.DataFrame, quantity: str, by: Sequence[str]) -> pd.DataFrame:
    """The comparisons with one-sided p-values of "better", columns ``p`` and ``p_holm``.

    Rows are those of :func:`flowoe_lib.evaluation.scorecard.score_condition`: ``quantity`` in bps with the
    ends of its normal 95 % interval, ``<quantity>_ci_low`` and ``<quantity>_ci_high``. Of "std" less is
    better, of all others more. Holm's correction is over the rows that agree in the columns ``by``, at least
    one: ["policy", "reference"] corrects over conditions. A difference without spread is better for sure or
    not at all, and p is held above zero where the normal tail underflows. Raises ValueError where the
    quantity has no interval or a value is not finite. Source: Holm (1979), Scandinavian Journal of Statistics
    6.
    """
    columns = [quantity, f"{quantity}_ci_low", f"{quantity}_ci_high"]
    if not set(columns) <= set(comparisons):
        known = [c for c in comparisons if f"{c}_ci_low" in comparisons]
        raise ValueError(f"quantity = {quantity!r}: must be one with an interval, here {known}")
    estimate, low, high = comparisons[columns].to_numpy(dtype=np.float64).T
    if not np.isfinite(estimate + low + high).all():
        raise ValueError(f"{quantity} or its interval is NaN or infinite in a row: must be finite")
    gain, error = -estimate if quantity == "std" else estimate, (high - low) / (2 * Z95)
    z = np.divide(gain, error, out=np.where(gain > 0, np.inf, -np.inf), where=error > 0)
    table = comparisons.assign(p=np.maximum(norm.sf(z), np.finfo(np.float64).tiny))
    families = table.groupby(list(by), sort=False, dropna=False)["p"]
    return table.assign(p_holm=families.transform(lambda p: multipletests(p, method="holm")[1]))


def required_paths(sd_bps: float, effect_bps: float, level: float = 0.05, power: float = 0.9) -> int:
    """Paths on which a paired, two-sided test at ``level`` finds a mean difference with chance ``power``.

    ``sd_bps`` is the standard deviation of the per-path difference, ``effect_bps`` the size of its mean.
    The chance to err to the wrong side is left out. Raises ValueError unless both are positive and finite
    and 0 < level < power < 1. Source: Cohen (1988), Statistical Power Analysis, for the normal test.
    """
    for name, value in (("sd_bps", sd_bps), ("effect_bps", effect_bps)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} = {value}: must be positive and finite")
    if not 0 < level < power < 1:
        raise ValueError(f"level = {level}, power = {power}: must be 0 < level < power < 1")
    paths = float(normal_sample_size_one_tail(effect_bps, power, level / 2, std_null=sd_bps))
    return max(2, math.ceil(paths))


def _std_and_cvar95(pnl: Array) -> Array:
    worst = max(1, round(0.05 * len(pnl)))
    return np.array([pnl.std(ddof=1), np.partition(pnl, worst - 1)[:worst].mean()])


def bootstrap_intervals(a_pnl: Tensor, b_pnl: Tensor, reps: int, seed: int) -> dict[str, float]:
    """Differences a - b of standard deviation and CVaR95 of P&L, bps, with paired 95 % intervals.

    From P&L of the same paths, bps, [paths]; CVaR95 is that of
    :class:`flowoe_lib.evaluation.scorecard.PathResults`. Keys ``std`` and ``cvar95``, each also with
    ``_ci_low`` and ``_ci_high``. Intervals run between percentiles of the draws. Raises ValueError for other
    shapes, fewer than three paths, P&L that is not finite, or fewer than 100 reps. Source: Efron & Tibshirani
    (1993), An Introduction to the Bootstrap, chapter 13.
    """
    a, b = np.ascontiguousarray(_on_same_paths([a_pnl, b_pnl], reps).T)

    def differences(x: Array, y: Array) -> Array:
        return _std_and_cvar95(x) - _std_and_cvar95(y)

    low, high = IIDBootstrap(a, b, seed=seed).conf_int(differences, reps, method="percentile")
    out: dict[str, float] = {}
    for name, *ends in zip(("std", "cvar95"), differences(a, b), low, high, strict=True):
        out[name], out[f"{name}_ci_low"], out[f"{name}_ci_high"] = map(float, ends)
    return out


def block_intervals(differences: pd.DataFrame, block: int, reps: int, seed: int) -> pd.DataFrame:
    """Means of ``differences`` [orders, columns] in time order, with percentile 95 % intervals.

    A row a column: mean, ci_low, ci_high. Blocks are of random length, ``block`` orders on average, which
    keeps what neighbours have in common; with few blocks intervals are too narrow. Raises ValueError for
    fewer than 100 reps, blocks of less than one order, or fewer than three blocks.
    Source: Politis & Romano (1994), Journal of the American Statistical Association 89.
    """
    if reps < 100:
        raise ValueError(f"reps = {reps}: must be at least 100, fewer draws have no 2.5 % tail")
    if not 1 <= block <= len(differences) / 3:
        raise ValueError(f"block = {block} of {len(differences)} orders: must be 1 to a third of them")
    values = differences.to_numpy(dtype=np.float64)
    draws = StationaryBootstrap(block, values, seed=seed).apply(lambda x: x.mean(0), reps)
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    columns = {"mean": values.mean(0), "ci_low": low, "ci_high": high}
    return pd.DataFrame(columns, index=differences.columns)


def model_confidence_set(
    utilities: Mapping[str, Tensor], reps: int, seed: int, level: float = 0.05
) -> pd.DataFrame:
    """The model confidence set: it holds the policy of highest expected utility with chance 1 - level.

    From utilities of the same paths, bps, [paths]. A row a policy, in the order given: policy, p, in_set.
    A policy within ``RESOLUTION`` of a better one shares its p; one that lies below by a constant is out
    with p = 0. Memory is 8 * reps * paths bytes, as arch keeps its draws. Raises ValueError for other
    shapes, fewer than two policies or three paths, utilities that are not finite, fewer than 100 reps, or
    a level outside (0, 1). Source: Hansen, Lunde, Nason (2011), Econometrica 79.
    """
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: must be in (0, 1)")
    values = _on_same_paths(list(utilities.values()), reps)
    # Between policies without spread arch divides by zero, so only one of such a family is tested.
    tested: list[int] = []
    same_as: dict[int, int] = {}
    for i in map(int, np.argsort(-values.mean(0), kind="stable")):
        behind = values[:, tested] - values[:, [i]]
        family = np.flatnonzero(behind.std(0) <= RESOLUTION)
        if not len(family):
            tested.append(i)
        elif behind.mean(0)[family[0]] <= RESOLUTION:
            same_as[i] = tested[family[0]]
    p = np.zeros(len(utilities))
    p[tested] = 1.0
    if len(tested) > 1:
        test = MCS(-values[:, tested], level, reps, 1, method="R", bootstrap="circular", seed=seed)
        test.compute()
        p[tested] = test.pvalues["Pvalue"].sort_index()
    p[list(same_as)] = p[list(same_as.values())]
    return pd.DataFrame({"policy": list(utilities), "p": p, "in_set": p > level})


def spa_pvalue(benchmark: Tensor, others: Mapping[str, Tensor], reps: int, seed: int) -> float:
    """P-value of the hypothesis that none of ``others`` has a higher expected utility than the benchmark.

    The test of superior predictive ability, studentised, with Hansen's consistent p-value; 1 where the
    benchmark has the highest average. From utilities of the same paths, bps, [paths]. Raises ValueError
    for other shapes, no other policy, fewer than three paths, utilities that are not finite, or fewer than
    100 reps. Source: Hansen (2005), Journal of Business & Economic Statistics 23.
    """
    values = _on_same_paths([benchmark, *others.values()], reps)
    gain = values[:, 1:] - values[:, :1]
    mean, spread = gain.mean(0), gain.std(0)
    if ((spread <= RESOLUTION) & (mean > RESOLUTION)).any():
        return 0.0
    gain = gain[:, spread > RESOLUTION]
    if not (gain.mean(0) > 0).any():
        return 1.0
    # arch compares means without dividing by their errors whatever it is told, hence unit variances here;
    # its nested variance is the one that does not take time quadratic in paths.
    losses = -gain / gain.std(0)
    test = SPA(np.zeros(len(gain)), losses, 1, reps, bootstrap="circular", nested=True, seed=seed)
    test.compute()
    return float(test.pvalues["consistent"])
