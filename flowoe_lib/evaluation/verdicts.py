"""Verdicts on paired comparisons, from intervals over training seeds and days and from a material size.

A difference is material if it exceeds ``MATERIAL`` of the best opponent's cost. The verdict is better if the
whole interval is above this size, worse if it is below its negative, equal if it is between the two, and open
otherwise.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student
from torch import Tensor

from flowoe_lib.randomness import generator

QUANTITIES = ("utility", "mean", "std", "cvar95")
"""The quantities that are compared; a lower "std" is better, of the others a higher value."""


MATERIAL = 1e-3
"""Smallest material difference, as a fraction of the best opponent's cost."""


VERDICTS = ("better", "equal", "worse", "open")


BLOCK = 100
"""Bootstrap resamples computed together, to limit memory."""


def hierarchical_interval(
    learner: Tensor, opponent: Tensor, seed: int, reps: int = 1_000, level: float = 0.95
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean difference of two policies with its interval over training seeds and days.

    A bootstrap of two levels. Days are resampled with replacement, the same days for both policies, for
    all training seeds and for all quantities. Training seeds are too few to be resampled (with three, the
    variance would be a third too small), so the error of their mean is drawn from its t distribution,
    independently for each policy. A policy with one row, such as a planner, has no training seed and no such
    error.

    Parameters
    ----------
    learner, opponent : Tensor
        Utility, bps, [training seeds or 1, days, ...], on the same days. Further axes hold quantities whose
        mean over days is compared, such as influences on a standard deviation.
    seed : int
        Seed of the bootstrap.
    reps : int
        Number of resamples, at least 100.
    level : float
        Coverage, within (0, 1).

    Returns
    -------
    tuple of Tensor
        Mean of ``learner`` - ``opponent`` and the ends of its percentile interval, bps, [...], float64.

    Raises
    ------
    ValueError
        For other shapes, different or fewer than two days, values that are not finite, or an argument out of
        its range.

    References
    ----------
    Davison and Hinkley (1997), Bootstrap Methods and their Application, section 3.8, on hierarchical data.

    Examples
    --------
    >>> import torch
    >>> days = torch.randn(1, 1_000, generator=torch.Generator().manual_seed(1))
    >>> mean, low, high = hierarchical_interval(days + 0.5, days, seed=1)
    >>> print(f"{mean:.2f}, {low:.2f} to {high:.2f}")
    0.50, 0.50 to 0.50
    """
    for name, values in (("learner", learner), ("opponent", opponent)):
        if values.dim() < 2 or not len(values) or values.shape[1] < 2:
            raise ValueError(f"{name} of shape {list(values.shape)}: must be [seeds, days], two days or more")
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name}: holds NaN or infinity, must be finite on every day")
    if learner.shape[1] != opponent.shape[1]:
        raise ValueError(f"{learner.shape[1]} and {opponent.shape[1]} days: must be the same")
    if reps < 100 or not 0 < level < 1:
        raise ValueError(f"reps = {reps}, level = {level:g}: must be at least 100 and within (0, 1)")
    draws = generator(seed, "hierarchical bootstrap")
    difference = learner.double().mean(0) - opponent.double().mean(0)
    n_days = len(difference)
    one = torch.ones((), dtype=torch.float64)
    resampled = []
    for n in (min(BLOCK, reps - start) for start in range(0, reps, BLOCK)):
        picks = torch.randint(n_days, (n, n_days), generator=draws)
        times = torch.zeros(n, n_days, dtype=torch.float64).scatter_add_(1, picks, one.expand(n, n_days))
        resampled.append(torch.tensordot(times, difference, 1) / n_days)
    means = torch.cat(resampled)
    for side in (learner, opponent):
        if len(side) > 1:
            error = side.double().mean(1).std(0) / math.sqrt(len(side))
            # Quantiles in random order have the t distribution without sampling error.
            ranks = (torch.randperm(reps, generator=draws).double() + 0.5) / reps
            means += torch.tensordot(torch.from_numpy(student.ppf(ranks, len(side) - 1)), error, 0)
    low, high = torch.from_numpy(np.quantile(means.numpy(), [(1 - level) / 2, (1 + level) / 2], axis=0))
    return difference.mean(0), low, high


def compare_learner(
    learner: Tensor, opponents: Mapping[str, Tensor], seed: int, cost_bps: float | None = None
) -> pd.DataFrame:
    """Compare a learner with every opponent in one condition.

    Parameters
    ----------
    learner : Tensor
        Utility, bps, [training seeds, days], or the influence of each day on each of ``QUANTITIES``,
        [training seeds, days, 4], of which utility and mean P&L are their values on the day.
    opponents : mapping of str to Tensor
        The same for each opponent on the same days, with its training seeds or one row.
    seed : int
        Seed of the bootstrap.
    cost_bps : float, optional
        Cost of the best opponent, of which ``MATERIAL`` is material; by default its mean disutility, which is
        no measure of cost where prices drift.

    Returns
    -------
    pandas.DataFrame
        One row per opponent: ``reference``, its own quantities (``reference_<quantity>_bps``),
        ``material_bps``, for each quantity the difference in bps with its interval (``<quantity>``,
        ``<quantity>_ci_low``, ``<quantity>_ci_high``), and the ``verdict`` on utility.

    Raises
    ------
    ValueError
        Without opponents, or as in :func:`hierarchical_interval`.
    """
    if not opponents:
        raise ValueError("opponents: must be at least one")
    rows = max(map(len, opponents.values()))
    # Copies of one row have no error over training seeds.
    others = torch.stack([x.expand(rows, *x.shape[1:]) for x in opponents.values()], 2)
    copies = learner[:, :, None].expand(-1, -1, *others.shape[2:])
    ends = [x.reshape(len(opponents), -1).numpy() for x in hierarchical_interval(copies, others, seed)]
    level = others.double().mean((0, 1)).reshape(len(opponents), -1).numpy()
    table = pd.DataFrame({"reference": list(opponents)})
    for i, name in enumerate(QUANTITIES[: level.shape[1]]):
        table[f"reference_{name}_bps"] = level[:, i]
        for suffix, values in zip(("", "_ci_low", "_ci_high"), ends, strict=True):
            table[f"{name}{suffix}"] = values[:, i]
    table["material_bps"] = MATERIAL * (-level[:, 0].max() if cost_bps is None else cost_bps)
    return table.assign(verdict=verdicts(table))


def verdicts(comparisons: pd.DataFrame) -> pd.Series:
    """Verdict on the utility of each comparison, one of ``VERDICTS``.

    Parameters
    ----------
    comparisons : pandas.DataFrame
        Columns ``utility_ci_low``, ``utility_ci_high`` and ``material_bps``, bps.

    Returns
    -------
    pandas.Series
        "better" if the whole interval is above ``material_bps``, "worse" if it is below its negative, "equal"
        if it is between the two, ends included, and "open" otherwise.

    Raises
    ------
    ValueError
        If an interval is not finite or not in order, or a material size is not finite and positive.
    """
    low, high, material = (comparisons[c] for c in ("utility_ci_low", "utility_ci_high", "material_bps"))
    sound = np.isfinite(low) & np.isfinite(high) & (low <= high) & np.isfinite(material) & (material > 0)
    if not sound.all():
        row = int(np.argmin(sound))
        ends = f"interval {low.iloc[row]:g} to {high.iloc[row]:g}, material_bps = {material.iloc[row]:g}"
        raise ValueError(f"{ends} in row {row}: must be finite, in order, and with a material size > 0")
    choices = [low > material, (low >= -material) & (high <= material), high < -material]
    return pd.Series(np.select(choices, VERDICTS[:3], VERDICTS[3]), comparisons.index, name="verdict")


def count_verdicts(comparisons: pd.DataFrame, by: Sequence[str] = ("world",)) -> pd.DataFrame:
    """Count the verdicts, and the intervals wholly above zero, in each group of comparisons.

    Parameters
    ----------
    comparisons : pandas.DataFrame
        As in :func:`verdicts`, with the columns ``by``.
    by : sequence of str
        Columns that define the groups, such as world and reference.

    Returns
    -------
    pandas.DataFrame
        One row per group in order of appearance: the columns ``by``, the number of ``comparisons``, the
        number with each of ``VERDICTS``, and ``above_zero``, which ignores the material size.
    """
    found = verdicts(comparisons)
    counts = {"comparisons": 1} | {name: (found == name).astype(int) for name in VERDICTS}
    counts |= {"above_zero": (comparisons["utility_ci_low"] > 0).astype(int)}
    counted = comparisons[list(by)].assign(**counts)
    return counted.groupby(list(by), sort=False, dropna=False).sum().reset_index()
