"""Refinement: the utility takes the place of the squared endpoint error, and the policy outgrows its experts.

Flow matching corrupts an action, x_t = (1 - t) x_0 + t x_1, and asks the network for the endpoint.
The refining loss keeps the corruption, with the policy's own one-step endpoint in the place of x_1,
executes the answer in the differentiable simulator and descends on the utility that it earns. So every
endpoint the sampler may ask for is trained to be a good trade, whatever the number of solver steps.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowoe_lib.execution.execution import Execution, Observation, Policy, execute, execute_schedule
from flowoe_lib.execution.features import features, fraction_of_action
from flowoe_lib.execution.information import regimes_by_signals
from flowoe_lib.market.model import Market, Order
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.flow import EndpointField, TrainingRun, interpolate
from flowoe_lib.randomness import generator

__all__ = ["Optimisers", "RefiningPolicy", "muon_and_adam", "refine", "utility_scale"]


Optimisers = Callable[[EndpointField, float], list[torch.optim.Optimizer]]
"""What moves the weights of a field, at a learning rate."""


@dataclass(frozen=True)
class RefiningPolicy:
    """Trades the endpoint predicted from a corrupted version of the policy's own action."""

    field: EndpointField
    times: Tensor
    """Corruption t of each decision, [N, paths]; at zero the action is the one-step sample."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, differentiable in the field's weights, [paths]."""
        encoded = self.field.encode(features(obs))
        t = self.times[obs.k]
        with torch.no_grad():
            own = self.field(noise, torch.zeros_like(t), encoded)
        endpoint = self.field(interpolate(noise, own, t), t, encoded)
        return fraction_of_action(obs, endpoint)


def utility_scale(market: Market, order: Order) -> Tensor:
    """What a unit of loss is worth in each condition, bps: about what a good policy can gain there.

    So small gains count as much as large ones, and every condition is learned at the same pace.
    """
    plan = PreTrade.of(market, order)
    return plan.cost_bps * plan.attainable_gain.clamp_min(1e-6)


def muon_and_adam(field: EndpointField, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for every matrix but that of the last layer, Adam for the rest.

    A step of Muon is as long in every direction, so what few conditions ask of the network is learned
    as fast as what all do. Source: Jordan et al. (2024), "Muon: an optimizer for hidden layers".
    """
    inner = [layer.weight for layer in (field.observe, field.corrupt, *field.hidden)]
    rest = [*(layer.bias for layer in (field.observe, *field.hidden)), *field.out.parameters()]
    return [torch.optim.Muon(inner, learning_rate, weight_decay=0.0), torch.optim.Adam(rest, learning_rate)]


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
    optimisers: Optimisers = muon_and_adam,
    device: str = "cpu",
) -> TrainingRun:
    """A field refined from ``start`` on fresh paths of random conditions.

    ``acting`` makes the policy that is executed from a field and corruption times, ``earned`` is what it
    is to raise, in bps. Curves: "utility", the minibatch mean of what was ``earned`` above TWAP on the same
    days, in units of the loss, and "gradient", the norm of the loss's before clipping.

    A one-cycle learning rate, gradients clipped to norm 1, a quarter of the decisions uncorrupted.
    Days are simulated and the field is trained on ``device``; it comes back on the CPU.
    """
    field = copy.deepcopy(start).to(device)
    draws = generator(seed, "refinement", device=device)
    even = torch.linspace(1, 0, n_buckets + 1, device=device)
    movers = optimisers(field, learning_rate)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            mover, learning_rate, total_steps=iterations, cycle_momentum=False
        )
        for mover in movers
    ]
    utilities, norms = [], []
    for _ in range(iterations):
        market, order = conditions.draw(paths, draws)
        market_paths = simulate(market, paths, n_buckets, draws)
        times = (torch.rand(n_buckets, paths, generator=draws, device=device) - 0.25).clamp_min(0) / 0.75
        known = regimes_by_signals(market_paths, market, draws)
        done = execute(acting(field, times), market_paths, market, order, draws, known)
        scale = utility_scale(known.market, order)
        utility = (earned(done, order) / scale).mean()
        floor = earned(execute_schedule(even, market_paths, market, order), order) / scale
        field.zero_grad()
        (-utility).backward()
        norm = torch.nn.utils.clip_grad_norm_(field.parameters(), 1.0)
        for mover, schedule in zip(movers, schedules, strict=True):
            mover.step()
            schedule.step()
        utilities.append(utility.item() - floor.mean().item())
        norms.append(norm.item())
    return TrainingRun(field.cpu(), {"utility": torch.tensor(utilities), "gradient": torch.tensor(norms)})
