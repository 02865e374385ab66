"""The scorecard: every policy on the same test paths, with intervals over training seeds and paths.

Mean P&L and utility are measured with the control variate, that is without the zero-mean martingale term of
P&L; standard deviation and CVaR are those of the full P&L. Intervals are 95 % intervals of paired
differences.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from flowoe_lib.evaluation.intervals import capture_interval, cvar95_influence, paired_interval, std_influence
from flowoe_lib.evaluation.verdicts import QUANTITIES, compare_learner
from flowoe_lib.execution.execution import OrderSimulation, Policies, Policy, execute
from flowoe_lib.execution.information import Information, Perceive, exact
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.model import Condition
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.randomness import generator

CHUNK, VALIDATION_CHUNK = 5_000, 2_500
"""Days simulated together for a test and for validation, few enough to stay in the processor's cache."""


WHERE, WHO = ("world", "condition"), ("policy", "solver_steps", "training_seed", "n_paths")


COLUMNS = [
    *WHERE, "vol", "liq", "cv", "drift", "phi", "lam", *WHO, *(f"{quantity}_bps" for quantity in QUANTITIES),
    "cost_bps", "capture", "capture_ci_low", "capture_ci_high",
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
    cost: Tensor
    """Temporary impact and the penalty for expected risk: what a policy pays, whatever the drift brings."""
    left: Tensor
    """Absolute inventory left at the close, as a fraction of the order."""

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
    policies: Policies, condition: Condition, evaluation: Evaluation, stream: str, perceive: Perceive = exact
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
    seed, market, order = evaluation.seed, condition.market, condition.order
    with torch.no_grad():
        for chunk, paths in enumerate(market_days(condition, evaluation, stream)):
            of, views = (condition.world, condition.name, chunk), dict[Perceive, Information]()
            for key, entry in entries.items():
                if n_paths[key] <= chunk * evaluation.chunk:
                    continue
                if entry.perceive not in views:
                    errors = generator(seed, stream, "perception", *of)
                    views[entry.perceive] = entry.perceive(paths, market, errors)
                noise = generator(seed, stream, "policy noise", *of)
                e = execute(entry.policy, paths, market, order, noise, views[entry.perceive])
                done = PathResults(
                    pnl=e.pnl_bps,
                    controlled_pnl=e.controlled_pnl_bps,
                    martingale=e.martingale_bps,
                    utility=e.utility_bps(order),
                    cost=e.temporary_bps + order.risk_aversion * e.expected_risk,
                    left=e.inventory[-1].abs(),
                )
                parts[key].append(done)
    joined = partial(map_tensors, lambda *tensors: torch.cat(tensors))
    return {key: joined(*part).head(n_paths[key]) for key, part in parts.items()}


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
    opponents: Policies,
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
    where = condition.world, condition.name
    volatility = market.heston.theta.double().sqrt()
    of_market = volatility, market.liquidity.illiquidity, market.heston.cv, market.drift
    settings = [x.item() for x in (*of_market, order.size, order.risk_aversion)]
    scores, checks = [], []
    for key, entry in keyed.items():
        o, n = outcomes[key], len(outcomes[key].pnl)
        who = entry.name, entry.solver_steps, entry.training_seed, n
        capture = capture_interval(o.utility, outcomes["twap/None/None"].utility[:n], yardstick.utility[:n])
        measured = *o.influences.mean(0).tolist(), o.cost.mean().item(), *capture
        scores.append((*where, *settings, *who, *measured))
        checks.append((*where, *who, o.martingale_z, o.left.max().item()))
    versus = {name: [outcomes[f"{name}/None/None"]] for name in opponents}
    hardest = max((runs[0] for runs in versus.values()), key=lambda run: run.utility.mean().item())
    cost_bps = hardest.cost.mean().item()
    learners: dict[tuple[str, int | None], list[PathResults]] = {}
    for entry in contenders:
        learners.setdefault((entry.name, entry.solver_steps), []).append(outcomes[_key(entry)])
    comparisons = [pd.DataFrame()]
    for (name, steps), runs in learners.items():
        imitation = learners.get(("flow_imitation", 1)) if name != "flow_imitation" else None
        others = versus | ({"flow_imitation": imitation} if imitation else {})
        # All on the days on which each of them was run.
        groups = [runs, *others.values()]
        n = min(len(run.pnl) for group in groups for run in group)
        own, *references = (torch.stack([run.head(n).influences for run in group]) for group in groups)
        table = compare_learner(own, dict(zip(others, references, strict=True)), evaluation.seed, cost_bps)
        best = table["reference_utility_bps"].where(table["reference"].isin(opponents)).idxmax()
        learner: dict[str, object] = {"world": where[0], "condition": where[1], "policy": name}
        learner |= {"solver_steps": steps, "training_seeds": len(runs)}
        table = pd.DataFrame(learner, index=table.index).join(table)
        comparisons.append(table.assign(n_paths=n, is_best_opponent=table.index == best))
    whole = {"solver_steps": "Int64", "training_seed": "Int64"}
    scorecard = pd.DataFrame(scores, columns=COLUMNS).astype(whole)
    checked = pd.DataFrame(checks, columns=[*WHERE, *WHO, "martingale_z", "inventory_left"])
    return Scores(scorecard, pd.concat(comparisons, ignore_index=True), checked)


def _key(entry: Contender) -> str:
    return f"{entry.name}/{entry.solver_steps}/{entry.training_seed}"


def reactions(
    policies: Policies,
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
    market, zeros = condition.market, torch.zeros_like(variance_ratios)
    day = simulate(market, len(zeros), n_buckets, generator(0, "reactions"))
    state = OrderSimulation(day, market, condition.order).observe(k, zeros + inventory)
    obs = replace(state, variance=variance_ratios * market.heston.theta, return_bps=zeros, log_depth=zeros)
    with torch.no_grad():
        fractions = {name: policy(obs, zeros) for name, policy in policies.items()}
    same = {"time": k / n_buckets, "variance_ratio": variance_ratios, "twap_fraction": 1 / (n_buckets - k)}
    tables = [pd.DataFrame(same | {"policy": name, "fraction": f}) for name, f in fractions.items()]
    return pd.concat(tables)[["time", "policy", "variance_ratio", "fraction", "twap_fraction"]]
