"""A fee for each child order, where experts trade in clips and a state has several good actions.

An expert rounds the inventory s_k of a schedule to whole clips c with a random phase of the day,
q_k = c floor(s_k / c + phase). With a uniform phase E[q_k] = s_k. The phase is not observed, so at the same
state some demonstrations trade a clip and the others nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from flowoe_lib.evaluation.verdicts import compare_learner, hierarchical_interval
from flowoe_lib.execution.execution import Observation, Policies, Policy, execute
from flowoe_lib.execution.features import features, fraction_of_action
from flowoe_lib.market.model import Condition
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.policies.flow import EndpointField, matching_loss
from flowoe_lib.policies.schedules import static_optimal
from flowoe_lib.randomness import generator
from flowoe_lib.studies.ablations import NO_NOISE, SOLVERS, Sampling, by_seed, regression
from flowoe_lib.studies.side_by_side import trained
from flowoe_lib.sweep import sweep
from flowoe_lib.training.imitation import Recorder, SampleLoss, imitate

LOT = 1e-3
"""Smallest trade that pays the fee, as a fraction of the order: smaller ones are errors of a zero trade."""


@dataclass(frozen=True)
class ClipExpert:
    """Trades a schedule in clips of equal size, with the phase of each path."""

    inventory: Tensor
    """Schedule s_0 ... s_N, [N + 1]."""
    clip: float
    """Size c of a clip, as a fraction of the order."""
    phase: Tensor
    """Within [0, 1), [paths]."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, [paths]; small deviations wait for the next clip."""
        target = self.clip * torch.floor(self.inventory[obs.k + 1] / self.clip + self.phase)
        traded = obs.inventory - target
        return torch.where(traded > self.clip / 2, traded / obs.inventory.clamp_min(1e-9), 0).clamp(0, 1)


def chance_of_waiting(inventory: Tensor, clip: float, k: int, held: Tensor) -> Tensor:
    """Probability that an expert that holds ``held`` = c m at the start of bucket ``k`` trades nothing in it.

    floor(x + phase) = m means m - x <= phase < m + 1 - x, for x = s_k / c now and x = s_{k+1} / c next.
    """
    level = (held / clip).round()
    now, after = inventory[k] / clip, inventory[k + 1] / clip
    low, high = (level - now).clamp_min(0), (level + 1 - now).clamp_max(1)
    return ((high - (level - after).clamp(low, high)) / (high - low)).clamp(0, 1)


def gaussian(field: EndpointField, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log sd of the Gaussian that the network gives at t = 0 and t = 1, each [samples]."""
    encoded, zero = field.encode(observed), torch.zeros_like(observed[:, 0])
    return field(zero, zero, encoded), field(zero, zero + 1, encoded).clamp(-5, 2)


def gaussian_likelihood(field: EndpointField, observed: Tensor, x1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Negative log-likelihood of :func:`gaussian`."""
    mean, log_sd = gaussian(field, observed)
    return log_sd + ((x1 - mean) / log_sd.exp()).square() / 2


@dataclass(frozen=True)
class GaussianPolicy:
    """Draws the action from :func:`gaussian`."""

    field: EndpointField

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, [paths]."""
        mean, log_sd = gaussian(self.field, features(obs))
        return fraction_of_action(obs, mean + log_sd.exp() * noise)


@dataclass(frozen=True)
class ClipOrder:
    """An order with a fee for each child order, and the experts that trade it in clips."""

    condition: Condition
    n_buckets: int
    clips: int
    """Number of clips."""

    @property
    def fee_bps(self) -> float:
        """The fee at which ``clips`` is the cheapest number of equal clips.

        With n of N buckets used, impact costs C (N / n)^beta and fees n f; the sum is least at
        f = beta C (N / n)^beta / n.
        """
        beta = self.condition.market.impact.beta
        cost = PreTrade.of(self.condition.market, self.condition.order).cost_bps
        return (beta * cost * (self.n_buckets / self.clips) ** beta / self.clips).item()

    def expert(self, n_paths: int, draws: torch.Generator) -> ClipExpert:
        """The experts of ``n_paths`` days, each with its own phase."""
        schedule = static_optimal(self.condition.market, self.condition.order, self.n_buckets)
        phase = torch.rand(n_paths, generator=draws)
        return ClipExpert(schedule.inventory.to(phase.dtype), 1 / self.clips, phase)


HEADS: Mapping[str, tuple[SampleLoss, Sampling]] = {
    "regression": (regression, NO_NOISE),
    "Gaussian": (gaussian_likelihood, {"drawn": GaussianPolicy}),
    "flow": (matching_loss, SOLVERS),
}
"""Losses, and how the network acts that was trained on each."""


def train_heads(
    order: ClipOrder, n_days: int, iterations: int, seeds: Sequence[int], seed: int
) -> dict[str, Tensor]:
    """Imitate the same demonstrations of ``n_days`` days with every loss, from each of ``seeds``.

    ``seed`` is that of the demonstrations. The result is :func:`flowoe_lib.policies.flow.pack`, by loss and
    then by seed.
    """
    draws, c = generator(seed, "clips"), order.condition
    recorder = Recorder(order.expert(n_days, draws), noise_sd=0.5)
    execute(recorder, simulate(c.market, n_days, order.n_buckets, draws), c.market, c.order, draws)
    shown = recorder.demonstrations()
    tasks = [(shown, iterations, s, loss) for loss, _ in HEADS.values() for s in seeds]
    return trained(imitate, dict(enumerate(tasks)))


QUANTILES = (torch.arange(16) + 0.5) / 16
"""Levels at which the laws of two trades are compared."""


def _distance(policy: Policy, order: ClipOrder, paths: MarketPaths, draws: torch.Generator) -> Tensor:
    """Wasserstein distance between the trades of a policy and of the experts, in clips, [paths].

    It is the mean absolute difference of their quantiles in a state, averaged over the states of an expert.
    """
    expert, gaps = order.expert(paths.n_paths, draws), []

    def compared(obs: Observation, noise: Tensor) -> Tensor:
        waiting = chance_of_waiting(expert.inventory, expert.clip, obs.k, obs.inventory)
        drawn = torch.stack([policy(obs, z.expand_as(noise)) for z in torch.special.ndtri(QUANTILES)])
        clips = (drawn * obs.inventory / expert.clip).sort(0).values
        gaps.append((clips - (QUANTILES[:, None] > waiting).float()).abs().mean(0))
        return expert(obs, noise)

    execute(compared, paths, order.condition.market, order.condition.order, draws)
    return torch.stack(gaps).mean(0)


def _trade(policy: Policy, order: ClipOrder, n_days: int, seed: int) -> dict[str, Tensor]:
    c = order.condition
    paths = simulate(c.market, n_days, order.n_buckets, generator(seed, "test", "clips"))
    with torch.no_grad():
        done = execute(policy, paths, c.market, c.order, generator(seed, "test", "policy noise"))
        gap = _distance(policy, order, paths, generator(seed, "test", "experts"))
    sent = (done.inventory[:-1] - done.inventory[1:] > LOT).float()
    fee = order.fee_bps * sent.sum(0)
    return {
        "utility_bps": done.utility_bps(c.order) - fee,
        "fee_bps": fee,
        "zero_share": 1 - sent.mean(0),
        "distance": gap * (not isinstance(policy, ClipExpert)),
    }


def measure_clips(policies: Policies, order: ClipOrder, n_days: int, seed: int) -> pd.DataFrame:
    """Compare policies and the experts under the fee, on the same test days.

    Parameters
    ----------
    policies : mapping of str to policy
        Policies named "loss | sampling | seed", some of them "flow | K = 8".
    order : ClipOrder
        The order and its fee.
    n_days : int
        Number of test days.
    seed : int
        Seed of the test days.

    Returns
    -------
    pandas.DataFrame
        One row per policy, the experts' first: utility less fees and the fees, bps, the share of buckets
        without a child order, and the distance in law to the experts, in clips, each with its interval over
        training seeds and days (``..._ci_low``, ``..._ci_high``); and the ``verdict`` on its utility against
        the flow's with K = 8. An expert's distance is zero by definition.
    """
    experts: dict[str, Policy] = {"experts | clips | 0": order.expert(n_days, generator(seed, "phases"))}
    policies = experts | dict(policies)
    swept = sweep(_trade, [(policy, order, n_days, seed) for policy in policies.values()], "policies")
    measured = {
        quantity: by_seed(dict(zip(policies, (run[quantity] for run in swept), strict=True)))
        for quantity in swept[0]
    }
    flow, rows = measured["utility_bps"]["flow | K = 8"], []
    for name, utility in measured["utility_bps"].items():
        row: dict[str, object] = {"policy": name.replace(" | ", ", "), "training_seeds": len(utility)}
        for quantity, values in measured.items():
            ends = map(float, hierarchical_interval(values[name], torch.zeros_like(utility[:1]), seed))
            row |= dict(zip((quantity, f"{quantity}_ci_low", f"{quantity}_ci_high"), ends, strict=True))
        rows.append(row | {"verdict": compare_learner(utility, {"flow": flow}, seed)["verdict"].item()})
    return pd.DataFrame(rows)
