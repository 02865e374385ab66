"""Ablations of FlowOE: what imitation, the flow and the simulator's gradient contribute.

A variant is trained on the same demonstrations, with the same seeds and with as many iterations as FlowOE.
"""

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from flowoe_lib.evaluation.scorecard import Evaluation, evaluate
from flowoe_lib.evaluation.verdicts import VERDICTS, compare_learner, verdicts
from flowoe_lib.execution.execution import Execution, Observation, Policy, execute
from flowoe_lib.execution.features import features, fraction_of_action
from flowoe_lib.market.batching import map_tensors, tile
from flowoe_lib.market.model import Condition
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.flow import EndpointField, FlowPolicy, TrainingRun, matching_loss, pack, unpack
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.schedules import twap
from flowoe_lib.randomness import generator
from flowoe_lib.sweep import sweep
from flowoe_lib.training.imitation import Demonstrations, SampleLoss, imitate, merge
from flowoe_lib.training.refinement import refine, utility_scale

__all__ = [
    "NoiseFreePolicy",
    "Setting",
    "contestants",
    "demonstration_sets",
    "imitate_each",
    "measure",
    "pack_variants",
    "regression",
    "train_variants",
    "unpack_variants",
]


COPIES, SPREAD, GENTLE_RATE = 6, 0.1, 1e-3
"""Advantage weighting: copies of a decision, standard deviation of their noise, and learning rate."""


def regression(field: EndpointField, observed: Tensor, x1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Squared error of the action itself: behaviour cloning without noise."""
    zero = torch.zeros_like(x1)
    action: Tensor = field(zero, zero, field.encode(observed))
    return (action - x1).square()


@dataclass(frozen=True)
class NoiseFreePolicy:
    """The network of FlowOE as a deterministic function of the observation: noise and time are zero."""

    field: EndpointField

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, [paths]."""
        zero = torch.zeros_like(noise)
        return fraction_of_action(obs, self.field(zero, zero, self.field.encode(features(obs))))


@dataclass
class _Perturbed:
    """Takes the one-step action of a field, with noise in one bucket per path, and records its decisions."""

    field: EndpointField
    when: Tensor
    disturbance: Tensor
    observed: list[Tensor]
    actions: list[Tensor]

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        observed, zero = features(obs), torch.zeros_like(noise)
        disturbance = torch.where(self.when == obs.k, self.disturbance, zero)
        action = self.field(zero, zero, self.field.encode(observed)) + disturbance
        self.observed.append(observed)
        self.actions.append(action)
        return fraction_of_action(obs, action)


def advantage_weighted(
    start: EndpointField,
    conditions: TrainingRange,
    n_buckets: int,
    iterations: int,
    seed: int,
    paths: int = 96,
) -> TrainingRun:
    """Flow matching on the policy's own better actions, without a gradient through the simulator.

    One decision of each path is disturbed in ``COPIES`` ways; each copy counts by the softmax of its
    utility among the copies of the same path, in standard deviations. Source: Peng et al. (2019),
    advantage-weighted regression. Curve: "utility", the minibatch mean in units of the loss.
    """
    field = copy.deepcopy(start)
    draws = generator(seed, "advantage weighting")
    optimiser = torch.optim.Adam(field.parameters(), GENTLE_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, GENTLE_RATE, total_steps=iterations)
    utilities = []
    for _ in range(iterations):
        market, order = conditions.draw(paths, draws)
        days = simulate(market, paths, n_buckets, draws)
        market, order = tile(market, COPIES, paths), tile(order, COPIES, paths)
        days = tile(days, COPIES, paths)
        when = torch.randint(n_buckets - 1, (paths,), generator=draws).repeat(COPIES)
        disturbance = SPREAD * torch.randn(COPIES * paths, generator=draws)
        policy = _Perturbed(field, when, disturbance, [], [])
        with torch.no_grad():
            done = execute(policy, days, market, order, draws)
        utility = (done.utility_bps(order) / utility_scale(market, order)).reshape(COPIES, paths)
        utilities.append(utility.mean().item())
        centred = utility - utility.mean(0)
        weights = torch.softmax(2 * centred / centred.std(0).clamp_min(1e-9), 0).flatten() * COPIES
        disturbed = when, torch.arange(COPIES * paths)
        observed, action = (torch.stack(x)[disturbed] for x in (policy.observed, policy.actions))
        x0 = torch.randn(COPIES * paths, generator=draws)
        t = torch.rand(COPIES * paths, generator=draws)
        errors = matching_loss(field, observed, action, x0, t)
        optimiser.zero_grad()
        (weights * errors).mean().backward()
        optimiser.step()
        schedule.step()
    return TrainingRun(field, {"utility": torch.tensor(utilities)})


@dataclass(frozen=True)
class Setting:
    """The budget common to all variants."""

    conditions: TrainingRange
    n_buckets: int
    imitations: int
    """Iterations of imitation."""
    refinements: int
    """Iterations of refinement."""


Refinement = Callable[[EndpointField, Setting, int], TrainingRun]
"""(start, setting, seed) -> the refined field."""


def _gradient(start: EndpointField, setting: Setting, seed: int, **options: Any) -> TrainingRun:
    return refine(start, setting.conditions, setting.n_buckets, setting.refinements, seed, **options)


def _no_gradient(start: EndpointField, setting: Setting, seed: int) -> TrainingRun:
    return advantage_weighted(start, setting.conditions, setting.n_buckets, 3 * setting.refinements, seed)


def _noise_free(field: EndpointField, times: Tensor) -> Policy:
    return NoiseFreePolicy(field)


def _one_step(field: EndpointField, times: Tensor) -> Policy:
    return FlowPolicy(field, 1)


NOISE_FREE = "noise-free network, imitation alone"


REFINED: Mapping[str, tuple[str, Refinement]] = {
    "noise-free network, imitation and refinement": (NOISE_FREE, partial(_gradient, acting=_noise_free)),
    "noise-free network, refinement alone": ("scratch", partial(_gradient, acting=_noise_free)),
    "refinement alone": ("scratch", _gradient),
    "refined at t = 0 only": ("imitation", partial(_gradient, acting=_one_step)),
    "refined on realised P&L": (
        "imitation",
        partial(_gradient, earned=Execution.realised_utility_bps),
    ),
    "no simulator gradient, after imitation": ("imitation", _no_gradient),
    "no simulator gradient, from scratch": ("scratch", _no_gradient),
}
"""Variants of refinement by name: their start and their training."""


def demonstration_sets(
    stored: Mapping[str, Tensor], expert: int, every: Sequence[int]
) -> dict[str, Demonstrations]:
    """The demonstrations of FlowOE, and those of the variants of imitation.

    Parameters
    ----------
    stored : mapping of str to Tensor
        Fields of Demonstrations at the risk aversion in use ("at_use/observed", ...) and at others
        ("elsewhere/observed", ...), [experts, N - 1, days, ...].
    expert : int
        Index of ``mpc`` among the experts.
    every : sequence of int
        For each n a set with every n-th day.

    Returns
    -------
    dict of str to Demonstrations
        "all", "imitation without mpc" and "imitation of ... days" of one expert each.
    """
    names = [field.name for field in fields(Demonstrations)]
    parts = [
        Demonstrations(*(stored[f"{part}/{name}"] for name in names)) for part in ("at_use", "elsewhere")
    ]
    sets = {"all": parts, "imitation without mpc": [leave_out(part, expert) for part in parts]}
    for n in every:
        few = [map_tensors(lambda x, n=n: x[:, :, ::n], part) for part in parts]
        sets[f"imitation of {sum(part.actions[:, 0].numel() for part in few):,} days"] = few
    samples = partial(map_tensors, lambda x: x.flatten(0, 2))
    return {name: merge([samples(part) for part in each]) for name, each in sets.items()}


def leave_out(shown: Demonstrations, expert: int) -> Demonstrations:
    """Demonstrations [experts, ...] without one expert; the weights of the others have mean one again."""
    others = [i for i in range(len(shown.actions)) if i != expert]
    rest: Demonstrations = map_tensors(lambda x: x[others], shown)
    return replace(rest, weights=rest.weights / rest.weights.mean(0))


Runs = Mapping[str, Mapping[int, TrainingRun]]
"""Training runs by variant and seed."""


def imitate_each(
    variants: Mapping[str, tuple[Demonstrations, SampleLoss]], iterations: int, seeds: Sequence[int]
) -> Runs:
    """Train a network on the demonstrations and by the loss of every variant, with every seed."""
    tasks = [
        (partial(imitate, shown, iterations, seed, loss_of=loss),)
        for shown, loss in variants.values()
        for seed in seeds
    ]
    made = iter(sweep(operator.call, tasks, "imitation"))
    return {name: {seed: next(made) for seed in seeds} for name in variants}


def train_variants(
    demonstrations: Mapping[str, Demonstrations], imitated: Mapping[int, EndpointField], setting: Setting
) -> dict[str, Tensor]:
    """Train every variant with every seed, packed for :func:`unpack_variants`.

    Parameters
    ----------
    demonstrations : mapping of str to Demonstrations
        Those of FlowOE by the name "all", and others by the name of the variant that imitates them.
    imitated : mapping of int to EndpointField
        The imitation of FlowOE by seed, from which its refinement starts.
    setting : Setting
        Range of conditions and numbers of iterations.

    Returns
    -------
    dict of str to Tensor
        Weights and learning curves.
    """
    seeds = list(imitated)
    shown = {name: (own, matching_loss) for name, own in demonstrations.items() if name != "all"}
    runs = imitate_each(shown | {NOISE_FREE: (demonstrations["all"], regression)}, setting.imitations, seeds)
    starts = {
        "imitation": imitated,
        "scratch": {seed: EndpointField(generator(seed, "initial weights")) for seed in seeds},
        NOISE_FREE: {seed: run.field for seed, run in runs[NOISE_FREE].items()},
    }
    refinements = [
        (partial(train, starts[start][seed], setting, seed),)
        for start, train in REFINED.values()
        for seed in seeds
    ]
    made = iter(sweep(operator.call, refinements, "refinement"))
    return pack_variants({**runs, **{name: {seed: next(made) for seed in seeds} for name in REFINED}})


def pack_variants(runs: Runs) -> dict[str, Tensor]:
    """Flatten training runs, by variant and seed, into one dictionary of tensors for the artifact store."""
    return {f"{name}/{key}": value for name, by_seed in runs.items() for key, value in pack(by_seed).items()}


def unpack_variants(tensors: Mapping[str, Tensor]) -> Runs:
    """Inverse of :func:`pack_variants`."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, *rest = key.rsplit("/", 3)
        parts.setdefault(name, {})["/".join(rest)] = value
    return {name: unpack(part) for name, part in parts.items()}


def contestants(runs: Runs) -> dict[str, Policy]:
    """The policies of all variants, named "variant | sampling | seed".

    A noise-free network has one action in a state. A refined flow is sampled in one and in eight steps, an
    imitation in one.
    """
    policies: dict[str, Policy] = {}
    for name, by_seed in runs.items():
        for seed, run in by_seed.items():
            if name.startswith("noise-free"):
                policies[f"{name} | no noise | {seed}"] = NoiseFreePolicy(run.field)
                continue
            for steps in (1,) if "loss" in run.curves else (1, 8):
                policies[f"{name} | K = {steps} | {seed}"] = FlowPolicy(run.field, steps)
    return policies


def _utilities(
    policies: Mapping[str, Policy], condition: Condition, evaluation: Evaluation
) -> dict[str, Tensor]:
    oracle = solve_oracle(condition.market, condition.order, evaluation.n_buckets)
    runs = evaluate({"twap": twap, "oracle": oracle, **policies}, condition, evaluation, "test")
    return {name: run.utility for name, run in runs.items()}


def measure(
    policies: Mapping[str, Policy], grid: Sequence[Condition], evaluation: Evaluation
) -> pd.DataFrame:
    """Compare every variant with FlowOE in one solver step, on the same test days.

    Parameters
    ----------
    policies : mapping of str to policy
        Policies from :func:`contestants`, of several training seeds; the variant "FlowOE" is among them.
    grid : sequence of Condition
        Conditions, fields of shape [].
    evaluation : Evaluation
        Number and seed of the test days.

    Returns
    -------
    pandas.DataFrame
        One row per variant and sampling. ``capture`` and ``capture_worst`` are the mean and the minimum over
        conditions. ``share`` is the difference to FlowOE in utility as a share of FlowOE's cost, averaged
        over conditions, with its interval over training seeds and days (``share_ci_low``,
        ``share_ci_high``) and its ``verdict``. The columns "better", "equal", "worse" and "open" count the
        verdicts in the single conditions.
    """
    swept = sweep(_utilities, [(policies, c, evaluation) for c in grid], "conditions")
    utility = {name: torch.stack([u[name] for u in swept]).double() for name in swept[0]}
    floor, limit = (utility.pop(name).mean(1) for name in ("twap", "oracle"))
    grouped: dict[tuple[str, ...], list[Tensor]] = {}
    for name, by_condition in utility.items():
        grouped.setdefault(tuple(name.split(" | ")[:2]), []).append(by_condition)
    stacked = {key: torch.stack(by_seed) for key, by_seed in grouped.items()}
    reference = stacked["FlowOE", "K = 1"]
    cost = reference.mean((0, 2)).abs()[:, None]
    rows = []
    for (name, sampled), values in stacked.items():
        captures = (values.mean((0, 2)) - floor) / (limit - floor)
        whole = (values / cost).mean(1), (reference / cost).mean(1)
        pairs = [whole, *zip(values.unbind(1), reference.unbind(1), strict=True)]
        compared = pd.concat([compare_learner(a, {"FlowOE": b}, evaluation.seed) for a, b in pairs])
        verdict, *each = verdicts(compared)
        share, low, high = compared.iloc[0][["utility", "utility_ci_low", "utility_ci_high"]]
        rows.append(
            {"ablation": name, "sampled": sampled, "training_seeds": len(values)}
            | {"capture": captures.mean().item(), "capture_worst": captures.min().item()}
            | {"share": share, "share_ci_low": low, "share_ci_high": high, "verdict": verdict}
            | {word: each.count(word) for word in VERDICTS}
        )
    return pd.DataFrame(rows)
