"""The world of the unannounced level: training without the level, and the test of claim 4.

The law of the level has a heavy tail: rare days decide a large part of expected risk. Days are therefore
drawn from the law and from the law weighted by the level, half each, and the utility of a day is weighted by
the ratio of densities, 2 / (1 + theta / E[theta]), so that its variance is finite. Source: Owen (2013), Monte
Carlo theory, methods and examples, chapter 9, for mixtures as importance samplers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from flowoe_lib.evaluation.intervals import capture_interval, paired_interval
from flowoe_lib.evaluation.nearest_expert import Compared
from flowoe_lib.evaluation.verdicts import compare_learner
from flowoe_lib.execution.execution import Observation, Policies, Policy, execute
from flowoe_lib.market.model import Market, Order, scalar
from flowoe_lib.market.pre_trade import urgency
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.almgren_chriss import almgren_chriss
from flowoe_lib.policies.flow import EndpointField, FlowPolicy, TrainingRun
from flowoe_lib.policies.random_policy import uniform_scores
from flowoe_lib.policies.replanning import mpc
from flowoe_lib.policies.schedules import EstimatedSchedule, static_optimal, twap
from flowoe_lib.policies.unannounced import (
    LevelMixture,
    UnannouncedLevel,
    solve_level_belief,
    spread_of_shape,
)
from flowoe_lib.randomness import generator
from flowoe_lib.studies.side_by_side import trained
from flowoe_lib.training.imitation import Recorder, expert_weights, imitate, merge
from flowoe_lib.training.plateau import Days
from flowoe_lib.training.refinement import RefiningPolicy, ascend
from flowoe_lib.training.universal import universal_range

NAMES, QUANTILES = ("low", "median", "high"), (0.1, 0.5, 0.9)
"""The level experts, and the quantiles of the level to which their schedules are calibrated."""


FLOW, LIMIT, PLANNER = "FlowOE", "belief optimum", "re-planning on the posterior mean"
STATIC, MIXTURE = "static optimum", "posterior mixture"


DEMONSTRATED, SHARPNESS, NOISE_SD = 512, 10.0, 0.5
"""Days on which the level experts are imitated, sharpness of their weights, and noise of the states."""


PATHS, RATE = 576, 2e-2
"""Simulated days in each iteration of refinement, and its peak learning rate."""


def draw_days(
    world: UnannouncedLevel, order: Order, n_paths: int, n_buckets: int, draws: torch.Generator
) -> tuple[Days, Tensor]:
    """Days of drawn levels, every other one from the law weighted by the level, and their weights [paths]."""
    shape = world.shape - (torch.arange(n_paths) % 2).double()
    relative = (world.shape - 1) / torch._standard_gamma(shape, generator=draws)
    market = world.market_at(relative * world.market.heston.theta)
    paths = simulate(market, n_paths, n_buckets, draws)
    return Days(paths, market, order, world(paths, market, draws)), 2 / (1 + relative)


def train(
    worlds: Mapping[str, UnannouncedLevel],
    order: Order,
    n_buckets: int,
    imitations: int,
    iterations: int,
    seeds: Sequence[int],
) -> dict[str, Tensor]:
    """Train in every world with every seed; :func:`flowoe_lib.policies.flow.pack`, world by world.

    The level experts are imitated on days of drawn levels, weighted by their utility on the day; then the
    policy is refined. It observes the posterior mean of the level, in both stages.
    """
    tasks = [(world, order, n_buckets, imitations, iterations, s) for world in worlds.values() for s in seeds]
    return trained(_train, dict(enumerate(tasks)))


def _train(
    world: UnannouncedLevel, order: Order, n_buckets: int, imitations: int, iterations: int, seed: int
) -> TrainingRun:
    draws = generator(seed, "unannounced", "training")
    days, likelihood = draw_days(world, order, DEMONSTRATED, n_buckets, draws)
    utilities, recorded = [], []
    with torch.no_grad():
        for expert in LevelMixture.at(torch.tensor(QUANTILES), world, order, n_buckets).experts:
            utilities.append(days.utility(expert, draws))
            recorder = Recorder(expert, NOISE_SD)
            days.utility(recorder, draws)
            recorded.append(recorder.demonstrations())
    weights = expert_weights(torch.stack(utilities), SHARPNESS) * len(NAMES) * likelihood.float()
    shown = replace(merge(recorded), weights=weights[:, None].expand(-1, n_buckets - 1, -1).flatten())
    flow = imitate(shown, imitations, seed).field

    def draw(n: int, draws: torch.Generator) -> tuple[Market, Order]:
        below = torch._standard_gamma(torch.full((n,), world.shape), generator=draws)
        return world.market_at(world.market.heston.theta * (world.shape - 1) / below), order

    acting = partial(RefiningPolicy, flow)
    return TrainingRun(flow, ascend(flow, acting, draw, n_buckets, iterations, draws, PATHS, RATE, world))


def contenders(
    world: UnannouncedLevel, order: Order, n_buckets: int, universal: Mapping[int, EndpointField]
) -> dict[str, Policy]:
    """All opponents, with the belief optimum as their limit, and the universal policy of each seed, by name.

    The universal policy is told the slowest mean reversion of its training, see :class:`LevelAsVariance`.
    """
    slowest = scalar(universal_range(world.market.heston.rho.item()).kappa[0])
    told = slowest, scalar(spread_of_shape(world.shape))
    mixture = LevelMixture.at(torch.tensor(QUANTILES), world, order, n_buckets)
    return {
        LIMIT: solve_level_belief(world, order, n_buckets),
        PLANNER: mpc,
        MIXTURE: mixture,
        **dict(zip(NAMES, mixture.experts, strict=True)),
        STATIC: static_optimal(world.market, order, n_buckets),
        "Almgren-Chriss": almgren_chriss(world.market, order, n_buckets),
        "TWAP": twap,
        "random": uniform_scores,
        **{
            f"universal policy, seed {s}": LevelAsVariance(FlowPolicy(field, 1), *told)
            for s, field in universal.items()
        },
    }


@dataclass(frozen=True)
class LevelAsVariance:
    """A policy trained under stochastic variance; it takes the posterior mean of the level for the variance.

    It is told a mean reversion ``kappa``, the slowest of its training, since the mean is a martingale, and
    as ``cv`` the standard deviation of the logarithm of the level.
    """

    policy: Policy
    kappa: Tensor
    cv: Tensor

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, [paths]."""
        heston = replace(obs.market.heston, kappa=self.kappa, cv=self.cv)
        return self.policy(replace(obs, market=replace(obs.market, heston=heston)), noise)


def announced(market: Market, order: Order, n_buckets: int) -> EstimatedSchedule:
    """The optimal schedules of traders who know the day's level, from e^-5 to e^9 times the forecast's."""
    factors = torch.linspace(-5, 9, 113, dtype=torch.float64)
    lifted = replace(order, risk_aversion=order.risk_aversion * factors.exp())
    plans = static_optimal(market, lifted, n_buckets).inventory
    return EstimatedSchedule(urgency(market, order).log() + factors, plans)


class Outcome(NamedTuple):
    """Tables of the test, each with the column ``world``."""

    utility: pd.DataFrame
    """Mean utility of each policy, bps, and its gain over the static optimum as a share of the limit's."""
    comparisons: pd.DataFrame
    """FlowOE against every opponent, :func:`flowoe_lib.evaluation.verdicts.compare_learner`; a difference is
    material from a share of the belief optimum's cost."""
    behaviour: pd.DataFrame
    """Share of decisions nearest to each level expert, mean belief M / E[theta], mean inventory, by policy,
    by ``day``, the name of the level expert that is best at its level, and by bucket."""


def examine(
    worlds: Mapping[str, UnannouncedLevel],
    order: Order,
    universal: Mapping[int, EndpointField],
    learners: Mapping[str, Sequence[Policy]],
    n_buckets: int,
    n_paths: int,
    seed: int,
) -> Outcome:
    """Test ``learners``, by world and one per training seed, against :func:`contenders` on the same days."""
    parts = []
    for name, world in worlds.items():
        days, weight = draw_days(world, order, n_paths, n_buckets, generator(seed, "unannounced", name))
        others = contenders(world, order, n_buckets, universal)
        mixture = others[MIXTURE]
        assert isinstance(mixture, LevelMixture)
        best = torch.bucketize(days.market.heston.theta.double(), mixture.bounds)
        with torch.no_grad():
            compared = _compared(days, weight, best, others, learners[name], seed)
            behaviour = _behaviour(days, weight, best, mixture, learners[name][0], seed)
        parts.append([table.assign(world=name) for table in (*compared, behaviour)])
    return Outcome(*(pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True)))


def _compared(
    days: Days, weight: Tensor, best: Tensor, contenders: Policies, learners: Sequence[Policy], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    def earned(policy: Policy) -> Tensor:
        return weight * days.utility(policy, generator(seed, "unannounced", "noise"))

    limit = days.execute(contenders[LIMIT], generator(seed))
    spent = (weight * (limit.temporary_bps + days.order.risk_aversion * limit.expected_risk)).mean().item()
    utility = {name: earned(policy) for name, policy in contenders.items()}
    experts = torch.stack([utility[name] for name in NAMES])
    utility["best level expert in hindsight"] = experts.gather(0, best[None])[0]
    learned = torch.stack([earned(policy) for policy in learners])
    comparisons = compare_learner(learned, {name: u[None] for name, u in utility.items()}, seed, spent)
    utility |= {FLOW: learned.mean(0)} | {f"{FLOW}, seed {i}": u for i, u in enumerate(learned)}
    informed = announced(days.known.market, days.order, days.paths.n_buckets)
    done = execute(informed, days.paths, days.market, days.order, generator(seed))
    utility["level announced"] = weight * done.utility_bps(days.order)
    rows = [
        (name, *paired_interval(u), *capture_interval(u, utility[STATIC], utility[LIMIT]))
        for name, u in utility.items()
    ]
    ends = [f"{of}{end}" for of in ("utility", "share") for end in ("", "_ci_low", "_ci_high")]
    return pd.DataFrame(rows, columns=["policy", *ends]), comparisons


def _behaviour(
    days: Days, weight: Tensor, best: Tensor, mixture: LevelMixture, flow: Policy, seed: int
) -> pd.DataFrame:
    probable, compared = [], Compared(flow, mixture.experts)

    def observed(obs: Observation, noise: Tensor) -> Tensor:
        probable.append(mixture.weights(obs).argmax(0))
        return compared(obs, noise)

    done = days.execute(observed, generator(seed, "unannounced", "noise"))
    belief = days.known.variance / days.known.market.heston.theta
    tables = []
    for (who, chosen), (i, day) in product(
        ((FLOW, compared.nearest), ("Bayes classifier", probable)), enumerate(NAMES)
    ):
        share = weight * (best == i) / (weight * (best == i)).sum()
        columns = {name: torch.stack(chosen) == j for j, name in enumerate(NAMES)}
        columns |= {"belief": belief[:-1], "inventory": done.inventory[:-2]}
        means = {key: (x * share).sum(-1).numpy() for key, x in columns.items()}
        tables.append(pd.DataFrame(means).rename_axis("bucket").reset_index().assign(policy=who, day=day))
    return pd.concat(tables)
