"""Imitation: conditional flow matching on what an ensemble of experts does, condition by condition."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flowoe_lib.execution.execution import Observation, Policy, execute, fraction_of_score, score_of_fraction
from flowoe_lib.execution.features import action_of_fraction, features
from flowoe_lib.market.batching import batch
from flowoe_lib.market.model import Condition
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.ensemble import Experts
from flowoe_lib.policies.flow import EndpointField, TrainingRun, matching_loss
from flowoe_lib.randomness import generator

__all__ = [
    "Demonstrations",
    "Recorder",
    "SampleLoss",
    "demonstrate",
    "expert_weights",
    "imitate",
    "merge",
    "nearest_expert",
]


@dataclass(frozen=True)
class Demonstrations:
    """States and the actions an expert would take in them."""

    observed: Tensor
    """[samples, features]."""
    actions: Tensor
    """[samples]."""
    weights: Tensor
    """Share of each sample in the loss, mean one, [samples]."""


def merge(parts: Sequence[Demonstrations]) -> Demonstrations:
    """Demonstrations of several occasions as one."""
    return Demonstrations(
        observed=torch.cat([p.observed for p in parts]),
        actions=torch.cat([p.actions for p in parts]),
        weights=torch.cat([p.weights for p in parts]),
    )


SampleLoss = Callable[[EndpointField, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(field, observed, x1, x0, t) -> loss per sample."""


@dataclass
class Recorder:
    """Lets an expert act under noise of ``spread`` in score, and notes what it would have done without."""

    expert: Policy
    spread: float
    observed: list[Tensor] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """The disturbed fraction, [paths]."""
        fraction = self.expert(obs, noise)
        self.observed.append(features(obs))
        self.actions.append(action_of_fraction(obs, fraction))
        n_left = obs.n_buckets - obs.k
        return fraction_of_score(score_of_fraction(fraction, n_left) + self.spread * noise, n_left)

    def demonstrations(self) -> Demonstrations:
        """What was recorded, bucket by bucket, all of one weight."""
        actions = torch.cat(self.actions)
        return Demonstrations(torch.cat(self.observed), actions, torch.ones_like(actions))


def expert_weights(utility: Tensor, sharpness: float) -> Tensor:
    """Softmax weights [experts, ...] by utility, on the scale of the spread between best and worst.

    ``sharpness`` 0 imitates all alike, a large one only the best.
    """
    spread = (utility.amax(0) - utility.amin(0)).clamp_min(1e-9)
    return torch.softmax(sharpness * (utility - utility.amax(0)) / spread, 0)


def demonstrate(
    experts: Experts,
    conditions: Sequence[Condition],
    paths_each: int,
    n_buckets: int,
    seed: int,
    spread: float = 0.5,
    sharpness: float = 10.0,
) -> Demonstrations:
    """Run every expert in every condition under execution noise of ``spread`` in score.

    The noise takes the experts off their own course, so that the states cover what an imitator may
    get into, while the recorded action is the undisturbed one (Laskey et al. 2017, DART). Each
    expert's samples weigh by its utility in the condition, :func:`expert_weights`.
    """
    draws = generator(seed, "demonstrations")
    market, order = batch(conditions, paths_each)
    paths = simulate(market, len(conditions) * paths_each, n_buckets, draws)
    utilities, recorded = [], []
    with torch.no_grad():
        for calibrate in experts.values():
            expert = calibrate(conditions, paths_each, n_buckets)
            calm = execute(expert, paths, market, order, draws)
            utilities.append(calm.utility_bps(order).reshape(len(conditions), paths_each).mean(1))
            recorder = Recorder(expert, spread)
            execute(recorder, paths, market, order, draws)
            recorded.append(recorder.demonstrations())
    weights = expert_weights(torch.stack(utilities), sharpness) * len(experts)
    per_path = weights.repeat_interleave(paths_each, 1)[:, None].expand(-1, n_buckets - 1, -1)
    return replace(merge(recorded), weights=per_path.reshape(-1))


def imitate(
    demonstrations: Demonstrations,
    iterations: int,
    seed: int,
    minibatch: int = 1024,
    learning_rate: float = 3e-3,
    make: Callable[[torch.Generator], EndpointField] = EndpointField,
    loss_of: SampleLoss = matching_loss,
) -> TrainingRun:
    """A field made by ``make``, trained on the weighted loss per sample, with the curve "loss".

    Adam under a one-cycle rate; weights and minibatches come from the streams of ``seed``.
    """
    learner = make(generator(seed, "initial weights"))
    draws = generator(seed, "minibatches")
    optimiser = torch.optim.Adam(learner.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=iterations)
    curve = []
    for _ in range(iterations):
        pick = torch.randint(len(demonstrations.actions), (minibatch,), generator=draws)
        x0 = torch.randn(minibatch, generator=draws)
        t = torch.rand(minibatch, generator=draws)
        errors = loss_of(learner, demonstrations.observed[pick], demonstrations.actions[pick], x0, t)
        loss = (demonstrations.weights[pick] * errors).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        curve.append(loss.item())
    return TrainingRun(learner, {"loss": torch.tensor(curve)})


def nearest_expert(
    policy: Policy,
    experts: Experts,
    conditions: Sequence[Condition],
    paths_each: int,
    n_buckets: int,
    seed: int,
) -> Tensor:
    """Share of a policy's decisions that lie nearest to each expert's, [conditions, experts].

    Decisions are compared as scores, in the states that the policy itself gets into.
    """
    draws = generator(seed, "nearest expert")
    market, order = batch(conditions, paths_each)
    paths = simulate(market, len(conditions) * paths_each, n_buckets, draws)
    ensemble = [calibrate(conditions, paths_each, n_buckets) for calibrate in experts.values()]
    nearest = []

    def watched(obs: Observation, noise: Tensor) -> Tensor:
        n_left = obs.n_buckets - obs.k
        fraction = policy(obs, noise)
        others = torch.stack([score_of_fraction(e(obs, noise), n_left) for e in ensemble])
        nearest.append((others - score_of_fraction(fraction, n_left)).abs().argmin(0))
        return fraction

    with torch.no_grad():
        execute(watched, paths, market, order, draws)
    chosen = torch.stack(nearest).reshape(n_buckets - 1, len(conditions), paths_each)
    one_hot = torch.nn.functional.one_hot(chosen, len(ensemble)).float()
    return one_hot.mean((0, 2))
