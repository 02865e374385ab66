"""The scorecard: every policy on the same test paths, with paired confidence intervals.

Profit and utility are measured with the control variate, that is without the zero-mean martingale
term of P&L; standard deviation and CVaR are those of the whole P&L. Intervals are 95 %, normal in
the mean over independent paths.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from flowoe_lib.evaluation.intervals import _std_influence, capture_interval, paired_interval
from flowoe_lib.execution.execution import Observation, Policy, execute
from flowoe_lib.execution.information import Perceive, exact
from flowoe_lib.market.model import Condition, volume_profile
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.schedules import twap
from flowoe_lib.randomness import generator

__all__ = [
    "CHUNK",
    "COLUMNS",
    "VALIDATION_CHUNK",
    "Entry",
    "Evaluation",
    "PathResults",
    "Scores",
    "best_expert",
    "captures",
    "compare",
    "evaluate",
    "market_days",
    "reactions",
    "score_condition",
]


CHUNK, VALIDATION_CHUNK = 5_000, 2_500
"""Days simulated together for a test and for validation, few enough to stay in cache."""


COLUMNS = [
    "world", "condition", "vol", "liq", "cv", "drift", "phi", "lam",
    "policy", "solver_steps", "training_seed", "n_paths", "mean_bps", "std_bps", "cvar95_bps", "utility_bps",
    "vs_best_expert_bps", "vs_best_expert_ci_low", "vs_best_expert_ci_high",
    "capture", "capture_ci_low", "capture_ci_high",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """On how many simulated days policies are compared, and which ones.

    Days are drawn in whole chunks, each from a random stream of its own, and then cut to the number asked
    for: so the first days are the same however many follow, whoever else runs. Another ``chunk``, seed or
    number of buckets gives other days. Raises ValueError for a count below one.
    """

    n_paths: int
    """Test days of a condition."""
    n_few: int = CHUNK
    """The first of them, for entries of minor interest."""
    n_validation: int = VALIDATION_CHUNK
    """Days on which choices are made and nothing is scored."""
    n_buckets: int
    seed: int
    chunk: int = CHUNK
    """Test days simulated together."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.name != "seed" and getattr(self, f.name) < 1:
                raise ValueError(f"{f.name} = {getattr(self, f.name)}: must be at least 1")

    @property
    def validation(self) -> "Evaluation":
        """The same on ``n_validation`` days."""
        return replace(self, n_paths=self.n_validation, chunk=VALIDATION_CHUNK)


@dataclass(frozen=True)
class PathResults:
    """What a policy earned on each path of a condition, bps, [paths]; more is better."""

    pnl: Tensor
    controlled_pnl: Tensor
    """P&L without its martingale term."""
    martingale: Tensor
    utility: Tensor
    left: float
    """Largest inventory left at the close."""

    def head(self, n: int) -> "PathResults":
        """The first ``n`` paths."""
        return PathResults(
            self.pnl[:n], self.controlled_pnl[:n], self.martingale[:n], self.utility[:n], self.left
        )

    @property
    def cvar95(self) -> float:
        """Average P&L over the worst 5 % of paths, bps."""
        return self.pnl.double().sort().values[: max(1, round(0.05 * len(self.pnl)))].mean().item()

    @property
    def martingale_z(self) -> float:
        """Mean of the martingale term over its standard error: far from zero for whoever looks ahead."""
        m = self.martingale.double()
        return float(m.mean() / (m.std() / len(m) ** 0.5))


@dataclass(frozen=True)
class Entry:
    """A policy as it enters the scorecard."""

    policy: Policy
    name: str
    solver_steps: int | None = None
    training_seed: int | None = None
    n_paths: int | None = None
    """Number of test paths, if fewer than all."""
    perceive: Perceive = exact
    """What it sees of the market where it is one of the informed."""


class Scores(NamedTuple):
    """What is measured of the policies in a condition, a table each."""

    scorecard: pd.DataFrame
    """A row a policy, with the columns ``COLUMNS``."""
    comparisons: pd.DataFrame
    """A row for each contender and reference: paired differences as in :func:`compare`."""
    checks: pd.DataFrame
    """A row a policy: whether it looked ahead, and what it left unsold."""


def market_days(condition: Condition, evaluation: Evaluation, stream: str) -> Iterator[MarketPaths]:
    """Days of a condition in whole chunks; ``stream`` (validation, test, ...) names an independent set."""
    for chunk in range(-(-evaluation.n_paths // evaluation.chunk)):
        draws = generator(evaluation.seed, stream, condition.world, condition.name, chunk)
        yield simulate(condition.market, evaluation.chunk, evaluation.n_buckets, draws)


def evaluate(
    policies: Mapping[str, Policy],
    condition: Condition,
    evaluation: Evaluation,
    stream: str,
    perceive: Perceive = exact,
) -> dict[str, PathResults]:
    """Run policies on the same days, a chunk at a time.

    ``perceive`` is what they all see of the market; the days do not depend on it.
    """
    parts: dict[str, list[PathResults]] = {key: [] for key in policies}
    seed, of = evaluation.seed, (condition.world, condition.name)
    with torch.no_grad():
        for chunk, paths in enumerate(market_days(condition, evaluation, stream)):
            errors = generator(seed, stream, "perception", *of, chunk)
            known = perceive(paths, condition.market, errors)
            for key, policy in policies.items():
                noise = generator(seed, stream, "policy noise", *of, chunk)
                e = execute(policy, paths, condition.market, condition.order, noise, known)
                utility = e.utility_bps(condition.order)
                left = e.inventory[-1].abs().max().item()
                parts[key].append(
                    PathResults(e.pnl_bps, e.controlled_pnl_bps, e.martingale_bps, utility, left)
                )
    return {key: _joined(part).head(evaluation.n_paths) for key, part in parts.items()}


def _joined(parts: list[PathResults]) -> PathResults:
    return PathResults(
        pnl=torch.cat([p.pnl for p in parts]),
        controlled_pnl=torch.cat([p.controlled_pnl for p in parts]),
        martingale=torch.cat([p.martingale for p in parts]),
        utility=torch.cat([p.utility for p in parts]),
        left=max(p.left for p in parts),
    )


def compare(a: PathResults, b: PathResults) -> dict[str, float]:
    """Paired differences a - b in utility, mean and std of P&L, with 95 % intervals, bps.

    On the paths both were run on. The interval of the std difference is the delta method's.
    """
    n = min(len(a.pnl), len(b.pnl))
    a, b = a.head(n), b.head(n)
    differences = {
        "utility": a.utility - b.utility,
        "mean": a.controlled_pnl - b.controlled_pnl,
        "std": _std_influence(a.pnl) - _std_influence(b.pnl),
    }
    out: dict[str, float] = {}
    for name, difference in differences.items():
        out[name], out[f"{name}_ci_low"], out[f"{name}_ci_high"] = paired_interval(difference)
    return out


def best_expert(
    experts: Mapping[str, Policy], condition: Condition, evaluation: Evaluation, perceive: Perceive = exact
) -> str:
    """Name of the expert with the highest utility on validation days, on which nothing is scored."""
    outcomes = evaluate(experts, condition, evaluation.validation, "validation", perceive)
    return max(outcomes, key=lambda name: outcomes[name].utility.mean().item())


def score_condition(
    condition: Condition,
    experts: Mapping[str, Policy],
    contenders: Sequence[Entry],
    evaluation: Evaluation,
    perceive: Perceive = exact,
    informed: Sequence[Entry] = (),
) -> Scores:
    """Scores of one condition.

    In the scorecard, ``vs_best_expert`` is the paired utility difference to the expert that was best on
    validation days; ``capture`` is the share of the way from TWAP (an expert that must be there) to the
    oracle. References of a contender are every expert and the one-step imitation of its own seed.

    Experts and contenders see what ``perceive`` gives. The ``informed``, yardsticks that see all, run on
    the same days; the oracle is solved here unless it is among them. Raises ValueError where two policies
    have the same name, solver steps and training seed.
    """
    if "oracle" not in {e.name for e in informed}:
        oracle = solve_oracle(condition.market, condition.order, evaluation.n_buckets)
        informed = [*informed, Entry(oracle, "oracle")]
    everyone = [
        *(Entry(policy, name, perceive=perceive) for name, policy in experts.items()),
        *(replace(entry, perceive=perceive) for entry in contenders),
        *informed,
    ]
    keyed = {_key(entry): entry for entry in everyone}
    if len(keyed) < len(everyone):
        clash = next(key for key, count in Counter(map(_key, everyone)).items() if count > 1)
        raise ValueError(f"two policies are named {clash} (name/solver steps/training seed): must differ")
    best = best_expert(experts, condition, evaluation, perceive)
    outcomes: dict[str, PathResults] = {}
    days = {key: (entry.n_paths or evaluation.n_paths, entry.perceive) for key, entry in keyed.items()}
    for n_paths, view in dict.fromkeys(days.values()):
        runs = {key: keyed[key].policy for key in keyed if days[key] == (n_paths, view)}
        outcomes |= evaluate(runs, condition, replace(evaluation, n_paths=n_paths), "test", view)
    by_expert = {name: outcomes[f"{name}/None/None"] for name in experts}
    market, order = condition.market, condition.order
    where = {
        "world": condition.world,
        "condition": condition.name,
        "vol": market.heston.theta.double().sqrt().item(),
        "liq": market.liquidity.illiquidity.item(),
        "cv": market.heston.cv.item(),
        "drift": market.drift.item(),
        "phi": order.size.item(),
        "lam": order.risk_aversion.item(),
    }
    scores, comparisons, checks = [], [], []
    for key, entry in keyed.items():
        o = outcomes[key]
        who = {
            "policy": entry.name,
            "solver_steps": entry.solver_steps,
            "training_seed": entry.training_seed,
            "n_paths": len(o.pnl),
        }
        versus, n = compare(o, by_expert[best]), len(o.pnl)
        yardstick = by_expert["twap"].utility[:n], outcomes["oracle/None/None"].utility[:n]
        capture = capture_interval(o.utility, *yardstick)
        scores.append(
            where
            | who
            | {
                "mean_bps": o.controlled_pnl.double().mean().item(),
                "std_bps": o.pnl.double().std().item(),
                "cvar95_bps": o.cvar95,
                "utility_bps": o.utility.double().mean().item(),
                "vs_best_expert_bps": versus["utility"],
                "vs_best_expert_ci_low": versus["utility_ci_low"],
                "vs_best_expert_ci_high": versus["utility_ci_high"],
            }
            | dict(zip(("capture", "capture_ci_low", "capture_ci_high"), capture, strict=True))
        )
        label = {"world": condition.world, "condition": condition.name}
        checks.append(label | who | {"martingale_z": o.martingale_z, "inventory_left": o.left})
        if key in map(_key, contenders):
            imitation = f"flow_imitation/1/{entry.training_seed}"
            references = by_expert | (
                {"flow_imitation": outcomes[imitation]} if imitation in outcomes else {}
            )
            for name, reference in references.items():
                row: dict[str, object] = (
                    label | who | {"reference": name, "reference_bps": reference.utility.mean().item()}
                )
                row |= {"reference_std_bps": reference.pnl.std().item(), "is_best_expert": name == best}
                comparisons.append(row | compare(o, reference))
    table = pd.DataFrame(scores)[COLUMNS].astype({"solver_steps": "Int64", "training_seed": "Int64"})
    return Scores(table, pd.DataFrame(comparisons), pd.DataFrame(checks))


def _key(entry: Entry) -> str:
    return f"{entry.name}/{entry.solver_steps}/{entry.training_seed}"


def captures(
    policies: Mapping[str, Policy], condition: Condition, evaluation: Evaluation, stream: str
) -> pd.DataFrame:
    """Capture and utility of policies in one condition, paired with the first policy.

    A row a policy: condition, policy, capture, utility, and the difference to the first policy in units
    of the oracle's gain over TWAP, with its 95 % interval.
    """
    oracle = solve_oracle(condition.market, condition.order, evaluation.n_buckets)
    everyone: dict[str, Policy] = {"twap": twap, "oracle": oracle, **policies}
    outcomes = evaluate(everyone, condition, evaluation, stream)
    floor, roof = outcomes["twap"].utility, outcomes["oracle"].utility
    gap, first, rows = (roof - floor).double().mean().item(), outcomes[next(iter(policies))].utility, []
    for name in policies:
        utility = outcomes[name].utility
        difference, low, high = paired_interval((utility - first) / gap)
        capture = capture_interval(utility, floor, roof)[0]
        rows.append((condition.name, name, capture, utility.double().mean().item(), difference, low, high))
    return pd.DataFrame(
        rows, columns=["condition", "policy", "capture", "utility_bps", "difference", "low", "high"]
    )


def reactions(
    policies: Mapping[str, Policy],
    condition: Condition,
    *,
    n_buckets: int,
    k: int,
    inventory: Tensor,
    variance_ratios: Tensor,
) -> pd.DataFrame:
    """What policies would trade in bucket ``k`` with ``inventory`` left, at several variances over theta.

    Columns time, policy, variance_ratio, fraction (of what is left), twap_fraction. Depth is at its
    mean and the price where it was at arrival.
    """
    zeros = torch.zeros_like(variance_ratios)
    market = condition.market
    obs = Observation(
        k=k,
        n_buckets=n_buckets,
        inventory=zeros + inventory,
        return_bps=zeros,
        recent_bps=torch.stack((zeros, zeros)),
        variance=variance_ratios * market.heston.theta,
        log_depth=zeros,
        volume=volume_profile(market.liquidity, n_buckets).reshape(n_buckets, 1),
        market=market,
        order=condition.order,
        pre_trade=PreTrade.of(market, condition.order),
    )
    with torch.no_grad():
        fractions = {name: policy(obs, zeros) for name, policy in policies.items()}
    return pd.concat(
        pd.DataFrame(
            {
                "time": k / n_buckets,
                "policy": name,
                "variance_ratio": variance_ratios,
                "fraction": fraction,
                "twap_fraction": 1 / (n_buckets - k),
            }
        )
        for name, fraction in fractions.items()
    )
