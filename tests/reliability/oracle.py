"""L1: an update as METHOD.md's formulas say it, by `torch.func`, beside what the engines do.

Nothing of the library computes here: networks are read from a state dict and run by the lines
below, arrivals are compared as the paper prints them and not in the residual form, gradients come
from `torch.func.grad`. The library gives the choices, the parameters and the draws alone.
"""

import copy
import itertools
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from gtp_policy import (
    AdvantageGuidance,
    AdvantageWeighterConfig,
    Curriculum,
    ExpectileBaseline,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    GTPLossConfig,
    LinearQGuidance,
    NoGuidance,
    PolicyBaseline,
    QEnsembleConfig,
    QuantileBaseline,
    Transitions,
    kernels,
)
from gtp_policy.actor import ActionStatistics
from gtp_policy.algorithm import Draws, draw
from gtp_policy.loss import AlphaSchedule
from gtp_policy.samplers import JumpSampler, OdeSampler
from gtp_policy.teachers import (
    DifferenceTeacher,
    JvpTeacher,
    NoTeacher,
    OdeTeacher,
    SelfTeacher,
    SurrogateTeacher,
    TerminalTeacher,
)
from gtp_policy.times import (
    KarrasTimes,
    LinearTimes,
    LogitNormalPairs,
    LogNormalIndex,
    UniformIndex,
    UniformPairs,
    UniformTimes,
)
from tests.reliability.outcome import Outcome

OBS, ACT, ROWS, RATE = 3, 2, 13, 0.1
MEAN, STD = 1.0, 2.0  # of the observations
# Of the largest of 360 configurations; float64 rounds by 1e-16, a difference over 0.01 by more.
TOLERANCE = 1e-10

Parameters = Mapping[str, Tensor]


# --- Networks -------------------------------------------------------------------------------------


def _activation(kind: str, x: Tensor) -> Tensor:
    if kind == "mish":
        return x * torch.tanh(torch.log1p(torch.exp(-x.abs())) + x.clamp_min(0))
    if kind == "gelu":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return torch.where(x > 0, x, 0 * x)


def _mlp(p: Parameters, prefix: str, x: Tensor) -> Tensor:
    numbers = sorted({int(n.removeprefix(prefix).split(".")[0]) for n in p if n.startswith(prefix)})
    for number in numbers:
        x = functional.linear(x, p[f"{prefix}{number}.weight"], p[f"{prefix}{number}.bias"])
        if number != numbers[-1]:
            x = _activation("mish", x)
    return x


def _normalised(obs: Tensor) -> Tensor:
    return (obs - MEAN) / STD


class Policy:
    """A flow map of given parameters."""

    def __init__(self, config: FlowMapActorConfig, p: Parameters) -> None:
        self.config, self.p, self.linear = config, p, isinstance(config.times, LinearTimes)
        statistics = config.action_statistics
        self.mean, self.scale = torch.zeros(ACT).double(), torch.ones(ACT).double()
        if statistics is not None:  # kept in float32 until the learner was made one of float64
            self.mean = torch.tensor(statistics.mean).float().double()
            self.scale = torch.tensor(statistics.std).float().double()

    def noised(self, a: Tensor, t: Tensor, z: Tensor) -> Tensor:
        alpha = 1 - t if self.linear else torch.ones_like(t)
        return alpha[..., None] * a + t[..., None] * z

    def _embedded(self, t: Tensor) -> Tensor:
        half = self.config.time_dim // 2
        if self.config.embedding == "log":
            octaves = torch.linspace(-3, 2, half, dtype=torch.float64)
            frequencies = (2 * math.pi * 2**octaves).float().double()
            label = 0.25 * torch.log(t.clamp_min(self.config.times.floor))
        else:
            frequencies = (2 ** torch.linspace(-3, 0, half, dtype=torch.float64)).float().double()
            signal = 1 - t if self.linear else torch.ones_like(t)
            label = torch.log((t + 0.02) / (signal + 0.02))
        angle = label[..., None] * frequencies
        return torch.cat([torch.sin(angle), torch.cos(angle)], -1)

    def c_out(self, t: Tensor) -> Tensor:
        d = self.config.sigma_data
        share = 1 - t if self.linear else torch.ones_like(t)
        return t * d / torch.sqrt(t**2 + (share * d) ** 2)

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Returns the endpoint map of METHOD.md, section 1."""
        d = self.config.sigma_data
        share = 1 - t if self.linear else torch.ones_like(t)
        variance = t**2 + (share * d) ** 2
        skip, inner = (share * d**2 / variance)[..., None], (1 / torch.sqrt(variance))[..., None]
        features = [_normalised(obs), inner * x, self._embedded(t), self._embedded(s)]
        raw = _mlp(self.p, "network.mlp.", torch.cat(features, -1))
        return skip * x + self.c_out(t)[..., None] * raw

    def jump(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Returns the flow map by eq. 4; at s = t it is x, also where t is 0."""
        start = torch.where(t > 0, t, torch.ones_like(t))
        r = torch.where(t > 0, s / start, torch.ones_like(t))[..., None]
        return r * x + (1 - r) * self.endpoint(obs, x, start, s)

    def field(self, obs: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return (x - self.endpoint(obs, x, t, t)) / t[..., None]

    def velocity(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return (x - self.endpoint(obs, x, t, s)) / t[..., None]

    def to_standard(self, action: Tensor) -> Tensor:
        return (action - self.mean) / self.scale

    def grid(self, steps: int) -> list[float]:
        times, nodes = self.config.times, range(steps)
        if isinstance(times, KarrasTimes):
            first, last = times.t_max ** (1 / times.rho), times.t_min ** (1 / times.rho)
            return [(first + i / steps * (last - first)) ** times.rho for i in nodes] + [0.0]
        if isinstance(times, UniformTimes):
            return [times.t_max * (1 - i / steps) for i in nodes] + [0.0]
        return [(1 - i / steps) ** times.rho for i in nodes] + [0.0]

    def sample(self, obs: Tensor, noise: Tensor, steps: int | None = None) -> Tensor:
        """Eq. 15, or as the sampler says."""
        sampler, grid = self.config.sampler, self.grid(steps or self.config.steps)
        noises = noise.split(ACT, -1)
        x = grid[0] * noises[0]
        for number, (a, b) in enumerate(itertools.pairwise(grid)):
            t, s = torch.full_like(obs[..., 0], a), torch.full_like(obs[..., 0], b)
            if isinstance(sampler, OdeSampler):
                field = self.field(obs, x, t)
                ahead = x + (b - a) * field
                if sampler.method == "heun" and b > 0:
                    ahead = x + (b - a) * (field + self.field(obs, ahead, s)) / 2
                x = ahead
            elif sampler.gamma and b > 0:
                keep = math.sqrt(1 - sampler.gamma**2)
                ratio = keep * (b / (1 - b) if self.linear else b)
                short = ratio / (1 + ratio) if self.linear else ratio
                x = self.jump(obs, x, t, torch.full_like(t, short))
                x = x * ((1 - b) / (1 - short)) if self.linear else x
                x = x + sampler.gamma * b * noises[number + 1]
            else:
                x = self.jump(obs, x, t, s)
        return (self.mean + self.scale * x).clamp(-1, 1)


def _q(config: QEnsembleConfig, p: Parameters, obs: Tensor, action: Tensor) -> Tensor:
    """Returns the members' values, (N, ...)."""
    values = []
    for member in range(config.members):
        x = torch.cat([_normalised(obs), action], -1)
        for layer in range(len(config.hidden) + 1):
            x = x @ p[f"weights.{layer}"][member] + p[f"biases.{layer}"][member, 0]
            if layer == len(config.hidden):
                break
            if config.layer_norm:
                centred = x - x.mean(-1, keepdim=True)
                x = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
                x = x * p[f"gains.{layer}"][member, 0] + p[f"shifts.{layer}"][member, 0]
            x = _activation(config.activation, x)
        values.append(x[..., 0])
    return torch.stack(values)


def _pessimistic(config: QEnsembleConfig, q: Tensor) -> Tensor:
    if config.reduction == "min":
        return q.min(0).values
    mean = q.mean(0)
    if not config.rho or config.members == 1:
        return mean
    return mean - config.rho * torch.sqrt(((q - mean) ** 2).mean(0))


# --- Losses ---------------------------------------------------------------------------------------


def _target(
    loss: GTPLossConfig, by: Policy, obs: Tensor, a: Tensor, times: Any, z: Tensor
) -> Tensor:
    """Returns where the teacher arrives at time s."""
    t, u, s = times
    x_t, teacher = by.noised(a, t, z), loss.teacher
    ray = z - a if by.linear else z
    gap = (t - s)[..., None]
    if isinstance(teacher, SurrogateTeacher):
        # At u = 0 it is the action itself, from where no jump starts.
        return by.jump(obs, by.noised(a, u, z), u, s)
    if isinstance(teacher, OdeTeacher):
        x, at = x_t, t
        for left in range(teacher.steps, 0, -1):
            to = at + (u - at) / left
            step, field = (to - at)[..., None], by.field(obs, x, at)
            ahead = x + step * field
            if teacher.method == "heun":
                inside = torch.where(to > 0, to, at)  # at time 0 there is no field
                both = x + step * (field + by.field(obs, ahead, inside)) / 2
                ahead = torch.where((to > 0)[..., None], both, ahead)
            x, at = ahead, to
        return by.jump(obs, x, u, s)
    if isinstance(teacher, SelfTeacher):
        by_field = x_t + (u - t)[..., None] * by.field(obs, x_t, t)
        first = torch.where((u > s)[..., None], by.jump(obs, x_t, t, u), by_field)
        return by.jump(obs, first, u, s)
    if isinstance(teacher, JvpTeacher):
        v = (x_t - a) / t[..., None]
        phi, change = torch.func.jvp(
            lambda x, at: by.endpoint(obs, x, at, s), (x_t, t), (v, torch.ones_like(t))
        )
        share = 1 - (s / t)[..., None]
        wanted = a + share * (phi - a) - gap * change
        return (1 - share) * x_t + share * wanted
    h = torch.minimum((t - s) / 2, torch.full_like(t, teacher.step))
    if isinstance(teacher, DifferenceTeacher):
        behind = x_t - h[..., None] * by.field(obs, x_t, t)
        slope = by.velocity(obs, x_t, t, s) - by.velocity(obs, behind, t - h, s)
        return x_t - gap * (ray - gap * slope / h[..., None])
    assert isinstance(teacher, TerminalTeacher)
    before = s + h
    there = by.jump(obs, x_t, t, before)
    slope = by.velocity(obs, x_t, t, before) - by.velocity(obs, x_t, t, s)
    return x_t - gap * (by.field(obs, there, before) + gap * slope / h[..., None])


def _distance(loss: GTPLossConfig, residual: Tensor, power: float) -> Tensor:
    square = (residual**2).mean(-1) if loss.reduction == "mean" else (residual**2).sum(-1)
    if power:
        return square / (square.detach() + loss.adaptive_constant) ** power
    if loss.huber is not None:
        return torch.sqrt(square + loss.huber**2) - loss.huber
    return square


def _losses(
    loss: GTPLossConfig, actor: Policy, teaching: Policy, batch: Transitions, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Returns eq. 17 by transition, of the first rows, and eq. 18, before weights and mean."""
    a, z = actor.to_standard(batch.action), draws.z[0]
    t, u, s = (time[0] for time in draws.times)
    tau = t if draws.flow_t is None else draws.flow_t[0]
    n = len(t)
    flow = actor.endpoint(batch.obs, actor.noised(a, tau, z), tau, tau) - a
    if loss.units == "velocity":
        flow = flow / tau[..., None]
    on_flow = actor.c_out(tau) ** -2 if loss.time_weight == "edm" else 1.0
    flow = on_flow * _distance(loss, flow, loss.adaptive_power * loss.adaptive_flow)
    if isinstance(loss.teacher, NoTeacher):
        return torch.zeros_like(flow[:n]), flow
    obs, a, z = batch.obs[:n], a[:n], z[:n]
    arrival = actor.jump(obs, actor.noised(a, t, z), t, s)
    target = _target(loss, teaching, obs, a, (t, u, s), z)
    if loss.compare_at == "zero":
        arrival, target = (teaching.jump(obs, x, s, torch.zeros_like(s)) for x in (arrival, target))
    residual = arrival - target.detach()
    if loss.units == "velocity":
        residual = residual / (t - s)[..., None]
    weight = {
        "none": torch.ones_like(t),
        "gap": 1 / (t - u),
        "endpoint": (1 - s / t) ** -2,
        "edm": actor.c_out(t) ** -2,
    }[loss.time_weight]
    return weight * _distance(loss, residual, loss.adaptive_power), flow


def _weights(config: AdvantageWeighterConfig, advantage: Tensor) -> Tensor:
    """Eq. 14, the cap inside the exponent."""
    std = torch.sqrt(((advantage - advantage.mean()) ** 2).mean())
    counted = advantage if config.signed else torch.where(advantage > 0, advantage, 0.0)
    limit = math.log(config.max_weight)
    return torch.exp((config.eta * counted / (std + config.eps)).clamp(-limit, limit))


# --- The update -----------------------------------------------------------------------------------


class Expected:
    """What a learner's next update should leave: parameters by name, and metrics."""

    def __init__(self, learner: GTPLearner, batch: Transitions) -> None:
        self.learner, self.batch = learner, batch
        self.config, self.own = learner.config, learner.full_config
        self.draws = draw([learner], batch.action[None])
        parts = ("actor", "target_actor", "critic", "target_critic", "value")
        self.p = {
            part: {n: v.detach().clone() for n, v in getattr(learner, part).named_parameters()}
            for part in parts
            if getattr(learner, part) is not None
        }
        self.metrics: dict[str, Tensor] = {}
        weight = self._fit_critic() if self.own.critic is not None else None
        self._fit_actor(weight)
        rates = {"actor": self.config.ema_rate, "critic": self.config.critic_rate}
        for part, rate in rates.items():
            if part in self.p:
                mine, target = self.p[part], self.p[f"target_{part}"]
                target |= {n: (1 - rate) * target[n] + rate * mine[n] for n in target}

    def parameters(self) -> dict[str, Tensor]:
        return {f"{part}.{n}": v for part, p in self.p.items() for n, v in p.items()}

    def _step(self, part: str, loss: Callable[[Parameters], Tensor]) -> Tensor:
        gradients = torch.func.grad(loss)(self.p[part])
        norm = torch.sqrt(sum(((g**2).sum() for g in gradients.values()), torch.zeros(())))
        limit = self.config.max_grad_norm
        factor = 1.0 if limit is None else min(1.0, limit / (float(norm) + 1e-6))
        self.p[part] |= {n: self.p[part][n] - RATE * factor * g for n, g in gradients.items()}
        return norm

    def _fit_critic(self) -> Tensor | None:
        critic, batch, config = self.own.critic, self.batch, self.config
        assert critic is not None
        actor = Policy(self.own.actor, self.p["target_actor"])
        q_of = _q_of(critic)

        def v_of(obs: Tensor, p: Parameters | None = None) -> Tensor:
            return _mlp(p or self.p["value"], "network.", _normalised(obs))[..., 0]

        if config.backup == "value":
            following = v_of(batch.next_obs)
        else:
            assert self.draws.backup is not None
            values = []
            for noise in self.draws.backup[0]:
                action = actor.sample(batch.next_obs, noise)
                q = q_of(self.p["target_critic"], batch.next_obs, action)
                if config.critic_penalty:
                    away = ((action - batch.next_action) ** 2).sum(-1)
                    q = q - config.critic_penalty * away
                values.append(q)
            many = torch.stack(values)  # (R, N, B)
            if config.backup == "best_of_n":
                each = torch.stack([_pessimistic(critic, q) for q in many])
                following = each.max(0).values
            else:
                following = _pessimistic(critic, many.max(0).values)
        y = batch.reward + batch.discount * following

        def td(p: Parameters) -> Tensor:
            return ((q_of(p, batch.obs, batch.action) - y) ** 2).mean()

        self.metrics["critic_loss"] = td(self.p["critic"])
        self.metrics["q_mean"] = q_of(self.p["critic"], batch.obs, batch.action).mean()
        self.metrics["critic_grad_norm"] = self._step("critic", td)
        if "value" in self.p:
            wanted = _pessimistic(critic, q_of(self.p["target_critic"], batch.obs, batch.action))

            def fit(p: Parameters) -> Tensor:
                d = wanted - v_of(batch.obs, p)
                baseline = config.baseline
                if isinstance(baseline, ExpectileBaseline):
                    return ((baseline.expectile - (d < 0).double()).abs() * d**2).mean()
                assert isinstance(baseline, QuantileBaseline)
                return ((baseline.quantile - (d < 0).double()).abs() * d.abs()).mean()

            self._step("value", fit)
        guidance = self.learner.guidance
        weighted = isinstance(guidance, LinearQGuidance) and guidance.weighted
        if not isinstance(guidance, AdvantageGuidance) and not weighted:
            return None
        q = _pessimistic(critic, q_of(self.p["critic"], batch.obs, batch.action))
        if "value" in self.p:
            v = v_of(batch.obs)
        else:
            assert self.draws.baseline is not None
            sampled = [actor.sample(batch.obs, noise) for noise in self.draws.baseline[0]]
            of_each = [_pessimistic(critic, q_of(self.p["critic"], batch.obs, a)) for a in sampled]
            v = torch.stack(of_each).mean(0)
        weight = _weights(self.own.weighter, q - v)
        self.metrics["advantage_mean"] = (q - v).mean()
        self.metrics["weight_mean"], self.metrics["weight_max"] = weight.mean(), weight.max()
        self.metrics["weight_ess"] = weight.sum() ** 2 / (weight**2).sum() / len(weight)
        return weight

    def _fit_actor(self, weight: Tensor | None) -> None:
        loss, guidance = self.own.loss, self.learner.guidance
        teaching = Policy(self.own.actor, self.p["target_actor"])
        if loss.target == "stopgrad":
            teaching = Policy(self.own.actor, dict(self.p["actor"]))
        given = torch.ones(ROWS).double() if weight is None else weight

        def total(p: Parameters) -> tuple[Tensor, dict[str, Tensor]]:
            actor = Policy(self.own.actor, p)
            consistency, flow = _losses(loss, actor, teaching, self.batch, self.draws)
            metrics = {
                "consistency": (given[: len(consistency)] * consistency).mean(),
                "flow": (given * flow).mean(),
            }
            sum_ = metrics["consistency"] + loss.flow_weight * metrics["flow"]
            if self.own.critic is not None and isinstance(guidance, LinearQGuidance):
                assert self.draws.guide is not None
                action = actor.sample(self.batch.obs, self.draws.guide[0], guidance.steps)
                q_of = _q_of(self.own.critic)
                q = _pessimistic(self.own.critic, q_of(self.p["critic"], self.batch.obs, action))
                metrics["guided_q"] = q.mean()
                divisor = q.detach().abs().mean() if guidance.normalize else 1.0
                sum_ = sum_ - guidance.scale * q.mean() / divisor
            return sum_, metrics | {"actor_loss": sum_}

        self.metrics |= total(self.p["actor"])[1]
        self.metrics["actor_grad_norm"] = self._step("actor", lambda p: total(p)[0])


def _q_of(critic: QEnsembleConfig) -> Callable[[Parameters, Tensor, Tensor], Tensor]:
    return lambda p, obs, action: _q(critic, p, obs, action)


# --- The trial ------------------------------------------------------------------------------------


def choose(rng: random.Random) -> GTPConfig:
    """Draws a configuration: every choice of losses, teachers, critics, backups, guidance."""
    while True:
        try:
            return _chosen(rng)
        except ValidationError:  # choices that exclude each other
            continue


def _chosen(rng: random.Random) -> GTPConfig:
    pick = rng.choice
    off_grid, share, power = rng.random() < 0.5, pick([1.0, 1.0, 0.4]), pick([0.0, 0.5, 1.0])
    loss = GTPLossConfig(
        flow_weight=pick([0.1, 1.0]),
        curriculum=Curriculum(start=pick([1, 4, 10]), end=20),
        t_law=pick(
            [UniformPairs(), LogitNormalPairs(mean=-0.4)]
            if off_grid
            else [UniformIndex(), LogNormalIndex()]
        ),
        max_gap=pick([1, 3]),
        s_rule=pick(["uniform", "zero", "equal_u", "dyadic"]),
        u_rule="between" if off_grid else pick(["adjacent", "midpoint"]),
        teacher=pick(
            [
                SurrogateTeacher(),
                OdeTeacher(method="euler", steps=pick([1, 2, 3])),
                OdeTeacher(method="heun", steps=pick([1, 2, 3])),
                SelfTeacher(),
                JvpTeacher(),
                DifferenceTeacher(step=pick([0.01, 0.3])),
                TerminalTeacher(step=pick([0.01, 0.3])),
                NoTeacher(),
            ]
        ),
        target=pick(["ema", "stopgrad"]),
        compare_at=pick(["s", "s", "zero"]),
        inner=pick([0.3, 0.9, AlphaSchedule(sharpness=5.0)]),
        map_share=share,
        flow_times="uniform" if share < 1 else pick(["shared", "uniform"]),
        units=pick(["position", "velocity"]),
        adaptive_power=power,
        adaptive_flow=pick([True, False]),
        time_weight=pick(["none", "gap", "endpoint", "edm"]),
        huber=None if power else pick([None, 0.1]),
        reduction=pick(["mean", "sum"]),
    )
    fits = pick(
        [
            PolicyBaseline(samples=pick([1, 3])),
            ExpectileBaseline(hidden=(6,), expectile=0.8),
            QuantileBaseline(hidden=(6, 5), quantile=0.3),
        ]
    )
    backup = pick(["max_q", "best_of_n", "value"])
    critic = QEnsembleConfig(
        hidden=pick([(7,), (7, 6)]),
        members=pick([1, 2, 4]),
        layer_norm=pick([True, False]),
        activation=pick(["mish", "gelu", "relu"]),
        reduction=pick(["min", "mean"]),
        rho=pick([0.0, 0.7]),
    )
    through = LinearQGuidance(
        scale=pick([0.1, 1.0]),
        normalize=pick([True, False]),
        steps=pick([None, 1, 2]),
        weighted=pick([True, False]),
    )
    learner = GTPLearnerConfig(
        total_updates=20,
        max_grad_norm=pick([None, 0.1]),
        ema_rate=0.1,
        critic_ema_rate=pick([None, 0.3]),
        baseline=fits,
        guidance=pick([AdvantageGuidance(), AdvantageGuidance(), through, through, NoGuidance()]),
        backup=backup,
        backup_actions=1 if backup == "value" else pick([1, 3]),
        critic_penalty=0.0 if backup == "value" else pick([0.0, 0.5]),
        seed=rng.randrange(10**6),
    )
    has_critic = rng.random() < 0.85 or isinstance(learner.guidance, LinearQGuidance)
    return GTPConfig(
        actor=FlowMapActorConfig(
            hidden=pick([(8,), (8, 7)]),
            time_dim=pick([2, 6]),
            embedding=pick(["log", "log_ratio"]),
            steps=pick([1, 2, 3]),
            sigma_data=pick([None, 0.3]),
            action_statistics=pick([None, ActionStatistics(mean=(0.6, -0.2), std=(0.05, 0.4))]),
            times=pick(
                [
                    KarrasTimes(),
                    KarrasTimes(t_min=0.002, t_max=80.0),
                    UniformTimes(),
                    LinearTimes(rho=pick([1.0, 1.75])),
                ]
            ),
            sampler=pick(
                [JumpSampler(), JumpSampler(), JumpSampler(gamma=0.4), OdeSampler(method="heun")]
            ),
        ),
        critic=critic if has_critic else None,
        loss=loss,
        weighter=AdvantageWeighterConfig(
            eta=pick([0.0, 1.0, 3.0]), signed=pick([True, False]), max_weight=pick([100.0, 2.0])
        ),
        learner=learner,
    )


def make_learner(config: GTPConfig) -> GTPLearner:
    """Builds a learner in float64 whose step is the gradient, times a rate."""
    learner = GTPLearner.build(
        OBS, ACT, config, optimizer=lambda _, module: torch.optim.SGD(module.parameters(), lr=RATE)
    ).double()
    mean, std = (torch.full((OBS,), x, dtype=torch.float64) for x in (MEAN, STD))
    learner.set_observation_statistics_(mean, std)
    # Targets that are not the networks themselves.
    generator = torch.Generator().manual_seed(config.learner.seed)
    for target in (learner.target_actor, learner.target_critic):
        for parameter in target.parameters() if target is not None else ():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.add_(0.05 * noise)
    return learner


def make_batch(seed: int) -> Transitions:
    """Returns random transitions in float64."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1

    return Transitions(
        obs=3 * uniform(ROWS, OBS),
        action=uniform(ROWS, ACT),
        reward=uniform(ROWS),
        next_obs=3 * uniform(ROWS, OBS),
        discount=0.99 * (uniform(ROWS) > -0.8).double(),
        next_action=uniform(ROWS, ACT),
    )


def engines_and_formulas(count: int = 20, *, first: int = 0) -> Outcome:
    """L1: losses, gradients, steps and targets of an update, as the formulas have them."""
    outcome, worst, by_hand = Outcome(), 0.0, 0
    for seed in range(first, first + count):
        config = choose(random.Random(seed))
        learner, batch = make_learner(config), make_batch(seed)
        expected = Expected(learner, batch)
        by_hand += learner.explain()[0].startswith("update: fused")
        for engine in ("auto", "reference"):
            own = copy.deepcopy(learner)
            with kernels.using(engine):
                metrics = own.update(batch)
            got = dict(own.named_parameters())
            errors = {n: _error(got[n].detach(), v) for n, v in expected.parameters().items()}
            for name, value in expected.metrics.items():
                errors[name] = _error(getattr(metrics, name), value)
            where = max(errors, key=lambda name: errors[name])
            worst = max(worst, errors[where])
            problem = None if errors[where] <= TOLERANCE else f"{where} is {errors[where]:.1e} off"
            outcome.add(f"configuration {seed}, {engine}", problem)
    outcome.details["by hand as well as by autograd"] = by_hand
    outcome.worst = f"at most {worst:.1e} from the formulas"
    return outcome


def _error(got: Tensor, expected: Tensor) -> float:
    """Returns the largest error, absolute below 1 and relative above; NaN counts as infinite."""
    difference = (got - expected).abs() / expected.abs().clamp_min(1.0)
    return float(difference.nan_to_num(math.inf, math.inf, math.inf).max())
