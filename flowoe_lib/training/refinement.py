"""The refining loss: the negative utility that a policy earns in the simulator replaces the squared error.

Flow matching corrupts an action, x_t = (1 - t) x_0 + t x_1, and trains the network to predict the endpoint
x_1. The refining loss corrupts in the same way, with the policy's own one-step endpoint in the place of x_1,
executes the prediction in the differentiable simulator and descends on the negative utility. Every endpoint
that the solver may evaluate is therefore trained to be a good trade, for any number of solver steps.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from flowoe_lib.execution.execution import Execution, Observation, Policy, execute_schedule
from flowoe_lib.execution.features import features, fraction_of_action
from flowoe_lib.execution.information import Perceive, regimes_by_signals
from flowoe_lib.market.model import Market, Order
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.flow import EndpointField, TrainingRun, interpolate
from flowoe_lib.randomness import generator
from flowoe_lib.training.plateau import Days

UNCORRUPTED = 0.5
"""Share of the decisions of training that are not corrupted."""


LARGE_GAIN = 0.2
"""Gain over TWAP, as a multiple of cost, at which the damping of the scale halves it."""


CHECKS = 10
"""Measurements on the validation days during training, beside the one before it."""


@dataclass(frozen=True)
class RefiningPolicy:
    """A policy that trades the endpoint predicted from a corrupted version of its own action."""

    field: EndpointField
    times: Tensor
    """Corruption time t of each decision, [N, paths]; at t = 0 the action is the one-step sample."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, differentiable in the field's weights, [paths]."""
        encoded = self.field.encode(features(obs, self.field.observe.in_features))
        t, own = self.times[obs.k], noise.clone()
        later = t.nonzero().squeeze(1)
        with torch.no_grad():
            own[later] = self.field(noise[later], torch.zeros_like(t[later]), encoded[later])
        endpoint = self.field(interpolate(noise, own, t), t, encoded)
        return fraction_of_action(obs, endpoint)


def utility_scale(market: Market, order: Order) -> Tensor:
    """Scale of the loss in each condition, bps: the approximate gain of a good policy over TWAP, damped.

    Scaled losses weigh conditions of small gains alike. The damping bounds the scale by ``LARGE_GAIN`` of
    cost, because where gains are large, a small share of them is a large share of cost.
    """
    plan = PreTrade.of(market, order)
    gain = plan.attainable_gain.clamp_min(1e-6)
    return plan.cost_bps * gain / (1 + gain / LARGE_GAIN)


def muon_and_adam(network: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices of all layers but the last, Adam for the other weights.

    A step of Muon has the same length in all singular directions, so directions that matter in few conditions
    are learned as fast as those that matter in all. Source: Jordan et al. (2024), "Muon: an optimizer for
    hidden layers".
    """
    weights = list(network.parameters())
    *inner, last = (weight for weight in weights if weight.dim() == 2)
    rest = [weight for weight in weights if weight.dim() != 2 or weight is last]
    return [torch.optim.Muon(inner, learning_rate, weight_decay=0.0), torch.optim.Adam(rest, learning_rate)]


def ascend(
    network: nn.Module,
    acting: Callable[[Tensor], Policy],
    draw: Callable[[int, torch.Generator], tuple[Market, Order]],
    n_buckets: int,
    iterations: int,
    draws: torch.Generator,
    paths: int,
    learning_rate: float,
    perceive: Perceive = regimes_by_signals,
    earned: Callable[[Execution, Order], Tensor] = Execution.utility_bps,
) -> dict[str, Tensor]:
    """Train a network by the gradient of utility through the simulator, on new days in every iteration.

    The learning rate is one-cycle and gradients are clipped to norm 1. ``network`` is changed in place; it
    must be on the device of ``draws``.

    Parameters
    ----------
    network : nn.Module
        The network to train.
    acting : callable
        Makes the executed policy from corruption times [n_buckets, paths], of which the share
        ``UNCORRUPTED`` is zero and the others are uniform in (0, 1).
    draw : callable
        (paths, generator) -> market and order of each day, fields of shape [] or [paths].
    n_buckets : int
        Number of buckets N of a day.
    iterations : int
        Number of optimiser steps.
    draws : torch.Generator
        Source of all random numbers.
    paths : int
        Simulated days in each iteration.
    learning_rate : float
        Peak learning rate.
    perceive : callable
        The policy's information about the market.
    earned : callable
        The objective from an execution and its order, bps, [paths]; by default utility.

    Returns
    -------
    dict of str to Tensor
        Two learning curves: "utility", the mean objective above TWAP in units of :func:`utility_scale` on
        ``paths // 2`` validation days that are the same in every training, before training and at ``CHECKS``
        equal intervals of it, [CHECKS + 1] (every iteration if there are fewer); and "gradient", the norm of
        the gradient before clipping, [iterations].
    """

    def scaled(days: Days, times: Tensor, noise: torch.Generator, floor: Tensor | float = 0.0) -> Tensor:
        """Mean objective above ``floor`` in units of the scale."""
        done = days.execute(acting(times), noise)
        return ((earned(done, days.order) - floor) / utility_scale(days.known.market, days.order)).mean()

    once, noise = (generator(0, "validation", name, device=str(draws.device)) for name in ("days", "noise"))
    n_days, start = max(paths // 2, 1), noise.get_state()
    market, order = draw(n_days, once)
    market_paths = simulate(market, n_days, n_buckets, once)
    fixed = Days(market_paths, market, order, perceive(market_paths, market, once))
    even = torch.linspace(1, 0, n_buckets + 1, device=draws.device)
    of_twap = earned(execute_schedule(even, market_paths, market, order), order)

    @torch.no_grad()
    def measure() -> float:
        noise.set_state(start)
        return scaled(fixed, torch.zeros_like(fixed.paths.variance), noise, of_twap).item()

    checks = {round(i * iterations / CHECKS) for i in range(1, CHECKS + 1)}
    steppers = muon_and_adam(network, learning_rate)
    schedules = [OneCycleLR(s, learning_rate, iterations, cycle_momentum=False) for s in steppers]
    utilities, norms = [measure()], []
    for i in range(1, iterations + 1):
        market, order = draw(paths, draws)
        market_paths = simulate(market, paths, n_buckets, draws)
        uniform = torch.rand(n_buckets, paths, generator=draws, device=draws.device)
        times = (uniform - UNCORRUPTED).clamp_min(0) / (1 - UNCORRUPTED)
        days = Days(market_paths, market, order, perceive(market_paths, market, draws))
        network.zero_grad()
        (-scaled(days, times, draws)).backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for stepper, schedule in zip(steppers, schedules, strict=True):
            stepper.step()
            schedule.step()
        norms.append(norm.item())
        if i in checks:
            utilities.append(measure())
    return {"utility": torch.tensor(utilities), "gradient": torch.tensor(norms)}


def refine(
    start: EndpointField,
    conditions: TrainingRange,
    n_buckets: int,
    iterations: int,
    seed: int,
    paths: int = 576,
    learning_rate: float = 4e-2,
    acting: Callable[[EndpointField, Tensor], Policy] = RefiningPolicy,
    earned: Callable[[Execution, Order], Tensor] = Execution.utility_bps,
    device: str = "cpu",
) -> TrainingRun:
    """Train a flow to earn utility, on new simulated days of random conditions in every iteration.

    The learning rate is one-cycle and gradients are clipped to norm 1.

    Parameters
    ----------
    start : flowoe_lib.policies.flow.EndpointField
        The field to refine; it is not changed.
    conditions : flowoe_lib.market.ranges.TrainingRange
        Range from which markets and orders are drawn.
    n_buckets : int
        Number of buckets N of a day.
    iterations : int
        Number of optimiser steps.
    seed : int
        Seed of all draws.
    paths : int
        Simulated days in each iteration.
    learning_rate : float
        Peak learning rate.
    acting : callable
        Makes the executed policy from a field and corruption times [N, paths].
    earned : callable
        The objective from an execution and its order, bps, [paths]; by default utility.
    device : str
        Device of simulation and training, such as "cuda"; the result is on the CPU.

    Returns
    -------
    flowoe_lib.policies.flow.TrainingRun
        The refined field and the two learning curves of :func:`ascend`, "utility" and "gradient".

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> trained = fo.load_pretrained()
    >>> more = fo.refine(trained.field, trained.conditions, 13, iterations=2, seed=1, paths=16)
    >>> {name: len(curve) for name, curve in more.curves.items()}
    {'utility': 3, 'gradient': 2}
    """
    field = copy.deepcopy(start).to(device)
    draws = generator(seed, "refinement", device=device)
    policy = partial(acting, field)
    curves = ascend(
        field, policy, conditions.draw, n_buckets, iterations, draws, paths, learning_rate, earned=earned
    )
    return TrainingRun(field.cpu(), curves)
