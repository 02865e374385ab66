"""The scorecard: every policy on the same test paths, with intervals over training seeds and paths.

Mean P&L and utility are measured with the control variate, that is without the zero-mean martingale term of
P&L; standard deviation and CVaR are those of the full P&L. Intervals are 95 % intervals of paired
differences.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from flowoe_lib.evaluation.intervals import (
    capture_interval,
    cvar95_influence,
    paired_interval,
    std_influence,
)
from flowoe_lib.evaluation.verdicts import QUANTITIES, compare_learner
from flowoe_lib.execution.execution import Observation, Policy, execute
from flowoe_lib.execution.information import Information, Perceive, exact
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.model import Condition, volume_profile
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.schedules import twap
from flowoe_lib.randomness import generator

__all__ = [
    "CHUNK",
    "COLUMNS",
    "Contender",
    "Evaluation",
    "PathResults",
    "Scores",
    "captures",
    "compare",
    "evaluate",
    "market_days",
    "reactions",
    "score_condition",
]


CHUNK, VALIDATION_CHUNK = 5_000, 2_500
"""Days simulated together for a test and for validation, few enough to stay in the processor's cache."""


COLUMNS = [
    "world", "condition", "vol", "liq", "cv", "drift", "phi", "lam",
    "policy", "solver_steps", "training_seed", "n_paths", "utility_bps", "mean_bps", "std_bps", "cvar95_bps",
    "capture", "capture_ci_low", "capture_ci_high",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The simulated days on which policies are compared.

    Days are drawn in whole chunks, each from its own random stream, and then cut to the required number. The
    first days are therefore the same for any number of days and any set of policies.

    Parameters
    ----------
    n_paths : int
        Number of test days of a condition.
    n_few : int
        Number of test days of entries of minor interest: the first of ``n_paths``.
    n_validation : int
        Number of validation days, on which choices are made and nothing is scored.
    n_buckets : int
        Number of buckets N of a day.
    seed : int
        Seed of the random streams.
    chunk : int
        Number of days simulated together. Another chunk, seed or number of buckets gives other days.

    Raises
    ------
    ValueError
        If a count is below one.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> fo.Evaluation(n_paths=10_000, n_buckets=39, seed=1).validation.n_paths
    2500
    """

    n_paths: int
    n_few: int = CHUNK
    n_validation: int = VALIDATION_CHUNK
    n_buckets: int
    seed: int
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.name != "seed" and getattr(self, f.name) < 1:
                raise ValueError(f"{f.name} = {getattr(self, f.name)}: must be at least 1")

    @property
    def validation(self) -> "Evaluation":
        """The same evaluation on ``n_validation`` days."""
        return replace(self, n_paths=self.n_validation, chunk=VALIDATION_CHUNK)


@dataclass(frozen=True)
class PathResults:
    """Results of a policy on each path of a condition, bps, [paths]; higher is better."""

    pnl: Tensor
    controlled_pnl: Tensor
    """P&L without its martingale term."""
    martingale: Tensor
    utility: Tensor
    left: float
    """Largest inventory left at the close."""

    def head(self, n: int) -> "PathResults":
        """The first ``n`` paths."""
        first: PathResults = map_tensors(lambda x: x[:n], self)
        return first

    @property
    def influences(self) -> Tensor:
        """Influence of each path on each of ``QUANTITIES``; its mean is the quantity; [paths, 4], float64."""
        tails = std_influence(self.pnl), cvar95_influence(self.pnl)
        return torch.stack((self.utility.double(), self.controlled_pnl.double(), *tails), 1)

    @property
    def cvar95(self) -> float:
        """Average P&L over the worst 5 % of paths, bps."""
        return cvar95_influence(self.pnl).mean().item()

    @property
    def martingale_z(self) -> float:
        """Mean of the martingale term over its standard error; far from zero if the policy looks ahead."""
        m = self.martingale.double()
        return float(m.mean() / (m.std() / len(m) ** 0.5))


@dataclass(frozen=True)
class Contender:
    """A policy in the scorecard."""

    policy: Policy
    name: str
    solver_steps: int | None = None
    training_seed: int | None = None
    n_paths: int | None = None
    """Number of test paths; by default all."""
    perceive: Perceive = exact
    """Its information about the market."""


class Scores(NamedTuple):
    """The results of one condition, in three tables."""

    scorecard: pd.DataFrame
    """One row per policy, with the columns ``COLUMNS``."""
    comparisons: pd.DataFrame
    """One row per learner and reference: :func:`flowoe_lib.evaluation.verdicts.compare_learner`."""
    checks: pd.DataFrame
    """One row per policy: the z-score of its martingale term, and the inventory left at the close."""


def market_days(condition: Condition, evaluation: Evaluation, stream: str) -> Iterator[MarketPaths]:
    """Simulate days of a condition in whole chunks; ``stream`` ("test", ...) names an independent set."""
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
    """Run policies on the same simulated days of a condition.

    Parameters
    ----------
    policies : mapping of str to policy
        Policies by name.
    condition : Condition
        Market and order, fields of shape [].
    evaluation : Evaluation
        Number and seed of the days.
    stream : str
        Name of an independent set of days, such as "test" or "validation".
    perceive : callable
        The information that all policies have about the market, a function of
        :mod:`flowoe_lib.execution.information`; by default full information. The days do not depend on it.

    Returns
    -------
    dict of str to flowoe_lib.evaluation.scorecard.PathResults
        P&L and utility by policy, bps, [n_paths].

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> market, order = fo.Market(heston), fo.Order(fo.scalar(0.1), fo.scalar(5e-4))
    >>> condition = fo.Condition("mine", "stressed", market, order)
    >>> evaluation = fo.Evaluation(n_paths=1_000, n_buckets=13, seed=1)
    >>> policies = {"twap": fo.twap, "static": fo.static_optimal(market, order, 13)}
    >>> results = fo.evaluate(policies, condition, evaluation, "test")
    >>> {name: round(result.utility.mean().item(), 1) for name, result in results.items()}
    {'twap': -25.5, 'static': -23.9}
    """
    entries = {name: Contender(policy, name, perceive=perceive) for name, policy in policies.items()}
    return _run(entries, condition, evaluation, stream)


def _run(
    entries: Mapping[str, Contender], condition: Condition, evaluation: Evaluation, stream: str
) -> dict[str, PathResults]:
    """Run entries on the same days, each with its own number of days and its own information."""
    n_paths = {key: entry.n_paths or evaluation.n_paths for key, entry in entries.items()}
    parts: dict[str, list[PathResults]] = {key: [] for key in entries}
    seed, of, market = evaluation.seed, (condition.world, condition.name), condition.market
    with torch.no_grad():
        for chunk, paths in enumerate(market_days(condition, evaluation, stream)):
            views: dict[Perceive, Information] = {}
            for key, entry in entries.items():
                if n_paths[key] <= chunk * evaluation.chunk:
                    continue
                if entry.perceive not in views:
                    errors = generator(seed, stream, "perception", *of, chunk)
                    views[entry.perceive] = entry.perceive(paths, market, errors)
                noise = generator(seed, stream, "policy noise", *of, chunk)
                e = execute(entry.policy, paths, market, condition.order, noise, views[entry.perceive])
                utility = e.utility_bps(condition.order)
                left = e.inventory[-1].abs().max().item()
                done = PathResults(e.pnl_bps, e.controlled_pnl_bps, e.martingale_bps, utility, left)
                parts[key].append(done)
    return {key: _joined(part).head(n_paths[key]) for key, part in parts.items()}


def _joined(parts: list[PathResults]) -> PathResults:
    joined: PathResults = map_tensors(lambda *tensors: torch.cat(tensors), *parts)
    return replace(joined, left=max(p.left for p in parts))


def compare(a: PathResults, b: PathResults) -> dict[str, float]:
    """Paired differences a - b in each of ``QUANTITIES``, bps, with 95 % intervals over paths.

    They are taken over the paths on which both were run. The intervals of the differences in standard
    deviation and CVaR95 follow from the delta method.
    """
    n = min(len(a.pnl), len(b.pnl))
    difference = a.head(n).influences - b.head(n).influences
    out: dict[str, float] = {}
    for name, values in zip(QUANTITIES, difference.T, strict=True):
        out[name], out[f"{name}_ci_low"], out[f"{name}_ci_high"] = paired_interval(values)
    return out


def score_condition(
    condition: Condition,
    opponents: Mapping[str, Policy],
    contenders: Sequence[Contender],
    evaluation: Evaluation,
    perceive: Perceive = exact,
    informed: Sequence[Contender] = (),
) -> Scores:
    """Score policies in one condition against opponents and the optimum, on the same days.

    A learner is the contenders of one name and number of solver steps; its training seeds are compared
    together with each reference: every opponent, and the one-step imitation. ``is_best_opponent`` marks the
    opponent with the highest mean utility on these days, the hardest to beat. ``capture`` is 0 for TWAP and 1
    for the first of the ``informed``.

    Parameters
    ----------
    condition : Condition
        Market and order, fields of shape [].
    opponents : mapping of str to policy
        Policies with which contenders are compared; one of them must be "twap".
    contenders : sequence of flowoe_lib.evaluation.scorecard.Contender
        Policies to be compared with the opponents.
    evaluation : Evaluation
        Number and seed of the days.
    perceive : callable
        The information of opponents and contenders about the market; by default full information.
    informed : sequence of flowoe_lib.evaluation.scorecard.Contender
        Optima and other references with their own information; by default the oracle.

    Returns
    -------
    flowoe_lib.evaluation.scorecard.Scores
        The tables ``scorecard``, ``comparisons`` and ``checks``, in bps.

    Raises
    ------
    ValueError
        If two policies have the same name, solver steps and training seed.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> market, order = fo.Market(heston), fo.Order(fo.scalar(0.1), fo.scalar(5e-4))
    >>> condition = fo.Condition("mine", "stressed", market, order)
    >>> evaluation = fo.Evaluation(n_paths=1_000, n_buckets=13, seed=1)
    >>> opponents = {"twap": fo.twap, "static": fo.static_optimal(market, order, 13)}
    >>> scores = fo.score_condition(condition, opponents, [], evaluation)
    >>> scores.scorecard.set_index("policy")["capture"].round(2).to_dict()
    {'twap': 0.0, 'static': 0.9, 'oracle': 1.0}
    """
    if not informed:
        oracle = solve_oracle(condition.market, condition.order, evaluation.n_buckets)
        informed = [Contender(oracle, "oracle")]
    everyone = [
        *(Contender(policy, name, perceive=perceive) for name, policy in opponents.items()),
        *(replace(entry, perceive=perceive) for entry in contenders),
        *informed,
    ]
    keyed = {_key(entry): entry for entry in everyone}
    if len(keyed) < len(everyone):
        [(clash, _)] = Counter(map(_key, everyone)).most_common(1)
        raise ValueError(f"two policies are named {clash} (name/solver steps/training seed): must differ")
    outcomes = _run(keyed, condition, evaluation, "test")
    yardstick = outcomes[_key(informed[0])]
    market, order = condition.market, condition.order
    label = {"world": condition.world, "condition": condition.name}
    where = label | {
        "vol": market.heston.theta.double().sqrt().item(),
        "liq": market.liquidity.illiquidity.item(),
        "cv": market.heston.cv.item(),
        "drift": market.drift.item(),
        "phi": order.size.item(),
        "lam": order.risk_aversion.item(),
    }
    scores, checks = [], []
    for key, entry in keyed.items():
        o, n = outcomes[key], len(outcomes[key].pnl)
        who = {
            "policy": entry.name,
            "solver_steps": entry.solver_steps,
            "training_seed": entry.training_seed,
            "n_paths": n,
        }
        values = dict(zip((f"{q}_bps" for q in QUANTITIES), o.influences.mean(0).tolist(), strict=True))
        ends = outcomes["twap/None/None"].utility[:n], yardstick.utility[:n]
        capture = capture_interval(o.utility, *ends)
        named = zip(("capture", "capture_ci_low", "capture_ci_high"), capture, strict=True)
        scores.append(where | who | values | dict(named))
        checks.append(label | who | {"martingale_z": o.martingale_z, "inventory_left": o.left})
    versus = {name: [outcomes[f"{name}/None/None"]] for name in opponents}
    learners: dict[tuple[str, int | None], list[PathResults]] = {}
    for entry in contenders:
        learners.setdefault((entry.name, entry.solver_steps), []).append(outcomes[_key(entry)])
    comparisons = [pd.DataFrame()]
    for (name, steps), runs in learners.items():
        imitation = learners.get(("flow_imitation", 1)) if name != "flow_imitation" else None
        others = versus | ({"flow_imitation": imitation} if imitation else {})
        table = _versus(runs, others, condition, evaluation.seed)
        best = table["reference_utility_bps"].where(table["reference"].isin(opponents)).idxmax()
        learner = {"policy": name, "solver_steps": steps, "training_seeds": len(runs)}
        table = pd.DataFrame({**label, **learner}, index=table.index).join(table)
        comparisons.append(table.assign(is_best_opponent=table.index == best))
    scorecard = pd.DataFrame(scores)[COLUMNS].astype({"solver_steps": "Int64", "training_seed": "Int64"})
    return Scores(scorecard, pd.concat(comparisons, ignore_index=True), pd.DataFrame(checks))


def _versus(
    runs: Sequence[PathResults],
    others: Mapping[str, Sequence[PathResults]],
    condition: Condition,
    seed: int,
) -> pd.DataFrame:
    """Compare the training seeds of a learner with those of others, on the days on which all were run."""
    n = min(len(run.pnl) for group in (runs, *others.values()) for run in group)
    learner, *references = (
        torch.stack([run.head(n).influences for run in group]) for group in (runs, *others.values())
    )
    market, order = condition.market, condition.order
    least = PreTrade.of(market, order).cost_bps.item()
    # Half of the permanent price move is paid, whatever the schedule.
    sunk = market.permanent_cost_bps(order.size).item() / 2
    table = compare_learner(learner, dict(zip(others, references, strict=True)), seed, least, sunk)
    return table.assign(n_paths=n)


def _key(entry: Contender) -> str:
    return f"{entry.name}/{entry.solver_steps}/{entry.training_seed}"


def captures(
    policies: Mapping[str, Policy], condition: Condition, evaluation: Evaluation, stream: str
) -> pd.DataFrame:
    """Capture and utility of policies in one condition, with paired differences to the first policy.

    One row per policy: condition, policy, capture, utility_bps, and the difference to the first policy in
    units of the oracle's gain over TWAP, with the ends of its 95 % interval.
    """
    oracle = solve_oracle(condition.market, condition.order, evaluation.n_buckets)
    everyone: dict[str, Policy] = {"twap": twap, "oracle": oracle, **policies}
    outcomes = evaluate(everyone, condition, evaluation, stream)
    lowest, highest = outcomes["twap"].utility, outcomes["oracle"].utility
    gap, first, rows = (highest - lowest).double().mean().item(), outcomes[next(iter(policies))].utility, []
    for name in policies:
        utility = outcomes[name].utility
        difference, low, high = paired_interval((utility - first) / gap)
        capture = capture_interval(utility, lowest, highest)[0]
        rows.append((condition.name, name, capture, utility.double().mean().item(), difference, low, high))
    columns = ["condition", "policy", "capture", "utility_bps", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def reactions(
    policies: Mapping[str, Policy],
    condition: Condition,
    *,
    n_buckets: int,
    k: int,
    inventory: Tensor,
    variance_ratios: Tensor,
) -> pd.DataFrame:
    """Trades of policies in bucket ``k`` with ``inventory`` left, as a function of variance over theta.

    Columns time, policy, variance_ratio, fraction (of the remaining inventory), twap_fraction. Depth is at
    its mean and the price unchanged since arrival.
    """
    zeros = torch.zeros_like(variance_ratios)
    market = condition.market
    obs = Observation(
        k=k,
        n_buckets=n_buckets,
        inventory=zeros + inventory,
        return_bps=zeros,
        variance=variance_ratios * market.heston.theta,
        log_depth=zeros,
        volume=volume_profile(market.liquidity, n_buckets).reshape(n_buckets, 1),
        market=market,
        order=condition.order,
        pre_trade=PreTrade.of(market, condition.order),
    )
    with torch.no_grad():
        fractions = {name: policy(obs, zeros) for name, policy in policies.items()}
    same = {"time": k / n_buckets, "variance_ratio": variance_ratios, "twap_fraction": 1 / (n_buckets - k)}
    tables = [pd.DataFrame(same | {"policy": name, "fraction": f}) for name, f in fractions.items()]
    return pd.concat(tables)[["time", "policy", "variance_ratio", "fraction", "twap_fraction"]]
