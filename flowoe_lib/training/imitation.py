"""Imitation: conditional flow matching on the actions of an ensemble of experts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flowoe_lib.execution.execution import Observation, Policy, execute, fraction_of_score, score_of_fraction
from flowoe_lib.execution.features import action_of_fraction, feature_count, features
from flowoe_lib.market.batching import batch, map_tensors
from flowoe_lib.market.model import Condition
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.ensemble import Experts
from flowoe_lib.policies.flow import EndpointField, TrainingRun, matching_loss
from flowoe_lib.randomness import generator


@dataclass(frozen=True)
class Demonstrations:
    """States, and the actions that an expert would take in them."""

    observed: Tensor
    """[samples, features]."""
    actions: Tensor
    """[samples]."""
    weights: Tensor
    """Weight of each sample in the loss, mean one, [samples]."""


def merge(parts: Sequence[Demonstrations]) -> Demonstrations:
    """Concatenate several sets of demonstrations."""
    merged: Demonstrations = map_tensors(lambda *tensors: torch.cat(tensors), *parts)
    return merged


SampleLoss = Callable[[EndpointField, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(field, observed, x1, x0, t) -> loss per sample."""


@dataclass
class Recorder:
    """A policy that trades an expert's action plus noise, and records the action without noise."""

    expert: Policy
    noise_sd: float
    """Standard deviation of the noise, in units of the score."""
    observed: list[Tensor] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, noise included, [paths]."""
        fraction = self.expert(obs, noise)
        self.observed.append(features(obs, feature_count(obs.market)))
        self.actions.append(action_of_fraction(obs, fraction))
        n_left = obs.n_buckets - obs.k
        return fraction_of_score(score_of_fraction(fraction, n_left) + self.noise_sd * noise, n_left)

    def demonstrations(self) -> Demonstrations:
        """The recorded states and actions, bucket by bucket, with equal weights."""
        actions = torch.cat(self.actions)
        return Demonstrations(torch.cat(self.observed), actions, torch.ones_like(actions))


def expert_weights(utility: Tensor, sharpness: float) -> Tensor:
    """Softmax weights of experts by utility, [experts, ...], scaled by the range from worst to best.

    With ``sharpness`` 0 all experts weigh the same; with a large one only the best counts.
    """
    scale = (utility.amax(0) - utility.amin(0)).clamp_min(1e-9)
    return torch.softmax(sharpness * (utility - utility.amax(0)) / scale, 0)


def demonstrate(
    experts: Experts,
    conditions: Sequence[Condition],
    paths_each: int,
    n_buckets: int,
    seed: int,
    noise_sd: float = 0.5,
    sharpness: float = 10.0,
) -> Demonstrations:
    """Record the actions of every expert in every condition.

    Experts trade with noise of standard deviation ``noise_sd`` in score, so that the recorded states cover
    those that an imitator may reach; the recorded actions are without noise (Laskey et al. 2017, DART).
    Samples are weighted by the utility of their expert in the condition, :func:`expert_weights`.
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
            recorder = Recorder(expert, noise_sd)
            execute(recorder, paths, market, order, draws)
            recorded.append(recorder.demonstrations())
    weights = expert_weights(torch.stack(utilities), sharpness) * len(experts)
    per_path = weights.repeat_interleave(paths_each, 1)[:, None].expand(-1, n_buckets - 1, -1)
    return replace(merge(recorded), weights=per_path.reshape(-1))


def imitate(
    demonstrations: Demonstrations,
    iterations: int,
    seed: int,
    loss_of: SampleLoss = matching_loss,
    minibatch: int = 1024,
    learning_rate: float = 3e-3,
) -> TrainingRun:
    """Train a flow on demonstrations by conditional flow matching.

    The optimiser is Adam with a one-cycle learning rate.

    Parameters
    ----------
    demonstrations : flowoe_lib.training.imitation.Demonstrations
        Features [samples, features], actions [samples] and weights [samples].
    iterations : int
        Number of optimiser steps.
    seed : int
        Seed of the initial weights and of the minibatches.
    loss_of : callable
        Loss per sample from (field, features, x1, x0, t), [samples].
    minibatch : int
        Samples in each step.
    learning_rate : float
        Peak learning rate.

    Returns
    -------
    flowoe_lib.policies.flow.TrainingRun
        The trained field, and the learning curve "loss".

    References
    ----------
    Lipman, Chen, Ben-Hamu, Nickel, Le (2023), "Flow matching for generative modeling", ICLR, eq. (9).

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> from flowoe_lib.policies.ensemble import SCHEDULE_EXPERTS
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> order = fo.Order(fo.scalar(0.1), fo.scalar(5e-4))
    >>> condition = fo.Condition("mine", "stressed", fo.Market(heston), order)
    >>> shown = fo.training.imitation.demonstrate(SCHEDULE_EXPERTS, [condition], 5, 13, seed=1)
    >>> losses = fo.imitate(shown, iterations=60, seed=1, minibatch=128).curves["loss"]
    >>> bool(losses[-10:].mean() < losses[:10].mean())
    True
    """
    learner = EndpointField(generator(seed, "initial weights"), demonstrations.observed.shape[1])
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
