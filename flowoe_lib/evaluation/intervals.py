"""Confidence intervals of means over independent paths."""

import math

from torch import Tensor


def capture_interval(policy: Tensor, twap: Tensor, oracle: Tensor) -> tuple[float, float, float]:
    """Capture (U_policy - U_TWAP) / (U_oracle - U_TWAP) and the ends of its 95 % interval.

    The arguments are utilities on the same paths, bps, [paths]. By the delta method, the error of the capture
    is that of the mean of (policy - twap) - capture (oracle - twap), divided by the mean of oracle - twap.
    Raises ValueError for other shapes, fewer than two paths, or an oracle that does not beat TWAP on them.
    """
    if not (policy.dim() == 1 and policy.shape == twap.shape == oracle.shape and len(policy) > 1):
        shapes = ", ".join(str(list(x.shape)) for x in (policy, twap, oracle))
        raise ValueError(f"utilities of shape {shapes}: must be [paths], the same two or more paths")
    gain, gap = (x.double() - twap.double() for x in (policy, oracle))
    mean_gap = float(gap.mean())
    if not mean_gap > 0:
        raise ValueError(f"oracle - TWAP = {mean_gap:g} bps: must be > 0")
    capture = float(gain.mean()) / mean_gap
    reach = 1.96 * float((gain - capture * gap).std()) / math.sqrt(len(gap)) / mean_gap
    return capture, capture - reach, capture + reach


Z95 = 1.959964


def paired_interval(difference: Tensor) -> tuple[float, float, float]:
    """Mean of per-path differences and the ends of its 95 % interval."""
    d = difference.double()
    mean, half = d.mean().item(), Z95 * d.std().item() / len(d) ** 0.5
    return mean, mean - half, mean + half


def std_influence(pnl: Tensor) -> Tensor:
    """Influence of each path on the standard deviation, [paths]; their mean is the standard deviation."""
    x = pnl.double()
    squares = (x - x.mean()).square()
    return x.std() + (squares - squares.mean()) / (2 * x.std())


def tail_size(n: int) -> int:
    """Number of days in the worst 5 % of ``n``, at least one, over which CVaR95 is the mean."""
    return max(1, round(0.05 * n))


def cvar95_influence(pnl: Tensor) -> Tensor:
    """Influence of each path on CVaR95, [paths]; their mean is CVaR95.

    CVaR95 is the mean P&L over the :func:`tail_size` worst paths. Source: Rockafellar, Uryasev (2000),
    Journal of Risk 2, for CVaR as the mean excess over a quantile.
    """
    x = pnl.double()
    worst = tail_size(len(x))
    threshold = x.kthvalue(worst).values
    return threshold + (x - threshold).clamp_max(0) * (len(x) / worst)
