"""Statistics of policy comparisons: multiple testing, power, block bootstrap, model confidence set.

Policies run on the same paths, so comparisons are paired. The bootstrap resamples single paths where they are
independent, as simulated ones are, and blocks of recorded orders, which overlap or follow each other.
Bootstrap p-values are multiples of 1 / reps; 0 means below 1 / reps.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from arch.bootstrap import MCS, SPA, StationaryBootstrap
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import normal_sample_size_one_tail
from torch import Tensor

from flowoe_lib.evaluation.intervals import Z95

RESOLUTION = 1e-4
"""Standard deviation of a difference, bps, below which it is float32 rounding and cannot be tested."""


Array = npt.NDArray[np.float64]


def _on_same_paths(series: Sequence[Tensor], reps: int) -> Array:
    """Check series and number of resamples; stack the series, [paths, series]."""
    if reps < 100:
        raise ValueError(f"reps = {reps}: must be at least 100, to resolve a 2.5 % tail")
    shapes = [list(x.shape) for x in series]
    if len(shapes) < 2 or len(shapes[0]) != 1 or shapes[0][0] < 3 or any(s != shapes[0] for s in shapes):
        raise ValueError(f"series of shape {shapes}: must be two or more of [paths], the same three or more")
    values = np.stack([x.detach().double().cpu().numpy() for x in series], axis=1)
    if not np.isfinite(values).all():
        raise ValueError("a series holds NaN or infinity: must be finite on every path")
    return values


def holm(comparisons: pd.DataFrame, quantity: str, by: Sequence[str]) -> pd.DataFrame:
    """Add one-sided p-values that the policy is better, ``p``, and Holm's correction of them, ``p_holm``.

    Rows are those of :func:`flowoe_lib.evaluation.scorecard.score_condition`: ``quantity`` in bps with the
    ends of its normal 95 % interval, ``<quantity>_ci_low`` and ``<quantity>_ci_high``. A lower "std" is
    better; of all other quantities a higher value. The correction is over rows with equal values in the
    columns ``by``; ["policy", "reference"] corrects over conditions. If a difference has no variance, p is 1
    or almost 0; p is never below the smallest positive float. Raises ValueError if the quantity has no
    interval or a value is not finite. Source: Holm (1979), Scandinavian Journal of Statistics 6.
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
    """Number of paths on which a paired two-sided test at ``level`` detects a mean difference with ``power``.

    ``sd_bps`` is the standard deviation of the per-path difference, ``effect_bps`` its mean in absolute
    value. The probability of rejection on the wrong side is neglected. Raises ValueError unless both are
    positive and finite and 0 < level < power < 1. Source: Cohen (1988), Statistical Power Analysis, for the
    normal test.
    """
    for name, value in (("sd_bps", sd_bps), ("effect_bps", effect_bps)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} = {value}: must be positive and finite")
    if not 0 < level < power < 1:
        raise ValueError(f"level = {level}, power = {power}: must be 0 < level < power < 1")
    paths = float(normal_sample_size_one_tail(effect_bps, power, level / 2, std_null=sd_bps))
    return max(2, math.ceil(paths))


def block_intervals(differences: pd.DataFrame, block: int, reps: int, seed: int) -> pd.DataFrame:
    """Means of ``differences`` [orders, columns], in time order, with 95 % intervals of the block bootstrap.

    One row per column of ``differences``: mean, ci_low, ci_high. Blocks have random length with mean
    ``block`` orders, which preserves the dependence between neighbours; with few blocks the intervals are too
    narrow. Raises ValueError for fewer than 100 reps, blocks shorter than one order, or fewer than three
    blocks. Source: Politis & Romano (1994), Journal of the American Statistical Association 89.
    """
    if reps < 100:
        raise ValueError(f"reps = {reps}: must be at least 100, to resolve a 2.5 % tail")
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
    """The model confidence set: it contains the policy of highest utility with probability 1 - level.

    The arguments are utilities on the same paths, bps, [paths]. One row per policy, in the given order:
    policy, p, in_set. A policy within ``RESOLUTION`` of a better one has its p-value; a policy below a better
    one by a constant has p = 0. Memory is 8 * reps * paths bytes, for the draws of arch. Raises ValueError
    for other shapes, fewer than two policies or three paths, utilities that are not finite, fewer than 100
    reps, or a level outside (0, 1). Source: Hansen, Lunde, Nason (2011), Econometrica 79.
    """
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: must be in (0, 1)")
    values = _on_same_paths(list(utilities.values()), reps)
    # arch divides by the variance of differences, so of policies that differ by a constant only one is
    # tested.
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

    This is the studentised test of superior predictive ability with Hansen's consistent p-value; p is 1 if
    the benchmark has the highest mean. The arguments are utilities on the same paths, bps, [paths]. Raises
    ValueError for other shapes, no other policy, fewer than three paths, utilities that are not finite, or
    fewer than 100 reps. Source: Hansen (2005), Journal of Business & Economic Statistics 23.
    """
    values = _on_same_paths([benchmark, *others.values()], reps)
    gain = values[:, 1:] - values[:, :1]
    mean, sd = gain.mean(0), gain.std(0)
    if ((sd <= RESOLUTION) & (mean > RESOLUTION)).any():
        return 0.0
    gain = gain[:, sd > RESOLUTION]
    if not (gain.mean(0) > 0).any():
        return 1.0
    # arch does not studentise whatever its option says, so gains are scaled to unit variance here; its nested
    # estimate of the variance avoids time quadratic in the number of paths.
    losses = -gain / gain.std(0)
    test = SPA(np.zeros(len(gain)), losses, 1, reps, bootstrap="circular", nested=True, seed=seed)
    test.compute()
    return float(test.pvalues["consistent"])
