"""Plugin of pytest: GTP in the place of an algorithm, in the host's own tests of it.

`tests.hosts_own` loads it, and says by the environment variable what takes whose place. Only tests
that concern the algorithm run: those that have its class as a parameter, or have no algorithm as a
parameter and name it.

What GTP refuses because it has no such part is left out of the calls, and the table says in how
many tests. What cannot be tested at all is excluded for a stated reason; such a test has to fail,
so that the list stays as short as it can be.
"""

import inspect
import os
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest

VARIABLE = "GTP_HOSTS_OWN"


class Exclusion(NamedTuple):
    """Tests that cannot be passed: a pattern of their ids, in which suites, and why."""

    tests: str
    suites: str
    reason: str


_SDE = "gSDE is the host's exploration noise; a flow map draws its actions from noise by itself"
_ENTROPY = "there is no entropy coefficient, which this test looks at"
_SHARED = "a shared features extractor is refused: every network has its own"
_STANDING = "offline no environment is stepped: there is no observation at which it stands"
_HER = "offline no goals are relabelled: a replay buffer does that when it is sampled"
_N_STEP = "offline the dataset sums rewards, with_n_step(n), and n_steps is refused"
_BUFFER = "offline there is no replay buffer, which this test looks at"

# The tests of the same names in sb3-contrib look at less.
_SB3_OFFLINE = "(TD3|SAC|DDPG) offline"

EXCLUSIONS = (
    Exclusion(r"test_features?_extractor_target_net\[True", "", _SHARED),
    Exclusion(
        r"test_custom_offpolicy\[\w+-net_arch0\]",
        "",
        "net_arch=[] is refused: a flow map without a hidden layer is linear in its noise",
    ),
    Exclusion(r"test_state_dependent_noise|test_run.py::test_sde\[", "", _SDE),
    Exclusion(r"test_save_load_pytorch_var", "", _ENTROPY),
    Exclusion(r"test_her\.py::|test_her_normalization", "offline", _HER),
    Exclusion(r"test_n_step_replay\.py::(?!test_n_steps_with_dict_obs\[None)", "offline", _N_STEP),
    Exclusion(r"test_callbacks\.py::test_callbacks\[|test_set_env", _SB3_OFFLINE, _STANDING),
    Exclusion(r"test_save_load_replay_buffer|test_warn_buffer\[True", "offline", _BUFFER),
    Exclusion(r"test_no_resource_warning", "offline", _BUFFER),
    Exclusion(
        r"test_infinite_horizon\[False",
        "offline",
        "offline the dataset says what is a time limit, not an argument of the replay buffer",
    ),
    Exclusion(
        r"test_offpolicy_multi_env",
        _SB3_OFFLINE,
        "offline a timestep is one update, however many environments there are",
    ),
)

# Arguments of the hosts' algorithms and policies that name parts which GTP does not have.
_ALGORITHM = (
    "ent_coef",
    "policy_delay",
    "sde_sample_freq",
    "use_sde",
    "use_sde_at_warmup",
    "target_policy_noise",
    "top_quantiles_to_drop_per_net",
)
_POLICY = ("log_std_init", "n_quantiles", "use_expln")


class Choice(NamedTuple):
    """Arguments of the algorithm and of the policy that some tests get, by a pattern, and why."""

    tests: str
    algorithm: dict[str, Any]
    policy: dict[str, Any]
    reason: str


CHOICES = (
    Choice(r"test_identity\.py::test_continuous", {}, {"candidates": 16}, "advised online"),
    Choice(
        r"test_feature_extractor_target_net\[",
        {"learning_rate": 1e-3},
        {},
        "the default moves a layer norm by less than the test sees",
    ),
)


class Place(NamedTuple):
    """Whose place is taken: host's module, name of the algorithm there, and in which way.

    The way is "stock" for nobody, "online" and "offline", or for Tianshou by which of the two ways
    of construction: "constructor" and "from_buffer".
    """

    module: str
    algorithms: tuple[str, ...]
    way: str

    @classmethod
    def read(cls) -> "Place":
        """Reads what `tests.hosts_own` wrote."""
        module, algorithms, way = os.environ[VARIABLE].split(":")
        return cls(module, tuple(algorithms.split(",")), way)

    def __str__(self) -> str:
        return f"{self.module}:{','.join(self.algorithms)}:{self.way}"


class _Running:
    """Which test runs. A class in the host's place refers to it, and may go to another process."""

    item: pytest.Item | None = None

    def __reduce__(self) -> tuple[type["_Running"], tuple[()]]:
        return _Running, ()


_running = _Running()


def _note(what: str, argument: str) -> None:
    item = _running.item
    if item is not None and (what, argument) not in item.user_properties:
        item.user_properties.append((what, argument))


def _taken(module: str, name: str, way: str) -> Any:
    """Returns what stands in the algorithm's place."""
    if module == "tianshou.algorithm":
        return _for_tianshou(way)
    return _for_sb3(name, way)


def _for_sb3(name: str, way: str) -> Any:
    from gtp_sb3 import GTP

    class InItsPlace(GTP):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            for argument in kwargs.keys() & set(_ALGORITHM):
                _note("left out of the calls", argument)
                del kwargs[argument]
            policy = dict(kwargs.get("policy_kwargs") or {})
            for argument in policy.keys() & set(_POLICY):
                _note("left out of the calls", argument)
                del policy[argument]
            for tests, own, of_policy, reason in CHOICES:
                item = _running.item
                if item is not None and re.search(tests, item.nodeid):
                    kwargs, policy = own | kwargs, of_policy | policy
                    for argument, value in (own | of_policy).items():
                        _note("chosen in the calls", f"{argument}={value} ({reason})")
            if policy:
                kwargs["policy_kwargs"] = policy
            super().__init__(*args, **kwargs)
            if way == "offline" and kwargs.get("_init_setup_model", True):
                self.set_dataset(_collected(self.env))
                self.replay_buffer = None  # as where the dataset is there from the start

        @classmethod
        def load(cls, path: Any, env: Any = None, **kwargs: Any) -> Any:
            model = super().load(path, env, **kwargs)
            if way == "offline" and model.env is not None:
                model.set_dataset(_collected(model.env))
            return model

        def learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
            if len(args) < 3:
                kwargs.setdefault("tb_log_name", name)  # of the hosts' algorithms it is their own
            return super().learn(total_timesteps, *args, **kwargs)

    InItsPlace.__name__ = InItsPlace.__qualname__ = name  # in the names of the tests
    return InItsPlace


def _collected(env: Any, steps: int = 300) -> Any:
    """Returns what a random policy does, as the host's replay buffer: actions are scaled there."""
    from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
    from stable_baselines3.common.vec_env import unwrap_vec_normalize

    wrapper = unwrap_vec_normalize(env)
    env = env if wrapper is None else wrapper.venv  # whose statistics are the dataset's
    is_dict = hasattr(env.observation_space, "spaces")
    buffer = (DictReplayBuffer if is_dict else ReplayBuffer)(
        steps * env.num_envs,
        env.observation_space,
        env.action_space,
        device="cpu",
        n_envs=env.num_envs,
    )
    rng, box, obs = np.random.default_rng(0), env.action_space, env.reset()
    for _ in range(steps):
        unit = rng.uniform(-1, 1, (env.num_envs, *box.shape))
        action = (box.low + (unit + 1) / 2 * (box.high - box.low)).astype(box.dtype)
        following, reward, done, infos = env.step(action)
        real = following
        for i in np.flatnonzero(done):
            last = infos[i]["terminal_observation"]
            if is_dict:
                real = {k: v.copy() for k, v in real.items()}
                for k in real:
                    real[k][i] = last[k]
            else:
                real = real.copy()
                real[i] = last
        buffer.add(obs, real, unit, reward, done, infos)
        obs = following
    return buffer


def _for_tianshou(way: str) -> Any:
    from gtp_policy import (
        AdvantageWeighter,
        AdvantageWeighterConfig,
        FlowMapActor,
        GTPConfig,
        QEnsemble,
    )
    from gtp_tianshou import GTP, GTPPolicy, dataset_from_buffer

    def make(*, policy: Any, gamma: float = 0.99, **left_out: Any) -> Any:
        for argument in left_out:
            _note("left out of the calls", argument)
        # 2,500 updates on rewards as large as these are few: weights of the default collapse.
        weighter = AdvantageWeighterConfig(eta=0.3)
        _note("chosen in the calls", "eta=0.3 (a short run on large rewards)")
        frame = inspect.currentframe()
        assert frame is not None
        assert frame.f_back is not None
        buffer = frame.f_back.f_locals["buffer"]  # which the test has read
        space = policy.action_space
        if way == "from_buffer":
            config = GTPConfig(weighter=weighter)
            return GTP.from_buffer(buffer, action_space=space, gamma=gamma, config=config)
        # The constructor takes networks as they are: scales of the data are the caller's to set.
        _note("set by hand", "scales of actions and observations, which from_buffer sets by itself")
        dataset = dataset_from_buffer(buffer, action_space=space, gamma=gamma)
        dims, actor = (
            (dataset.obs_dim, dataset.action_dim),
            GTPConfig().fit_to_actions(dataset).actor,
        )
        algorithm = GTP(
            policy=GTPPolicy(actor=FlowMapActor(*dims, actor), action_space=space),
            critic=QEnsemble(*dims),
            weighter=AdvantageWeighter(weighter),
            gamma=gamma,
        )
        algorithm.learner.set_observation_statistics_(*dataset.observation_statistics())
        return algorithm

    return make


def pytest_configure(config: pytest.Config) -> None:
    """Takes the place, before any test module is imported."""
    import importlib

    place = Place.read()
    config.addinivalue_line("markers", "expensive: the host's mark of tests that take long")
    if place.way == "stock":
        return
    host = importlib.import_module(place.module)
    for name in place.algorithms:
        setattr(host, name, _taken(place.module, name, place.way))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Selects the tests of the algorithm, and marks those that are excluded."""
    import importlib

    place = Place.read()
    host = importlib.import_module(place.module)
    ours = {name: getattr(host, name) for name in place.algorithms}
    selected = [i for i in items if isinstance(i, pytest.Function) and _concerns(i, ours)]
    config.hook.pytest_deselected(items=[i for i in items if i not in selected])
    items[:] = selected
    if place.way == "stock":
        return
    suite = f"{place.algorithms[0]} {place.way}"
    for item in items:
        for exclusion in EXCLUSIONS:
            if re.search(exclusion.tests, item.nodeid) and re.search(exclusion.suites, suite):
                item.add_marker(pytest.mark.xfail(strict=True, reason=exclusion.reason))
                break


def _concerns(item: pytest.Function, ours: Mapping[str, Any]) -> bool:
    spec = getattr(item, "callspec", None)
    values = () if spec is None else tuple(spec.params.values())
    if any(value is own for value in values for own in ours.values()):
        return True
    if any(isinstance(value, str) and value.upper() in ours for value in values):
        return True
    if any(isinstance(v, type) and hasattr(v, "learn") for v in values):
        return False  # of another algorithm
    named = set(_names(inspect.unwrap(item.function).__code__))
    return any(name in named and getattr(item.module, name, None) is ours[name] for name in ours)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Remembers which test runs, for the notes of what is left out."""
    _running.item = item  # there is one at a time
