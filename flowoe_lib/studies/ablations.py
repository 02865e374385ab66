"""Ablations of FlowOE: other losses, parametrisations and policies, each changed in one respect.

Nothing else in the library uses this module.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from flowoe_lib.evaluation.scorecard import Evaluation, captures
from flowoe_lib.execution.execution import Execution, Observation, Policy, execute
from flowoe_lib.execution.features import features, fraction_of_action
from flowoe_lib.market.batching import tile
from flowoe_lib.market.model import Condition
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.flow import EndpointField, FlowPolicy, TrainingRun, matching_loss
from flowoe_lib.randomness import generator
from flowoe_lib.sweep import sweep
from flowoe_lib.training.imitation import Demonstrations, Recorder, imitate
from flowoe_lib.training.refinement import RefiningPolicy, refine, utility_scale

__all__ = ["Setting", "measure", "regression", "summarise"]


ALL_STEPS = (1, 2, 4, 8)


COPIES, SPREAD, GENTLE_RATE = 6, 0.1, 1e-3
"""Advantage weighting: copies of a decision, standard deviation of their noise, and learning rate."""


ADAM_RATE = 2e-2
"""Learning rate of Adam where it replaces Muon."""


class VelocityField(EndpointField):
    """The same network with the velocity v as its output; the endpoint is x + (1 - t) v."""

    def forward(self, x: Tensor, t: Tensor, encoded: Tensor) -> Tensor:
        """Endpoint [paths] to which the velocity at ``x``, ``t`` points."""
        return x + (1 - t) * super().forward(x, t, encoded)


def velocity_matching(field: EndpointField, observed: Tensor, x1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Squared velocity error per sample: conditional flow matching as in Lipman et al. (2023), eq. (9)."""
    return matching_loss(field, observed, x1, x0, t) / (1 - t).square().clamp_min(1e-4)


def regression(field: EndpointField, observed: Tensor, x1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Squared error of the action itself: behaviour cloning without noise."""
    zero = torch.zeros_like(x1)
    action: Tensor = field(zero, zero, field.encode(observed))
    return (action - x1).square()


def gaussian_likelihood(field: EndpointField, observed: Tensor, x1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Negative log-likelihood of a Gaussian whose mean and log sd the network gives at t = 0 and t = 1."""
    encoded, zero = field.encode(observed), torch.zeros_like(x1)
    mean, log_sd = field(zero, zero, encoded), field(zero, zero + 1, encoded).clamp(-5, 2)
    loss: Tensor = log_sd + ((x1 - mean) / log_sd.exp()).square() / 2
    return loss


@dataclass(frozen=True)
class GaussianPolicy:
    """Draws the action from the Gaussian of :func:`gaussian_likelihood`, or its mean at ``spread`` 0."""

    field: EndpointField
    spread: float = 1.0

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, [paths]."""
        encoded, zero = self.field.encode(features(obs)), torch.zeros_like(noise)
        action = self.field(zero, zero, encoded)
        if self.spread:
            sd = self.field(zero, zero + 1, encoded).clamp(-5, 2).exp()
            action = action + self.spread * sd * noise
        return fraction_of_action(obs, action)


@dataclass
class StalePolicy:
    """A policy that observes variance and depth only every ``every`` buckets."""

    policy: Policy
    every: int
    last: Observation | None = None

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, [paths]."""
        if self.last is None or obs.k % self.every == 0:
            self.last = obs
        held = replace(obs, variance=self.last.variance, log_depth=self.last.log_depth)
        return self.policy(held, noise)


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
    """Data and settings common to all variants."""

    demonstrations: Mapping[str, Demonstrations]
    """Demonstrations of "all" experts, of "four" without the RL one, of "two" and of "one"."""
    conditions: TrainingRange
    n_buckets: int
    imitations: int
    """Iterations of imitation."""
    refinements: int
    """Iterations of refinement."""
    seed: int

    def imitated(self, experts: str = "all", **options: Any) -> EndpointField:
        """Imitation of ``experts``, changed by keyword arguments of
        :func:`flowoe_lib.training.imitation.imitate`."""
        return imitate(self.demonstrations[experts], self.imitations, self.seed, **options).field

    def refined(self, start: EndpointField, **options: Any) -> EndpointField:
        """Refinement of ``start``, changed by keyword arguments of
        :func:`flowoe_lib.training.refinement.refine`."""
        return refine(start, self.conditions, self.n_buckets, self.refinements, self.seed, **options).field

    def fresh(self) -> EndpointField:
        """An untrained field."""
        return EndpointField(generator(self.seed, "initial weights"))


def _one_step(field: EndpointField, times: Tensor) -> Policy:
    return FlowPolicy(field, 1)


def _flow(field: EndpointField, steps: Sequence[int] = (1, 8)) -> dict[str, Policy]:
    return {f"K = {k}": FlowPolicy(field, k) for k in steps}


def _gaussian(s: Setting) -> dict[str, Policy]:
    field = s.imitated(loss_of=gaussian_likelihood)
    return {"drawn": GaussianPolicy(field), "its mean": GaussianPolicy(field, spread=0.0)}


def _regression(s: Setting) -> dict[str, Policy]:
    return {"one pass": GaussianPolicy(s.imitated(loss_of=regression), spread=0.0)}


def _distilled(s: Setting, start: EndpointField) -> dict[str, Policy]:
    teacher = FlowPolicy(s.refined(start, acting=_one_step), 1)
    draws = generator(s.seed, "distillation")
    market, order = s.conditions.draw(2_000, draws)
    days = simulate(market, 2_000, s.n_buckets, draws)
    watched = Recorder(teacher, noise_sd=0.5)
    with torch.no_grad():
        execute(watched, days, market, order, draws)
    return _flow(imitate(watched.demonstrations(), 2 * s.imitations, s.seed).field)


def _chunked(every: int) -> Callable[[Setting, EndpointField], dict[str, Policy]]:
    def train(s: Setting, start: EndpointField) -> dict[str, Policy]:
        def acting(field: EndpointField, times: Tensor) -> Policy:
            return StalePolicy(RefiningPolicy(field, times), every)

        return {"K = 1": StalePolicy(FlowPolicy(s.refined(start, acting=acting), 1), every)}

    return train


def _adam(network: torch.nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(network.parameters(), learning_rate)]


def _width(width: int) -> Callable[[Setting], dict[str, Policy]]:
    return lambda s: _flow(s.refined(s.imitated(make=partial(EndpointField, width=width))))


AFTER_IMITATION: dict[str, Callable[[Setting, EndpointField], dict[str, Policy]]] = {
    "FlowOE: imitation, then refinement": lambda s, start: _flow(s.refined(start), ALL_STEPS),
    "imitation only": lambda s, start: _flow(start, ALL_STEPS),
    "one-step pathwise": lambda s, start: _flow(s.refined(start, acting=_one_step), ALL_STEPS),
    "one-step pathwise, then distilled": _distilled,
    "advantage-weighted, no simulator gradient": lambda s, start: _flow(
        advantage_weighted(start, s.conditions, s.n_buckets, 3 * s.refinements, s.seed).field
    ),
    "raw P&L instead of the control variate": lambda s, start: _flow(
        s.refined(start, earned=Execution.realised_utility_bps)
    ),
    "refined by Adam instead of Muon": lambda s, start: _flow(
        s.refined(start, optimisers=_adam, learning_rate=ADAM_RATE)
    ),
    "looks every 4 buckets": _chunked(4),
    "looks every 8 buckets": _chunked(8),
}
"""Variants that start from the same imitation of all experts; each gives policies by their sampling."""


BY_THEMSELVES: dict[str, Callable[[Setting], dict[str, Policy]]] = {
    "imitation of four experts, without RL": lambda s: _flow(s.imitated("four")),
    "imitation of two experts": lambda s: _flow(s.imitated("two")),
    "imitation of one expert": lambda s: _flow(s.imitated("one")),
    "plain regression (behaviour cloning)": _regression,
    "Gaussian policy": _gaussian,
    "velocity parametrisation, imitation": lambda s: _flow(
        s.imitated(make=VelocityField, loss_of=velocity_matching)
    ),
    "velocity parametrisation, refined": lambda s: _flow(
        s.refined(s.imitated(make=VelocityField, loss_of=velocity_matching))
    ),
    "refinement only, from scratch": lambda s: _flow(s.refined(s.fresh())),
    "width 16": _width(16),
    "width 96": _width(96),
}
"""Variants that are trained from the beginning."""


VARIANTS = (*AFTER_IMITATION, *BY_THEMSELVES)
"""Every variant by what is different about it."""


def train_variant(
    name: str, setting: Setting, imitated: EndpointField, imitation_s: float
) -> tuple[dict[str, Policy], float]:
    """The policies of a variant and the processor seconds it took to train them.

    ``imitated`` is the imitation of all experts, whose ``imitation_s`` count where it is the start.
    """
    start = time.process_time()
    if name in AFTER_IMITATION:
        policies, before = AFTER_IMITATION[name](setting, imitated), imitation_s
    else:
        policies, before = BY_THEMSELVES[name](setting), 0.0
    return policies, before + time.process_time() - start


def measure(setting: Setting, grid: Sequence[Condition], evaluation: Evaluation) -> pd.DataFrame:
    """Train every variant and measure it: rows of :func:`flowoe_lib.evaluation.scorecard.captures`.

    The first policy, with which all are paired, is the main line in one step. Columns variant, sampled
    and seconds (of a processor, for training) are added.
    """
    start = time.process_time()
    imitated = setting.imitated()
    shared = imitated, time.process_time() - start
    # The widest network takes longest, so it starts first.
    variants = [(name, setting, *shared) for name in reversed(VARIANTS)]
    runs = sweep(train_variant, variants, "variants")[::-1]
    policies = {
        f"{name} | {how}": policy
        for name, (made, _) in zip(VARIANTS, runs, strict=True)
        for how, policy in made.items()
    }
    tasks = [(policies, c, evaluation, "ablations") for c in grid]
    table = pd.concat(sweep(captures, tasks, "conditions"), ignore_index=True)
    table[["variant", "sampled"]] = table["policy"].str.split(" | ", regex=False, expand=True)
    seconds = {name: spent for name, (_, spent) in zip(VARIANTS, runs, strict=True)}
    return table.assign(seconds=table["variant"].map(seconds))


def summarise(measured: pd.DataFrame) -> pd.DataFrame:
    """Summary over conditions by variant and sampling: capture, paired difference to FlowOE, seconds.

    Conditions are independent, so the interval of the mean difference is that of their average.
    """
    square = (measured["high"] - measured["difference"]).pow(2)
    grouped = measured.assign(square=square).groupby(["variant", "sampled"], sort=False)
    difference = grouped["difference"].mean()
    half = grouped["square"].sum().pow(0.5) / grouped.size()
    return pd.DataFrame(
        {
            "capture, mean": grouped["capture"].mean(),
            "capture, worst": grouped["capture"].min(),
            "against FlowOE": difference,
            "ci low": difference - half,
            "ci high": difference + half,
            "training s": grouped["seconds"].first(),
        }
    )
