"""C1 to C3: what is wrong with data is said, and what is merely odd does no harm."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gtp_policy import ActionScaler, GTPLearner, OfflineDataset
from gtp_policy.errors import DataError, GTPError
from tests.reliability.outcome import Outcome, unsaid
from tests.reliability.small import ACT, OBS, digests, flat_state, make_config, make_dataset

FIELDS = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
FLOATS = FIELDS[:4]
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))

Arrays = dict[str, Any]


def arrays(rows: int, *, obs_dim: int = OBS, action_dim: int = ACT, seed: int = 0) -> Arrays:
    """Returns plain arguments of `OfflineDataset.from_arrays`: episodes of 10, all truncated."""
    rng = np.random.default_rng(seed)
    return {
        "obs": rng.normal(size=(rows, obs_dim)),
        "action": rng.uniform(-1, 1, size=(rows, action_dim)),
        "reward": rng.normal(size=rows),
        "next_obs": rng.normal(size=(rows, obs_dim)),
        "terminated": np.zeros(rows),
        "truncated": (np.arange(rows) % 10 == 9).astype(float),
        "low": [-1.0] * action_dim,
        "high": [1.0] * action_dim,
    }


# --- C1 -------------------------------------------------------------------------------------------


def not_finite(count: int | None = None) -> Outcome:
    """C1: NaN or infinity in data, a minibatch or an observation is an error with field and row."""
    outcome = Outcome()
    rows = 40_000  # more than one chunk of the builder, so that rows are counted across chunks
    rng = np.random.default_rng(1)
    cases = itertools.product(FIELDS, NOT_FINITE, ("one", "all"))
    for field, value, extent in itertools.islice(cases, count):
        given = arrays(rows)
        row = int(rng.integers(rows)) if extent == "one" else 0
        given[field][row if extent == "one" else slice(None)] = value
        load = functools.partial(OfflineDataset.from_arrays, **given)
        outcome.add(f"{field} {value} {extent}", _not_finite_problem(load, field, row))
    learner = GTPLearner.build(OBS, ACT, make_config(200))
    good = OfflineDataset.from_arrays(**arrays(64)).transitions
    steps = itertools.product((*good._fields[:5], "observation"), NOT_FINITE)
    for field, value in itertools.islice(steps, None if count is None else 0):
        row = int(rng.integers(64))
        if field == "observation":
            obs = good.obs.clone()
            obs[row] = value
            use: Callable[[], Any] = functools.partial(learner.act, obs)
        else:
            column = getattr(good, field).clone()
            column[row] = value
            use = functools.partial(learner.update, good._replace(**{field: column}))
        before = digests(learner)
        problem = _not_finite_problem(use, "obs" if field == "observation" else field, row)
        if digests(learner) != before:
            problem = "changed the learner"
        outcome.add(f"{field} {value} at work", problem)
    outcome.worst = f"{len(outcome.failures)} not named"
    return outcome


def _not_finite_problem(use: Callable[[], Any], field: str, row: int) -> str | None:
    try:
        use()
    except DataError as error:
        # The row is a whole word: row 12 is not in "row 123".
        named = f"row {row}" in [" ".join(pair) for pair in itertools.pairwise(_words(error))]
        return unsaid(error, f"`{field}`") or (None if named else f"row {row} unnamed: {error}")
    except Exception as error:
        return f"raised {error!r}"
    return "was loaded"


def _words(error: Exception) -> list[str]:
    return str(error).replace(",", " ").replace(":", " ").replace(".", " ").split()


# --- C2 -------------------------------------------------------------------------------------------


def degenerate_datasets() -> dict[str, Callable[[], Arrays]]:
    """Returns thirty datasets at the edge of what a dataset is."""

    def changed(rows: int = 50, **changes: Any) -> Callable[[], Arrays]:
        dims = {key: changes.pop(key) for key in ("obs_dim", "action_dim") if key in changes}
        return lambda: arrays(rows, **dims) | changes

    def steps_of_one(rows: int, end: str, **changes: Any) -> Callable[[], Arrays]:
        ends = {"terminated": np.zeros(rows), "truncated": np.zeros(rows), end: np.ones(rows)}
        return changed(rows, **ends, **changes)

    rng = np.random.default_rng(2)
    scales = np.array([1.0, 1e-6, 1e6])
    outlier = np.zeros(50)
    outlier[7] = 1e10
    return {
        "no row": changed(0),
        "an empty list": changed(0, obs=[]),
        "one row, terminated": steps_of_one(1, "terminated"),
        "one row, truncated": steps_of_one(1, "truncated"),
        "one row, unfinished": changed(1),
        "one row without a next one": changed(1, next_obs=None),
        "two rows": changed(2),
        "two rows, one transition": changed(2, next_obs=None),
        "all terminated": steps_of_one(50, "terminated"),
        "all truncated": steps_of_one(50, "truncated"),
        "all truncated, nothing next": steps_of_one(50, "truncated", next_obs=None),
        "both flags everywhere": changed(terminated=np.ones(50), truncated=np.ones(50)),
        "constant observations": changed(obs=np.ones((50, OBS)), next_obs=np.ones((50, OBS))),
        "constant action": changed(action=np.full((50, ACT), 0.3)),
        "constant reward": changed(reward=np.full(50, -1.0)),
        "everything constant": changed(
            obs=np.zeros((50, OBS)),
            next_obs=np.zeros((50, OBS)),
            action=np.zeros((50, ACT)),
            reward=np.zeros(50),
        ),
        "one dimension each": changed(obs_dim=1, action_dim=1),
        "observations of rank one": changed(obs=np.zeros(50)),
        "scales far apart": changed(obs=rng.normal(size=(50, OBS)) * scales),
        "observations of 1e30": changed(obs=np.full((50, OBS), 1e30)),
        "rewards of 1e6": changed(reward=rng.normal(size=50) * 1e6),
        "rewards of 1e30": changed(reward=np.full(50, 1e30)),
        "one reward of 1e10": changed(reward=outlier),
        "denormal rewards": changed(reward=np.full(50, 1e-40)),
        "actions at the bounds": changed(action=np.where(rng.random((50, ACT)) < 0.5, -1.0, 1.0)),
        "a box of width 1e-6": changed(
            action=np.full((50, ACT), 5e-7), low=[0.0] * ACT, high=[1e-6] * ACT
        ),
        "a box of width 2e30": changed(low=[-1e30] * ACT, high=[1e30] * ACT),
        "discount 0": changed(gamma=0.0),
        "discount 1 and no end": changed(gamma=1.0, truncated=np.zeros(50)),
        "more dimensions than rows": changed(3, obs_dim=100, action_dim=30),
    }


def degenerate(count: int, *, updates: int = 200) -> Outcome:
    """C2: a degenerate dataset is a typed error, or trains for 200 updates and stays finite."""
    outcome, refused = Outcome(), []
    for name, make in itertools.islice(degenerate_datasets().items(), count):
        try:
            problem = _training_problem(make(), updates)
        except GTPError as error:
            refused.append(f"{name}: {type(error).__name__}")
            problem = unsaid(error)
        except Exception as error:
            problem = f"raised {error!r}"
        outcome.add(name, problem)
    outcome.details["refused"] = refused
    trained = outcome.passed - len(refused)
    outcome.worst = f"{len(refused)} refused, {trained} finite after {updates} updates"
    return outcome


def _training_problem(given: Arrays, updates: int) -> str | None:
    dataset = OfflineDataset.from_arrays(**given)
    learner = GTPLearner.from_dataset(dataset, make_config(updates, ema_rate=0.02, steps=1))
    for _ in range(updates):
        metrics = learner.update(dataset.sample(8, generator=learner.stream("batch")))
        if learner.updates % 50 == 0:
            metrics.to_floats()
    bad = [name for name, value in flat_state(learner).items() if not value.isfinite().all()]
    action = learner.act(dataset.transitions.obs, generator=learner.stream("check"))
    if not (action.isfinite().all() and action.abs().max() <= 1):
        bad.append("action")
    return f"not finite after {updates} updates: {bad}" if bad else None


# --- C3 -------------------------------------------------------------------------------------------

# A case is a call on odd input, and what it must do: give exactly what the plain input gives, or
# raise a typed error whose message holds these words besides "got" and "expected".
Case = tuple[str, Callable[[], Any], Callable[[], Any] | tuple[str, ...]]


def odd_inputs(count: int | None = None) -> Outcome:
    """C3: odd types, layouts, ranks, devices and values at every entrance."""
    outcome, errors, alike = Outcome(), 0, 0
    for name, call, wanted in itertools.islice(itertools.chain(*entrances()), count):
        try:
            result = call()
        except GTPError as error:
            errors += 1
            problem = f"refused: {error}" if callable(wanted) else unsaid(error, *wanted)
        except Exception as error:
            problem = f"raised {type(error).__name__}, which is no GTPError: {error}"
        else:
            problem = "was accepted"
            if callable(wanted):
                problem = None if _same(result, wanted()) else "gave another result"
                alike += problem is None
        outcome.add(name, problem)
    outcome.worst = f"{errors} refused with a typed error, {alike} as plain input"
    return outcome


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, tuple):
        return all(_same(a, b) for a, b in zip(left, right, strict=True))
    return torch.equal(torch.as_tensor(left), torch.as_tensor(right))


def entrances() -> list[Iterator[Case]]:
    """Returns the cases of each place where data comes in."""
    return [_into_dataset(), _into_act(), _into_update(), _into_sample(), _into_scaler()]


def _swapped(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(array.dtype.newbyteorder())


def _spread(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.repeat(array, 2, axis=0)[::2]


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


HARMLESS: dict[str, Callable[[npt.NDArray[Any]], Any]] = {
    "float32": lambda a: a.astype(np.float32),
    "float16": lambda a: a.astype(np.float16),
    "int64": lambda a: a.astype(np.int64),
    "uint8": lambda a: a.astype(np.uint8),
    "other byte order": _swapped,
    "not contiguous": _spread,
    "Fortran order": np.asfortranarray,
    "backwards": lambda a: a[::-1].copy()[::-1],
    "read-only": _frozen,
    "a list": lambda a: a.tolist(),
    "a tensor": torch.from_numpy,
}
WRONG: dict[str, Callable[[npt.NDArray[Any]], Any]] = {
    "bool": lambda a: a.astype(bool),
    "complex": lambda a: a.astype(complex),
    "text": lambda a: a.astype(str),
    "objects": lambda a: a.astype(object),
    "dates": lambda a: a.astype("datetime64[s]"),
    "one row more": lambda a: np.concatenate([a, a[:1]]),
    "one rank more": lambda a: a[..., None],
    "a scalar": lambda a: 1.0,
    "ragged": lambda a: [[1.0], [1.0, 2.0]],
    "on the meta device": lambda a: torch.from_numpy(a).to("meta"),
    "with a gradient": lambda a: torch.from_numpy(a).requires_grad_(),
}


def _into_dataset() -> Iterator[Case]:
    # Numbers that every type can hold.
    rng = np.random.default_rng(3)
    plain = arrays(20)
    plain |= {name: rng.integers(0, 2, plain[name].shape).astype(float) for name in FLOATS}

    def load(**changes: Any) -> Callable[[], Any]:
        return lambda: tuple(OfflineDataset.from_arrays(**(plain | changes)).transitions.present())

    for field, (name, odd) in itertools.product(FLOATS, HARMLESS.items()):
        yield f"dataset, {field}: {name}", load(**{field: odd(plain[field])}), load()
    for field, (name, odd) in itertools.product(FLOATS, WRONG.items()):
        # Where the first field sets the number of rows, the second one is found to differ.
        blamed = f"`{'action' if (field, name) == ('obs', 'one row more') else field}`"
        yield f"dataset, {field}: {name}", load(**{field: odd(plain[field])}), (blamed,)
    outside = plain["action"].copy()
    outside[5, 1] = 1.5
    yield "dataset, action outside the Box", load(action=outside), ("`action`", "1.5", "row 5")
    clipped = np.minimum(outside, 1.0)
    given = load(action=outside, out_of_bounds="clip")
    yield "dataset, action outside, clipped", given, load(action=clipped)


def _into_act() -> Iterator[Case]:
    learner = GTPLearner.build(OBS, ACT, make_config(200))
    obs = torch.arange(4.0 * OBS).view(4, OBS)

    def act(given: Any) -> Callable[[], Tensor]:
        generator = torch.Generator()
        return lambda: torch.as_tensor(learner.act(given, generator=generator.manual_seed(0)))

    harmless = {
        "not contiguous": obs.repeat_interleave(2, 0)[::2],
        "Fortran order": obs.t().contiguous().t(),
        "with a gradient": obs.clone().requires_grad_(),
        "numpy": obs.numpy(),
        "numpy, float64": obs.numpy().astype(np.float64),
        "numpy, int64": obs.numpy().astype(np.int64),
        "numpy, other byte order": _swapped(obs.numpy()),
        "numpy, read-only": _frozen(obs.numpy()),
    }
    for name, given in harmless.items():
        yield f"act: {name}", act(given), act(obs)
    yield "act: no row", act(obs[:0]), lambda: torch.zeros(0, ACT)
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool)
    for dtype in dtypes:
        yield f"act: {dtype}", act(obs.to(dtype)), ("`obs`", "dtype")
    yield "act: complex", act(obs.to(torch.complex64)), ("`obs`", "dtype")
    yield "act: meta device", act(obs.to("meta")), ("`obs`", "device")
    wrong = {
        "rank 1": obs[0],
        "rank 3": obs[None],
        "a scalar": torch.tensor(1.0),
        "too wide": torch.zeros(4, OBS + 1),
        "transposed": obs.t(),
        "numpy of rank 1": obs[0].numpy(),
        "numpy, complex": obs.numpy().astype(complex),
        "numpy, text": obs.numpy().astype(str),
        "a list": obs.tolist(),
        "None": None,
    }
    for name, given in wrong.items():
        yield f"act: {name}", act(given), ("`obs`",)


def _into_update() -> Iterator[Case]:
    batch = make_dataset().transitions
    batch = batch.map(lambda x: x[:8].clone())

    def update(**changes: Any) -> Callable[[], Tensor]:
        def call() -> Tensor:
            learner = GTPLearner.build(OBS, ACT, make_config(200))
            learner.update(batch._replace(**changes))
            return torch.cat([p.flatten() for p in learner.parameters()])

        return call

    for field, value in zip(batch._fields, batch.present(), strict=False):
        harmless = {
            "not contiguous": value.repeat_interleave(2, 0)[::2],
            "with a gradient": value.clone().requires_grad_(),
        }
        for name, given in harmless.items():
            yield f"update, {field}: {name}", update(**{field: given}), update()
        wrong = {
            "float64": value.double(),
            "float16": value.half(),
            "int64": value.long(),
            "meta device": value.to("meta"),
            "one rank more": value[..., None],
            "one row more": torch.cat([value, value[:1]]),
            "numpy": value.numpy(),
            "None": None,
        }
        for name, given in wrong.items():
            # The observation sets the number of rows; the next field is found to differ.
            blamed = "action" if (field, name) == ("obs", "one row more") else field
            yield f"update, {field}: {name}", update(**{field: given}), (f"`{blamed}`",)


def _into_sample() -> Iterator[Case]:
    learner, dataset = GTPLearner.build(OBS, ACT, make_config(200)), make_dataset()
    obs, noise = torch.zeros(4, OBS), torch.ones(4, ACT)

    def sample(given: Any) -> Callable[[], Tensor]:
        return lambda: learner.actor.sample(obs, noise=given)

    for name, given in {"one row": noise[:1], "rank 1": noise[0], "too wide": obs}.items():
        yield f"sample, noise: {name}", sample(given), ("`noise`",)
    for name, given in {"float64": noise.double(), "meta device": noise.to("meta")}.items():
        yield f"sample, noise: {name}", sample(given), ("`noise`",)
    yield "sample, noise: expanded", sample(noise[:1].expand(4, -1)), sample(noise)
    for size in (0, -1):
        draw = lambda size=size: dataset.sample(size, generator=torch.Generator())  # noqa: E731
        yield f"minibatch of {size}", draw, ("`batch_size`",)


def _into_scaler() -> Iterator[Case]:
    scaler = ActionScaler([-2.0] * ACT, [2.0] * ACT)
    action = np.array([[0.0, 1.0], [-2.0, 2.0]])

    def unit(given: Any) -> Callable[[], Any]:
        return lambda: np.asarray(scaler.to_unit(given), np.float64)

    for name in ("float32", "float16", "int64", "other byte order", "Fortran order", "read-only"):
        if name != "float32":
            yield f"scaler: {name}", unit(HARMLESS[name](action)), unit(action)
    for name, given in {"too wide": np.zeros((2, 3)), "a scalar": np.zeros(())}.items():
        yield f"scaler: {name}", unit(given), ("`action`",)
    boxes: dict[str, tuple[Any, Any]] = {
        "infinite": ([-np.inf], [1.0]),
        "NaN": ([np.nan], [1.0]),
        "empty": ([1.0], [1.0]),
        "reversed": ([1.0], [-1.0]),
        "of two lengths": ([-1.0], [1.0, 1.0]),
        "of rank 2": ([[-1.0]], [[1.0]]),
        "without a dimension": ([], []),
        "as wide as float32": ([-3.4e38], [3.4e38]),
    }
    for name, (low, high) in boxes.items():
        make = lambda low=low, high=high: ActionScaler(low, high)  # noqa: E731
        yield f"bounds {name}", make, ()
