"""Ablations of FlowOE: what imitation, the flow and the simulator's gradient contribute.

A variant is trained on the same demonstrations, with the same seeds and with as many iterations as FlowOE.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from flowoe_lib.evaluation.scorecard import Evaluation, evaluate
from flowoe_lib.evaluation.verdicts import VERDICTS, compare_learner
from flowoe_lib.execution.execution import Observation, Policies, Policy, execute
from flowoe_lib.execution.features import features, fraction_of_action
from flowoe_lib.market.batching import map_tensors, tile
from flowoe_lib.market.model import Condition
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.flow import EndpointField, FlowPolicy, TrainingRun, matching_loss
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.schedules import twap
from flowoe_lib.randomness import generator
from flowoe_lib.studies.demonstrations import SCHEDULES, Ensemble, together
from flowoe_lib.studies.side_by_side import trained
from flowoe_lib.sweep import sweep
from flowoe_lib.training.imitation import Demonstrations, Recorder, imitate
from flowoe_lib.training.refinement import refine, utility_scale

PATHS, COPIES, SPREAD, GENTLE_RATE, STEPS = 96, 6, 0.1, 1e-3, 3
"""Advantage weighting: paths of a step, copies of a decision, standard deviation of their noise, learning
rate, and optimiser steps for each iteration of refinement."""


def without_noise(field: EndpointField, observed: Tensor) -> Tensor:
    """Action of a network at noise and time zero, [samples]; ``observed`` are features, [samples, ...]."""
    zero = torch.zeros_like(observed[:, 0])
    action: Tensor = field(zero, zero, field.encode(observed))
    return action


def regression(field: EndpointField, observed: Tensor, x1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Squared error of the action itself: behaviour cloning without noise."""
    return (without_noise(field, observed) - x1).square()


@dataclass(frozen=True)
class NoiseFreePolicy:
    """The network of FlowOE as a deterministic function of the observation: noise and time are zero."""

    field: EndpointField

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, [paths]."""
        return fraction_of_action(obs, without_noise(self.field, features(obs)))


def _disturbed(field: EndpointField, when: Tensor, disturbance: Tensor) -> Policy:
    """Takes the one-step action of a field, with a disturbance in one bucket per path."""

    def trade(obs: Observation, noise: Tensor) -> Tensor:
        action = without_noise(field, features(obs))
        return fraction_of_action(obs, action + disturbance * (when == obs.k))

    return trade


def advantage_weighted(
    start: EndpointField, conditions: TrainingRange, n_buckets: int, iterations: int, seed: int
) -> TrainingRun:
    """Flow matching on the policy's own better actions, without a gradient through the simulator.

    One decision of each path is disturbed in ``COPIES`` ways; each copy counts by the softmax of its
    utility among the copies of the same path, in standard deviations. An iteration has ``STEPS`` steps.
    Source: Peng et al. (2019), advantage-weighted regression.
    """
    field, steps = copy.deepcopy(start), STEPS * iterations
    draws = generator(seed, "advantage weighting")
    optimiser = torch.optim.Adam(field.parameters(), GENTLE_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, GENTLE_RATE, total_steps=steps)
    for _ in range(steps):
        market, order = conditions.draw(PATHS, draws)
        days = simulate(market, PATHS, n_buckets, draws)
        market, order = tile(market, COPIES, PATHS), tile(order, COPIES, PATHS)
        days = tile(days, COPIES, PATHS)
        when = torch.randint(n_buckets - 1, (PATHS,), generator=draws).repeat(COPIES)
        disturbance = SPREAD * torch.randn(COPIES * PATHS, generator=draws)
        recorder = Recorder(_disturbed(field, when, disturbance), noise_sd=0.0)
        with torch.no_grad():
            done = execute(recorder, days, market, order, draws)
        utility = (done.utility_bps(order) / utility_scale(market, order)).reshape(COPIES, PATHS)
        centred = utility - utility.mean(0)
        weights = torch.softmax(2 * centred / centred.std(0).clamp_min(1e-9), 0).flatten() * COPIES
        disturbed = when, torch.arange(COPIES * PATHS)
        observed, action = (torch.stack(x)[disturbed] for x in (recorder.observed, recorder.actions))
        x0 = torch.randn(COPIES * PATHS, generator=draws)
        t = torch.rand(COPIES * PATHS, generator=draws)
        optimiser.zero_grad()
        (weights * matching_loss(field, observed, action, x0, t)).mean().backward()
        optimiser.step()
        schedule.step()
    return TrainingRun(field, {})


def demonstration_sets(
    parts: Sequence[Demonstrations], expert: int, every: Sequence[int]
) -> dict[str, Demonstrations]:
    """The demonstrations of FlowOE, and those of the variants of imitation.

    Parameters
    ----------
    parts : sequence of flowoe_lib.training.imitation.Demonstrations
        Demonstrations at the risk aversion in use and at others, [experts, N - 1, days, ...].
    expert : int
        Index of ``mpc`` among the experts.
    every : sequence of int
        For each n a set with every n-th day.

    Returns
    -------
    dict of str to Demonstrations
        Demonstrations by variant: all of them for the noise-free network, "imitation without mpc", and
        "imitation of ... days" of one expert each.
    """
    sets: dict[str, Sequence[Demonstrations]] = {"noise-free network": parts}
    sets["noise-free network, imitation alone"] = parts
    sets["imitation without mpc"] = [leave_out(part, expert) for part in parts]
    for n in every:
        few = [map_tensors(lambda x, n=n: x[:, :, ::n], part) for part in parts]
        sets[f"imitation of {sum(part.actions[:, 0].numel() for part in few):,} days"] = few
    return {name: together(each) for name, each in sets.items()}


def leave_out(shown: Demonstrations, expert: int) -> Demonstrations:
    """Demonstrations [experts, ...] without one expert; the weights of the others have mean one again."""
    others = [i for i in range(len(shown.actions)) if i != expert]
    rest: Demonstrations = map_tensors(lambda x: x[others], shown)
    return replace(rest, weights=rest.weights / rest.weights.mean(0))


Sampling = Mapping[str, Callable[[EndpointField], Policy]]
"""Ways to act by a network: their names and the policies that they make."""


NO_NOISE: Sampling = {"no noise": NoiseFreePolicy}


SOLVERS: Sampling = {f"K = {steps}": partial(FlowPolicy, steps=steps) for steps in (1, 8)}


def _noise_free(field: EndpointField, times: Tensor) -> Policy:
    return NoiseFreePolicy(field)


REFINED: Mapping[str, Callable[..., TrainingRun]] = {
    "noise-free network": partial(refine, acting=_noise_free),
    "noise-free network, no imitation": partial(refine, acting=_noise_free),
    "no imitation": refine,
    "no simulator gradient": advantage_weighted,
    "no simulator gradient, no imitation": advantage_weighted,
}
"""Variants of refinement: (start, conditions, buckets, iterations, seed) -> the refined field."""


SAMPLING: Mapping[str, Sampling] = {
    "FlowOE": SOLVERS,
    "noise-free network, imitation alone": NO_NOISE,
    **{name: NO_NOISE if name.startswith("noise-free") else SOLVERS for name in REFINED},
}
"""How variants act; others in one solver step."""


def train_variant(
    name: str,
    shown: Demonstrations | None,
    imitations: int,
    start: EndpointField,
    conditions: TrainingRange,
    n_buckets: int,
    refinements: int,
    seed: int,
) -> TrainingRun:
    """Imitate ``shown``, if there are demonstrations, and refine if the variant is in ``REFINED``."""
    if shown is not None:
        loss = regression if name.startswith("noise-free") else matching_loss
        run = imitate(shown, imitations, seed, loss)
        start = run.field
    return REFINED[name](start, conditions, n_buckets, refinements, seed) if name in REFINED else run


def variant_tasks(
    sets: Mapping[str, Demonstrations],
    imitated: Mapping[int, TrainingRun],
    refined: Mapping[int, TrainingRun],
    conditions: TrainingRange,
    n_buckets: int,
) -> dict[str, tuple[Any, ...]]:
    """Arguments of :func:`train_variant` by "variant | seed", with the iterations of FlowOE.

    ``sets`` are demonstrations by variant, from :func:`demonstration_sets`; ``imitated`` and ``refined`` are
    the training runs of FlowOE by seed. A variant without demonstrations starts from the imitation unless it
    has "no imitation".
    """
    tasks: dict[str, tuple[Any, ...]] = {}
    for name in {**sets, **REFINED}:
        for seed, run in imitated.items():
            fresh = EndpointField(generator(seed, "initial weights"))
            start = fresh if name.endswith("no imitation") else run.field
            lengths = len(run.curves["loss"]), len(refined[seed].curves["gradient"])
            tasks[f"{name} | {seed}"] = (
                name, sets.get(name), lengths[0], start, conditions, n_buckets, lengths[1], seed,
            )  # fmt: skip
    return tasks


def train_variants(
    ensemble: Ensemble,
    every: Sequence[int],
    imitated: Mapping[int, TrainingRun],
    refined: Mapping[int, TrainingRun],
    conditions: TrainingRange,
    n_buckets: int,
) -> dict[str, Tensor]:
    """Train all variants, in the order of :func:`variant_tasks`; :func:`flowoe_lib.policies.flow.pack`."""
    parts = [ensemble.at_use(), ensemble.elsewhere()]
    sets = demonstration_sets(parts, list(SCHEDULES).index("mpc"), every)
    tasks = variant_tasks(sets, imitated, refined, conditions, n_buckets)
    return trained(train_variant, dict(enumerate(tasks.values())))


def contestants(runs: Mapping[str, TrainingRun], sampling: Mapping[str, Sampling]) -> dict[str, Policy]:
    """Policies "variant | sampling | seed" of runs "variant | seed"; by default one solver step."""
    one_step = {"K = 1": SOLVERS["K = 1"]}
    return {
        f"{name} | {how} | {seed}": make(run.field)
        for (name, seed), run in ((key.split(" | "), run) for key, run in runs.items())
        for how, make in sampling.get(name, one_step).items()
    }


def by_seed(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stack the values of all seeds, [seeds, ...], by "variant | sampling"."""
    grouped: dict[str, list[Tensor]] = {}
    for name, value in values.items():
        grouped.setdefault(name.rsplit(" | ", 1)[0], []).append(value)
    return {name: torch.stack(each) for name, each in grouped.items()}


def _utilities(policies: Policies, condition: Condition, evaluation: Evaluation) -> dict[str, Tensor]:
    oracle = solve_oracle(condition.market, condition.order, evaluation.n_buckets)
    runs = evaluate({"twap": twap, "oracle": oracle, **policies}, condition, evaluation, "test")
    # Linear permanent impact costs every policy half of its price move.
    sunk = condition.market.permanent_cost_bps(condition.order.size) / 2
    return {name: run.utility + sunk for name, run in runs.items()}


def measure(policies: Policies, grid: Sequence[Condition], evaluation: Evaluation) -> pd.DataFrame:
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
    stacked = by_seed(utility)
    reference = stacked["FlowOE | K = 1"]
    cost = reference.mean((0, 2)).abs()[:, None]
    rows = []
    for key, values in stacked.items():
        name, sampled = key.split(" | ")
        captures = (values.mean((0, 2)) - floor) / (limit - floor)
        whole = (values / cost).mean(1), (reference / cost).mean(1)
        pairs = [whole, *zip(values.unbind(1), reference.unbind(1), strict=True)]
        compared = pd.concat([compare_learner(a, {"FlowOE": b}, evaluation.seed) for a, b in pairs])
        verdict, *each = compared["verdict"]
        share, low, high = compared.iloc[0][["utility", "utility_ci_low", "utility_ci_high"]]
        rows.append(
            {"ablation": name, "sampled": sampled, "training_seeds": len(values)}
            | {"capture": captures.mean().item(), "capture_worst": captures.min().item()}
            | {"share": share, "share_ci_low": low, "share_ci_high": high, "verdict": verdict}
            | {word: each.count(word) for word in VERDICTS}
        )
    return pd.DataFrame(rows)
