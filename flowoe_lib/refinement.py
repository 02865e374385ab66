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

from flowoe_lib.execution import Execution, Observation, Policy, execute
from flowoe_lib.experts.schedules import twap
from flowoe_lib.features import features, fraction_of_action
from flowoe_lib.flow import EndpointField, Learned, interpolate
from flowoe_lib.market import Market, Order, PreTrade
from flowoe_lib.perception import regimes_as_depth
from flowoe_lib.randomness import generator
from flowoe_lib.ranges import TrainingRange
from flowoe_lib.simulator import simulate

__all__ = ["RefiningPolicy", "refine", "utility_scale"]


@dataclass(frozen=True)
class RefiningPolicy:
    """Trades the endpoint predicted from a corrupted version of the policy's own action."""

    field: EndpointField
    times: Tensor
    """Corruption t of each decision, [N, paths]; at zero the action is the one-step sample."""

    def __call__(self, seen: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, differentiable in the field's weights, [paths]."""
        encoded = self.field.encode(features(seen))
        t = self.times[seen.k]
        with torch.no_grad():
            own = self.field(noise, torch.zeros_like(t), encoded)
        endpoint = self.field(interpolate(noise, own, t), t, encoded)
        return fraction_of_action(seen, endpoint)


def utility_scale(market: Market, order: Order) -> Tensor:
    """What a unit of loss is worth in each condition, bps: about what a good policy can gain there.

    So small gains count as much as large ones, and every condition is learned at the same pace.
    """
    plan = PreTrade.of(market, order)
    return plan.cost_bps * plan.stakes.clamp_min(1e-6)


def refine(
    start: EndpointField,
    conditions: TrainingRange,
    n_buckets: int,
    iterations: int,
    seed: int,
    paths: int = 384,
    learning_rate: float = 2e-2,
    acting: Callable[[EndpointField, Tensor], Policy] = RefiningPolicy,
    earned: Callable[[Execution, Order], Tensor] = Execution.utility_bps,
    device: str = "cpu",
) -> Learned:
    """A field refined from ``start`` on fresh paths of random conditions.

    ``acting`` makes the policy that is executed from a field and corruption times, ``earned`` is what it
    is to raise, in bps. Curves: "utility", the minibatch mean of what was ``earned`` above TWAP on the same
    days, in units of the loss, and "gradient", the norm of the loss's before clipping.

    Adam under a one-cycle rate, gradients clipped to norm 1, a quarter of the decisions uncorrupted.
    Days are simulated and the field is trained on ``device``; it comes back on the CPU.
    """
    field = copy.deepcopy(start).to(device)
    draws = generator(seed, "refinement", device=device)
    # What is recorded may not change what is learned, so TWAP has noise of its own, which it does not use.
    idle = generator(seed, "noise of TWAP", device=device)
    optimiser = torch.optim.Adam(field.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, learning_rate, total_steps=iterations, pct_start=0.11, final_div_factor=50
    )
    utilities, norms = [], []
    for _ in range(iterations):
        market, order = conditions.draw(paths, draws)
        market_paths = simulate(market, paths, n_buckets, draws)
        times = (torch.rand(n_buckets, paths, generator=draws, device=device) - 0.25).clamp_min(0) / 0.75
        known = regimes_as_depth(market_paths, market, draws)
        done = execute(acting(field, times), market_paths, market, order, draws, known)
        scale = utility_scale(known.market, order)
        utility = (earned(done, order) / scale).mean()
        with torch.no_grad():
            even = execute(twap, market_paths, market, order, idle)
        optimiser.zero_grad()
        (-utility).backward()
        norm = torch.nn.utils.clip_grad_norm_(field.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        utilities.append(utility.item() - (earned(even, order) / scale).mean().item())
        norms.append(norm.item())
    return Learned(field.cpu(), {"utility": torch.tensor(utilities), "gradient": torch.tensor(norms)})
