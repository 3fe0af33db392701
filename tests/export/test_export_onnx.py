"""An exported policy is the policy: the same actions, from any place that a policy may live in."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pydantic
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from gtp_policy import (
    ActionScaler,
    FlowMapActor,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    ObservationLayout,
    QEnsembleConfig,
    load_checkpoint,
    presets,
    save_checkpoint,
)
from gtp_policy.acting import (
    ArgmaxChoice,
    ModeChoice,
    SoftmaxChoice,
    margin_of_mode,
)
from gtp_policy.actor import ActionStatistics
from gtp_policy.chunks import Playback
from gtp_policy.errors import DataError, ExportError, PolicyFileError
from gtp_policy.export import (
    ObservationFacts,
    PolicyFile,
    PolicySource,
    export_onnx,
    export_torch,
    read_policy_file,
)
from gtp_policy.export.policy_file import PROPERTY, SCHEMA, json_schema
from gtp_policy.export.source import source_of
from gtp_policy.files import stored_bytes
from gtp_policy.keyed_noise import keyed_noise
from gtp_policy.samplers import JumpSampler, OdeSampler
from gtp_runtime import ActionQueue, Policy
from tests.reliability.mutations import SLACK, peak_memory

OBS, ACT = 5, 3
SCALER = ActionScaler([-2.0, -1.0, 0.0], [2.0, 0.5, 10.0])
HALF = torch.tensor([2.0, 0.75, 5.0])
Array = npt.NDArray[np.float32]


def several(preset: str) -> GTPLearner:
    """Returns a learner whose deterministic actions are made of sixteen."""
    learner = make(preset)
    learner.config = learner.config.replace(eval_candidates=16)
    return learner


def make(preset: str = "gtp", **critic: Any) -> GTPLearner:
    """Returns a learner with large weights, so that errors show, and normalised both ways."""
    config = presets.get(preset)
    config = config.replace(actor=config.actor.replace(hidden=(48, 32)))
    if config.critic is not None:
        config = config.replace(critic=QEnsembleConfig(hidden=(24, 16), **critic))
    learner = GTPLearner.build(OBS, ACT, config)
    learner.set_observation_statistics_(torch.linspace(-3, 50, OBS), torch.linspace(0.01, 20, OBS))
    if config.learner.normalize_actions:
        statistics = ActionStatistics(mean=(0.1, 0.0, -0.4), std=(0.5, 0.02, 0.3))
        for actor in (learner.actor, learner.target_actor):
            actor.set_action_scales_(statistics=statistics)
    return learner


def observations(n: int, seed: int = 0) -> Tensor:
    z = torch.randn(n, OBS, generator=torch.Generator().manual_seed(seed))
    return z * torch.linspace(0.01, 20, OBS) + torch.linspace(-3, 50, OBS)


def noises(n: int, *shape: int) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(7))


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path: Path, *inputs: Tensor) -> Tensor:
    found = session(path)
    names = [entry.name for entry in found.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return torch.from_numpy(found.run(None, feed)[0])


def distance(got: Tensor, expected: Tensor) -> float:
    """Returns the largest difference, as a share of half the range: in units of [-1, 1]."""
    return float(((got - expected) / HALF).abs().max())


# --- parity


@pytest.mark.parametrize("preset", ["gtp", "one_step", "paper", "shortcut"])
@pytest.mark.parametrize("steps", [1, 2, 5, 10, 40])
def test_actions_are_the_policys_at_every_number_of_rows(
    tmp_path: Path, preset: str, steps: int
) -> None:
    learner, path = make(preset), tmp_path / "policy.onnx"
    file = export_onnx(learner, path, steps=steps, candidates=1, action_scaler=SCALER)
    assert file.noise.shape == (ACT,)
    for rows in (1, 7, 256, 4096):
        obs, noise = observations(rows), noises(rows, ACT)
        expected = learner.target_actor.sample(obs, noise=noise, steps=steps)
        assert distance(run(path, obs, noise), SCALER.to_box(expected)) <= 1e-5


CRITICS: dict[str, dict[str, Any]] = {
    "the minimum of two": {},
    "the mean of three, less their spread": {"members": 3, "reduction": "mean", "rho": 0.7},
    "the mean, normalised, gelu": {"reduction": "mean", "layer_norm": True, "activation": "gelu"},
    "one, relu": {"members": 1, "activation": "relu"},
}


@pytest.mark.parametrize("critic", CRITICS.values(), ids=CRITICS.keys())
def test_the_critic_chooses_as_the_learner_does(tmp_path: Path, critic: dict[str, Any]) -> None:
    learner, path = make(**critic), tmp_path / "policy.onnx"
    file = export_onnx(learner, path, steps=2, candidates=6, action_scaler=SCALER)
    assert file.candidates == 6
    assert file.noise.shape == (6, ACT)
    obs = observations(300)
    expected = learner.act(obs, steps=2, candidates=6, deterministic=True)
    away = (
        (
            (run(path, obs, keyed_noise(obs, 6 * ACT).view(300, 6, ACT)) - SCALER.to_box(expected))
            / HALF
        )
        .abs()
        .amax(1)
    )
    # Of two candidates of one value up to rounding, it may be the other.
    assert (away <= 1e-5).float().mean() >= 0.99
    assert len({tuple(row) for row in expected.round(decimals=3).tolist()}) > 1


def test_a_learner_is_exported_as_it_is_evaluated(tmp_path: Path) -> None:
    learner, path = make(), tmp_path / "policy.onnx"
    file = export_onnx(learner, path)
    assert (file.steps, file.candidates) == (
        learner.full_config.actor.steps,
        1,
    )
    learner.target_actor.mode_share = 0.8  # the critic prefers the mode
    assert export_onnx(learner, path).candidates == 16
    assert export_onnx(make("gtp_bc"), path).candidates == 1
    assert export_onnx(several("gtp_bc"), path).candidates == 16
    assert export_onnx(several("gtp_bc"), path, candidates=1).candidates == 1


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e20])
def test_a_keyed_noise_gives_the_deterministic_action(tmp_path: Path, scale: float) -> None:
    learner, path = make("one_step"), tmp_path / "policy.onnx"
    file = export_onnx(learner, path, candidates=1, noise="keyed", action_scaler=SCALER)
    assert file.noise.input is None
    for rows in (1, 5):
        obs = scale * observations(rows)
        expected = SCALER.to_box(learner.act(obs, candidates=1, deterministic=True))
        assert distance(run(path, obs), expected) <= 1e-5


@pytest.mark.parametrize("preset", ["gtp", "gtp_bc", "paper_loss"])
@pytest.mark.parametrize("make_learner", [make, several], ids=["as it is", "of 16"])
def test_a_file_without_choices_acts_as_a_deterministic_learner(
    tmp_path: Path, make_learner: Callable[[str], GTPLearner], preset: str
) -> None:
    """One noise, or the mode of sixteen, without a critic; of the paper's the critic's choice."""
    learner, path = make_learner(preset), tmp_path / "policy.onnx"
    file = export_onnx(learner, path, noise="keyed", action_scaler=SCALER)
    n = file.candidates
    for rows in (1, 7, 50):
        obs = observations(rows)
        expected = SCALER.to_box(learner.act(obs, deterministic=True))
        away = ((run(path, obs) - expected) / HALF).abs().amax(1)
        if n > 1 and learner.config.deterministic_choice == ModeChoice():
            # Where two are as central up to rounding, it may be the other one.
            noise = keyed_noise(obs, n * ACT).view(-1, ACT)
            drawn = learner.target_actor.sample(obs.repeat_interleave(n, 0), noise=noise)
            clear = margin_of_mode(drawn.view(rows, -1, ACT)) > 1e-5
            assert clear.float().mean() >= 0.9
            away = away[clear]
        assert away.max() <= 1e-5


def test_seeded_noise_is_drawn_inside_and_standard_normal(tmp_path: Path) -> None:
    actor, path = FlowMapActor(1, 1), tmp_path / "policy.onnx"
    file = export_onnx(actor, path, noise="seeded", seed=3)
    assert (file.noise.source, file.noise.seed) == ("seeded", 3)
    obs = torch.zeros(4000, 1)
    first, again = run(path, obs), run(path, obs)
    assert torch.equal(first, again)  # a new session starts at the seed
    export_onnx(actor, path, noise="seeded", seed=4)
    assert not torch.equal(run(path, obs), first)
    drawn = actor.sample(obs, noise=noises(4000, 1))
    levels = torch.linspace(0.05, 0.95, 19)
    gap = (first.flatten().quantile(levels) - drawn.flatten().quantile(levels)).abs().max()
    assert gap < 0.15


def test_half_precision_is_near(tmp_path: Path) -> None:
    learner, path = make(), tmp_path / "policy.onnx"
    whole = export_onnx(learner, path, candidates=1, action_scaler=SCALER)
    size = path.stat().st_size
    file = export_onnx(learner, path, candidates=1, precision="float16", action_scaler=SCALER)
    assert (whole.precision, file.precision) == ("float32", "float16")
    assert path.stat().st_size < 0.7 * size
    obs, noise = observations(500), noises(500, ACT)
    expected = SCALER.to_box(learner.target_actor.sample(obs, noise=noise))
    assert 1e-6 < distance(run(path, obs, noise), expected) < 0.02


def spreading(seed: int) -> PolicySource:
    """Returns a policy that acts by the mode of sixteen actions which are far apart."""
    actor = FlowMapActor(OBS, ACT, FlowMapActorConfig(hidden=(48, 32), steps=2), seed=seed)
    with torch.no_grad():
        for parameter in actor.network.mlp.parameters():
            parameter.mul_(4)
    return PolicySource(actor, action_scaler=SCALER, candidates=16, choice=ModeChoice())


def test_in_half_precision_two_may_be_as_central_by_more_than_rounding(tmp_path: Path) -> None:
    # One of the rows that are compared has its two most central actions 0.3 % apart.
    export_onnx(spreading(415), tmp_path / "policy.onnx", precision="float16")


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_mode_that_is_none_is_found(
    tmp_path: Path, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gtp_policy.export import graph

    mode = graph._mode
    monkeypatch.setattr(graph, "_mode", lambda g, *args: g.op("Neg", mode(g, *args)))
    with pytest.raises(ExportError, match="does not act as the policy does"):
        export_onnx(spreading(0), tmp_path / "policy.onnx", precision=precision)


@pytest.mark.global_rng
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("candidates", [1, 4])
def test_actions_stay_in_the_box_for_observations_of_any_size(
    tmp_path: Path, precision: Any, candidates: int
) -> None:
    learner, path = make(), tmp_path / "policy.onnx"
    file = export_onnx(
        learner, path, candidates=candidates, precision=precision, action_scaler=SCALER
    )
    corners = torch.tensor([*itertools.product((-1e6, 1e6), repeat=OBS)])
    obs = torch.cat([corners, 1e6 * (2 * torch.rand(500, OBS) - 1)])
    action = run(path, obs, 8 * noises(len(obs), *file.noise.shape))
    low, high = torch.tensor(file.action.low), torch.tensor(file.action.high)
    assert ((action >= low) & (action <= high)).all()


def test_a_mode_at_the_edge_stays_in_the_box(tmp_path: Path) -> None:
    """Without bounds of a Box to end in, by the graph and by torch alike."""
    learner, path = make(), tmp_path / "policy.onnx"
    export_onnx(learner, path, noise="keyed")
    obs = observations(4000) * torch.linspace(1, 50, 4000)[:, None]
    action, expected = run(path, obs), learner.act(obs, deterministic=True)
    assert (expected.abs() == 1).any()
    for found in (action, expected):
        assert (found.abs() <= 1).all()
    onnx_itself = ReferenceEvaluator(str(path)).run(None, {"obs": obs[:4].numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(onnx_itself), action[:4], atol=1e-5, rtol=0)


def test_onnx_itself_computes_the_same(tmp_path: Path) -> None:
    learner, path = make("one_step"), tmp_path / "policy.onnx"
    export_onnx(learner, path, candidates=1, action_scaler=SCALER)
    obs, noise = observations(4), noises(4, ACT)
    found = ReferenceEvaluator(str(path)).run(None, {"obs": obs.numpy(), "noise": noise.numpy()})[0]
    expected = SCALER.to_box(learner.target_actor.sample(obs, noise=noise))
    assert distance(torch.from_numpy(found), expected) <= 1e-5


HISTORIES = {
    "vectors": (OBS,),
    "a dict": {"speed": (2,), "camera": (3, 1)},
    "a dict with a number": {"speed": (), "camera": (2, 2)},
}


@pytest.mark.parametrize("shapes", HISTORIES.values(), ids=HISTORIES.keys())
@pytest.mark.parametrize(("history", "chunk"), [(1, 4), (3, 1), (2, 4)])
@pytest.mark.parametrize("candidates", [None, 1, 3])
def test_chunks_and_histories_are_planned_as_the_learner_does(
    tmp_path: Path, history: int, chunk: int, candidates: int | None, shapes: Any
) -> None:
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(24,), steps=2, history=history, chunk=chunk),
        critic=QEnsembleConfig(hidden=(8,)),
    )
    learner = GTPLearner.build(history * OBS, chunk * ACT, config)
    layout, path = ObservationLayout(shapes), tmp_path / "policy.onnx"
    file = export_onnx(
        learner, path, candidates=candidates, layout=layout, action_scaler=SCALER, noise="keyed"
    )
    assert (file.observation.history, file.action.chunk) == (history, chunk)
    assert file.action.low == tuple(SCALER.low.tolist())
    flat = observations(history * 20).view(20, history, OBS)
    chunks = learner.act(flat.flatten(1), candidates=candidates, deterministic=True)
    expected = SCALER.to_box(chunks.view(20, chunk, ACT))
    found = layout.unflatten(flat.flatten(0, 1))
    parts = list(found.values()) if isinstance(found, dict) else [found]
    past = (history,) if history > 1 else ()
    inputs = [part.reshape(20, *past, *part.shape[1:]) for part in parts]
    # Of two that are as central, or as good, it may be the other.
    away = (run(path, *inputs).view(20, chunk, ACT) - expected).abs() / HALF
    assert (away.amax((1, 2)) <= 1e-5).float().mean() >= (1 if candidates == 1 else 0.9)


@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
@pytest.mark.parametrize("history", [1, 2])
@pytest.mark.parametrize("shapes", [{"speed": (), "at": (2,)}, {"speed": ()}, ()], ids=str)
def test_parts_that_are_one_number_are_taken_as_the_learner_takes_them(
    tmp_path: Path, backend: Any, history: int, shapes: Any
) -> None:
    layout, path = ObservationLayout(shapes), tmp_path / "policy.onnx"
    actor = FlowMapActorConfig(hidden=(24,), history=history)
    learner = GTPLearner.build(history * layout.obs_dim, ACT, GTPConfig(actor=actor, critic=None))
    learner.layout, learner.action_scaler = layout, SCALER
    source = source_of(learner)
    speed = "speed" if layout.keys else ""
    facts = {speed: ObservationFacts(low=(-1.0,), high=(1.0,))}
    export_onnx(source._replace(observations=facts), path)
    policy, rng = Policy.load(path, backend=backend, bounds="clip"), np.random.default_rng(0)
    past = (history,) if history > 1 else ()
    for batch in ((), (1,), (7,)):
        parts = {
            key: rng.uniform(-1, 1, (*batch, *past, *shape)).astype(np.float32)
            for key, shape in zip(layout.keys or ("",), layout.shapes, strict=True)
        }
        obs: Any = parts if layout.keys else parts[""]
        expected = learner.predict(obs, deterministic=True)
        assert expected.shape == (*batch, ACT)
        np.testing.assert_allclose(policy.act(obs, deterministic=True), expected, atol=1e-4)
        if history == 1 and not batch:
            plain = {key: part.tolist() for key, part in parts.items()}
            taken = policy.act(plain if layout.keys else plain[""], deterministic=True)
            np.testing.assert_allclose(taken, expected, atol=1e-4)
        parts[speed] += 10
        far = policy.act(obs if layout.keys else parts[""], deterministic=True)
        parts[speed][...] = 1
        np.testing.assert_array_equal(policy.act(obs, deterministic=True), far)


@pytest.mark.slow  # torch's own exporter takes its time
@pytest.mark.global_rng
def test_a_program_of_torch_takes_parts_that_are_one_number(tmp_path: Path) -> None:
    learner = GTPLearner.build(OBS, ACT, GTPConfig(critic=None))
    options: dict[str, Any] = {"candidates": 1, "action_scaler": SCALER}
    options["layout"] = ObservationLayout(HISTORIES["a dict with a number"])
    export_torch(learner, tmp_path / "policy.pt2", **options)
    inputs = torch.randn(6), torch.randn(6, 2, 2), noises(6, ACT)
    flat = torch.cat([inputs[0][:, None], inputs[1].flatten(1)], 1)
    expected = SCALER.to_box(learner.target_actor.sample(flat, noise=inputs[2]))
    found = torch.export.load(tmp_path / "policy.pt2").module()(*inputs)
    assert distance(found, expected) <= 1e-5


@pytest.mark.slow  # torch's own exporter takes its time
@pytest.mark.global_rng
def test_a_program_of_torch_plans_chunks_as_the_file_does(tmp_path: Path) -> None:
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(24,), steps=2, history=2, chunk=3), critic=None
    )
    learner = GTPLearner.build(2 * OBS, 3 * ACT, config)
    options: dict[str, Any] = {"candidates": 1, "action_scaler": SCALER}
    options["layout"] = ObservationLayout(HISTORIES["a dict"])
    export_onnx(learner, tmp_path / "policy.onnx", **options)
    export_torch(learner, tmp_path / "policy.pt2", **options)
    program = torch.export.load(tmp_path / "policy.pt2").module()
    inputs = torch.randn(6, 2, 2), torch.randn(6, 2, 3, 1), noises(6, 3 * ACT)
    found = program(*inputs)
    assert found.shape == (6, 3, ACT)
    assert distance(run(tmp_path / "policy.onnx", *inputs), found) <= 1e-5


def test_the_runtime_plays_the_chunks_that_the_learner_plays(tmp_path: Path) -> None:
    config = GTPConfig(actor=FlowMapActorConfig(hidden=(24,), steps=2, history=2, chunk=3))
    learner, path = GTPLearner.build(2 * OBS, 3 * ACT, config), tmp_path / "policy.onnx"
    export_onnx(learner, path, candidates=1, action_scaler=SCALER)
    queue = ActionQueue(Policy.load(path), deterministic=True)
    player = learner.player(candidates=1, deterministic=True)
    for obs in observations(7):
        expected = SCALER.to_box(player.act(obs[None]))
        assert distance(torch.from_numpy(queue.act(obs.numpy()))[None], expected) <= 1e-5


@pytest.mark.parametrize(
    "playback",
    [
        Playback(),
        Playback(every=4),
        Playback(every=3),
        Playback(every=1),
        Playback(every=1, ensemble=0.0),
        Playback(every=2, ensemble=0.5),
        Playback(every=3, ensemble=8.0),
    ],
    ids=str,
)
def test_the_runtime_plays_as_the_policy_does(tmp_path: Path, playback: Playback) -> None:
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(24,), steps=2, history=2, chunk=4),
        critic=None,
        learner=GTPLearnerConfig(playback=playback),
    )
    learner, path = GTPLearner.build(2 * OBS, 4 * ACT, config), tmp_path / "policy.onnx"
    saved = save_checkpoint(tmp_path / "policy.zip", learner, action_scaler=SCALER)
    file = export_onnx(saved, path, candidates=1)
    # What an earlier reader plays to its end would be another policy there.
    assert (file.format_version == 1) == (playback.every in (None, 4))
    queue = ActionQueue(Policy.load(path), deterministic=True)
    player = learner.player(candidates=1, deterministic=True)
    for _ in range(2):
        queue.reset()
        player.reset()
        for obs in observations(9):
            expected = SCALER.to_box(player.act(obs[None]))
            assert distance(torch.from_numpy(queue.act(obs.numpy()))[None], expected) <= 1e-5


def test_a_playback_that_does_not_fit_the_chunk(tmp_path: Path) -> None:
    actor = FlowMapActor(OBS, 4 * ACT, FlowMapActorConfig(hidden=(24,), chunk=4))
    source = PolicySource(actor, playback=Playback(every=5))
    with pytest.raises(ExportError, match="at most 4 for chunks of 4"):
        export_onnx(source, tmp_path / "policy.onnx")


# --- what is exported


def test_a_checkpoint_is_exported_from_its_path_alone(tmp_path: Path) -> None:
    layout = ObservationLayout({"speed": (2,), "camera": (3, 1)})
    learner, path = make(), tmp_path / "policy.onnx"
    learner.updates = 17
    saved = {
        name: save_checkpoint(tmp_path / name, learner, action_scaler=SCALER, layout=layout)
        for name in ("a", "a.zip")
    }
    files = {name: export_onnx(where, path, candidates=1) for name, where in saved.items()}
    file = files["a.zip"]
    assert files["a"] == file
    assert [part.input for part in file.observation.parts] == ["obs.speed", "obs.camera"]
    assert [part.shape for part in file.observation.parts] == [(2,), (3, 1)]
    assert file.observation.kind == "dict"
    assert (file.action.low, file.action.high) == ((-2.0, -1.0, 0.0), (2.0, 0.5, 10.0))
    assert file.checkpoint.updates == 17
    obs, noise = observations(9), noises(9, ACT)
    parts: Any = layout.unflatten(obs)
    expected = SCALER.to_box(learner.target_actor.sample(obs, noise=noise))
    assert distance(run(path, parts["speed"], parts["camera"], noise), expected) <= 1e-5
    loaded = export_onnx(load_checkpoint(saved["a"]), path, candidates=1)
    assert loaded.action == file.action
    assert loaded.checkpoint.sha256 != file.checkpoint.sha256  # the hash of the weights alone


class Encoder(nn.Module):
    """Looks at an image."""

    features_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 2, 3), nn.Linear(2 * 2 * 2, 6)

    def forward(self, obs: Tensor) -> Tensor:
        return self.out(torch.relu(self.conv(obs.view(-1, 1, 4, 4))).flatten(1))


class Backbone(nn.Module):
    """A network that is not the default one."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features + ACT + 2, ACT)

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return torch.tanh(self.layer(torch.cat([obs, x, t[:, None], s[:, None]], 1)))


@pytest.mark.global_rng
@pytest.mark.slow  # torch's own exporter takes its time
@pytest.mark.parametrize("what", ["an image encoder", "a backbone", "a solver", "a sampler"])
def test_networks_of_your_own_go_through_torch(tmp_path: Path, what: str) -> None:
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(16,), steps=3), critic=QEnsembleConfig(hidden=(8,))
    )
    if what == "a solver":
        config = config.replace(actor=config.actor.replace(sampler=OdeSampler()))
    if what == "a sampler":
        config = config.replace(actor=config.actor.replace(sampler=JumpSampler(gamma=0.5)))
    obs_dim = 16 if what == "an image encoder" else OBS
    torch.manual_seed(0)
    learner = GTPLearner.build(
        obs_dim,
        ACT,
        config,
        encoder=Encoder() if what == "an image encoder" else None,
        network=Backbone(OBS) if what == "a backbone" else None,
    )
    layout = ObservationLayout((1, 4, 4)) if what == "an image encoder" else None
    path, n = tmp_path / "policy.onnx", 3 if what == "an image encoder" else 1
    file = export_onnx(learner, path, candidates=n, layout=layout, action_scaler=SCALER)
    actor = learner.target_actor
    for rows in (1, 7, 256):
        flat = torch.randn(rows, obs_dim)
        noise = keyed_noise(flat, n * actor.noise_dim()).view(rows, *file.noise.shape)
        obs = flat if layout is None else layout.unflatten(flat)
        assert isinstance(obs, Tensor)
        expected = SCALER.to_box(learner.act(flat, candidates=n, deterministic=True))
        assert distance(run(path, obs, noise), expected) <= 1e-5
    text = path.read_bytes()
    assert str(Path(__file__).parent).encode() not in text
    assert b"stack_trace" not in text
    with pytest.raises(ExportError, match="not the default one"):
        export_onnx(learner, path, candidates=n, layout=layout, precision="float16")
    for export in (export_onnx, export_torch):
        with pytest.raises(ExportError, match="too many jumps: got steps=33, expected at most 32"):
            export(learner, path, candidates=n, layout=layout, steps=33)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_written_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    learner, path = make().to(dtype), tmp_path / "policy.onnx"
    export_onnx(learner, path, candidates=1, action_scaler=SCALER)
    obs, noise = observations(5), noises(5, ACT)
    expected = SCALER.to_box(
        learner.target_actor.double().sample(obs.double(), noise=noise.double())
    )
    assert distance(run(path, obs, noise), expected) <= 1e-4


# --- the file


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    learner, path = make(), tmp_path / "policy.onnx"
    written = export_onnx(learner, path, steps=2, candidates=1, action_scaler=SCALER)
    assert read_policy_file(path) == written
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", written.opset)]
    assert {node.domain for node in model.graph.node} == {""}
    names = [entry.name for entry in (*model.graph.input, *model.graph.output)]
    assert names == ["obs", "noise", "action"]
    for entry in (*model.graph.input, *model.graph.output):
        assert entry.type.tensor_type.shape.dim[0].dim_param == "batch"
    first = path.read_bytes()
    export_onnx(learner, path, steps=2, candidates=1, action_scaler=SCALER)
    assert path.read_bytes() == first  # equal policies are equal files


@pytest.mark.skipif(
    [int(part) for part in pydantic.VERSION.split(".")[:2]] < [2, 9],
    reason="pydantic before 2.9 writes the same schema in other words",
)
def test_the_schema_is_the_documents() -> None:
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json_schema()


def test_the_pages_example_obeys_the_schema_and_every_field_is_described() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "policy-file.md"
    text = page.read_text(encoding="utf-8")
    example = text.split("```json\n")[1].split("```")[0]
    PolicyFile.from_json(example)
    fields = set(PolicyFile.model_fields)
    assert all(f"`{name}" in text for name in fields)


def test_the_page_names_every_operator(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "policy-file.md"
    text = page.read_text(encoding="utf-8").split("networks they are: ")[1].split(".")[0]
    path, used = tmp_path / "policy.onnx", set[str]()
    layout = ObservationLayout(HISTORIES["a dict"])
    past = GTPConfig(actor=FlowMapActorConfig(hidden=(8,), history=2), critic=None)
    cases: list[tuple[Any, dict[str, Any]]] = [
        *((make(**critic), {"candidates": 3}) for critic in CRITICS.values()),
        (make("one_step"), {"noise": "seeded"}),
        (make(), {"noise": "keyed", "precision": "float16", "layout": layout}),
        (GTPLearner.build(2 * OBS, ACT, past), {"layout": layout}),
    ]
    for policy, options in cases:
        export_onnx(policy, path, action_scaler=SCALER, **options)
        used |= {node.op_type for node in onnx.load(path).graph.node}
    assert used <= set(text.replace("\n", " ").replace(" ", "").split(","))


@pytest.mark.parametrize("name", ["steps", "candidates"])
@pytest.mark.parametrize("export", [export_onnx, export_torch])
def test_numbers_that_are_given_count(tmp_path: Path, name: str, export: Any) -> None:
    with pytest.raises(ExportError, match=f"`{name}` is out of range: got 0, expected an integer"):
        export(make(), tmp_path / "policy", **{name: 0})


GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.onnx"))


@pytest.mark.parametrize("path", GOLDEN, ids=[p.stem for p in GOLDEN])
def test_files_of_every_version_are_read_for_ever(path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert read_policy_file(path).format_version == expected["format_version"]
    inputs = [torch.tensor(values) for values in expected["inputs"]]
    torch.testing.assert_close(
        run(path, *inputs), torch.tensor(expected["action"]), atol=1e-5, rtol=0
    )


def test_there_is_a_file_of_every_version() -> None:
    assert [p.stem for p in GOLDEN] == ["version_1", "version_1_mode", "version_2"]


DAMAGED: dict[str, tuple[Any, str]] = {
    "a later version": ({"format_version": 3, "package_version": "9.9"}, r"version 3.*9\.9 wrote"),
    "no version": ({"format_version": "1"}, "format_version '1'"),
    "no object": ([1], "format_version None"),
    "a wrong field": ({"format_version": 1}, "a wrong `package_version`"),
    "wrong throughout": (
        {"format_version": 1, "noise": {"shape": [0] * 40_000}},
        "more than 32768",
    ),
    "wrong bounds": ({"format_version": 1, "action": {"low": [None] * 40_000}}, "low with None"),
    "huge bounds": ({"format_version": 1, "action": {"high": [1e30] * 40_000}}, "high with 1e"),
    "no JSON": ("{", "no JSON"),
}


@pytest.mark.parametrize(("found", "match"), DAMAGED.values(), ids=DAMAGED.keys())
def test_what_cannot_be_read_says_why(found: Any, match: str) -> None:
    with pytest.raises(PolicyFileError, match=match):
        PolicyFile.from_json(found if isinstance(found, str) else json.dumps(found))


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(PolicyFileError, match="cannot be read"):
        read_policy_file(path)
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(PolicyFileError, match=r"cannot be read|no metadata"):
        read_policy_file(path)
    export_onnx(FlowMapActor(2, 1), path)
    model = onnx.load(path)
    model.ClearField("metadata_props")
    onnx.save(model, path)
    with pytest.raises(PolicyFileError, match=f"no metadata `{PROPERTY}`"):
        read_policy_file(path)


@pytest.mark.parametrize("name", ["a\0b", "", "x" * 5_000])
def test_what_is_no_name_of_a_file_cannot_be_written(name: str) -> None:
    with pytest.raises(ExportError, match="cannot be written"):
        export_onnx(FlowMapActor(2, 1), name)


@pytest.mark.parametrize("size", [2**30, 2**40])
def test_a_file_that_is_a_hole_is_not_read(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.onnx"
    with open(path, "wb") as file:
        file.truncate(size)
        if stored_bytes(file.fileno()) > 2**20:
            pytest.skip("this file system fills holes")
    with peak_memory() as peak, pytest.raises(PolicyFileError, match="more than a model has"):
        read_policy_file(path)
    assert peak[0] < SLACK


MODELS: dict[str, bytes] = {
    "nothing": b"",
    "no graph": b"\x72\x00",
    "two graphs": b"\x3a\x00" * 2,
    "two properties": b"\x3a\x00" + b"\x72\x0c\x0a\x0agtp_policy" * 2,
    "no text": b"\x3a\x00" + b"\x72\x0f\x0a\x0agtp_policy\x12\x01\xff",
    "a part cut off": b"\x3a\x09",
    "a number cut off": b"\x08\xff",
    "a number without an end": b"\x08" + b"\xff" * 11,
    "a group": b"\x3a\x00\x0b",
    "too many parts": b"\x3a\x00" + b"\x42\x00" * 20_000,
}


@pytest.mark.parametrize("data", MODELS.values(), ids=MODELS.keys())
def test_what_is_no_model_cannot_be_read(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(data)
    with pytest.raises(PolicyFileError, match="cannot be read"):
        read_policy_file(tmp_path / "a.onnx")


@pytest.mark.parametrize("part", [b"\x0a\x00", b"\x2a\x00", b"\x0a\x02\x2a\x00"])
def test_nothing_is_built_of_a_graph(tmp_path: Path, part: bytes) -> None:
    """Each empty operator or constant of two bytes took 160 or more."""
    path = tmp_path / "a.onnx"
    expected = export_onnx(FlowMapActor(2, 1), path)
    model = onnx.load(path)
    model.ClearField("graph")
    many = part * (4_000_000 // len(part))
    length = bytes([len(many) >> shift & 0x7F | 0x80 for shift in (0, 7, 14)] + [len(many) >> 21])
    path.write_bytes(b"\x3a" + length + many + model.SerializeToString())
    with peak_memory() as peak:
        assert read_policy_file(path) == expected
    assert peak[0] < 2**24


def test_a_document_takes_a_small_multiple_of_its_letters() -> None:
    start = '{"format_version": 1, "action": {"low": ['
    for part, most in (("[]", 2), ("{}", 2), ("[" * 500 + "]" * 500, 2), ("-9", 48)):
        text = start + ",".join([part] * (4_000_000 // len(part))) + "]}}"
        with peak_memory() as peak, pytest.raises(PolicyFileError, match="cannot be read"):
            PolicyFile.from_json(text)
        assert peak[0] <= 2**24 + most * len(text)


# --- refusals


def test_what_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    path, bc = tmp_path / "policy.onnx", make("gtp_bc")
    drawing = several("gtp")
    drawing.config = drawing.config.replace(deterministic_choice=SoftmaxChoice())
    with pytest.raises(ExportError, match=r"SoftmaxChoice.*choice=ArgmaxChoice\(\)"):
        export_onnx(drawing, path)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (bc, {"candidates": 3}, "needs a critic"),
        (bc, {"noise": "none"}, "Unknown `noise`"),
        (bc, {"precision": "int8"}, "Unknown `precision`"),
        (bc, {"seed": 3}, "noise='seeded'"),
        *(
            (bc, {"noise": "seeded", "seed": seed}, "`seed` is out of range: got")
            for seed in (-1, 2**24, 1.0, True, "3")
        ),
        (bc, {"layout": ObservationLayout((2,))}, "`layout` is of another"),
        (bc, {"steps": 1_001}, "too many jumps: got steps=1001, expected at most 1000"),
        (bc, {"action_scaler": ActionScaler([0.0], [1.0])}, "`action_scaler` is of another"),
        (object(), {}, "no policy to export: got object"),
    ]
    for policy, options, match in cases:
        with pytest.raises(ExportError, match=match):
            export_onnx(policy, path, **options)
    with torch.no_grad():
        bc.target_actor.network.mlp[0].bias[0] = torch.nan
    with pytest.raises(DataError, match=r"NaN or infinity in network\.mlp\.0\.bias"):
        export_onnx(bc, path)
    assert not list(tmp_path.iterdir())
    export_onnx(drawing, path, choice=ArgmaxChoice())


class Moody(nn.Module):
    """A network that computes something else on every call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(OBS + ACT, ACT), 0

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(torch.cat([obs, x], 1)) * self.calls


@pytest.mark.global_rng
@pytest.mark.slow
def test_a_file_that_does_not_act_as_the_policy_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    path.write_bytes(b"what was there")
    actor = FlowMapActor(OBS, ACT, FlowMapActorConfig(steps=2), network=Moody())
    with pytest.raises(ExportError, match="does not act as the policy does"):
        export_onnx(actor, path)
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(ExportError, match="cannot be written"):
        export_onnx(FlowMapActor(2, 1), tmp_path / "file" / "policy.onnx")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ExportError, match="cannot be written"):
        export_onnx(FlowMapActor(2, 1), folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_an_export_changes_neither_the_policy_nor_the_process(tmp_path: Path) -> None:
    learner = make()
    obs, before = observations(3), {k: v.clone() for k, v in learner.actor.state_dict().items()}
    action = learner.act(obs, deterministic=True)
    with torch.device("meta"), torch.inference_mode():
        export_onnx(learner, tmp_path / "policy.onnx")
    assert torch.equal(learner.act(obs, deterministic=True), action)
    assert all(torch.equal(v, before[k]) for k, v in learner.actor.state_dict().items())
    assert all(p.requires_grad for p in learner.actor.parameters())


def test_without_onnx_the_message_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from gtp_policy import FlowMapActor\n"
        "from gtp_policy.errors import MissingDependencyError\n"
        "from gtp_policy.export import export_onnx\n"
        "try:\n    export_onnx(FlowMapActor(1, 1), 'a.onnx')\n"
        "except MissingDependencyError as error:\n    print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install '.[export]'" in found.stdout
