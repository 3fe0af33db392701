r"""The mathematics of GTP on plain tensors: no randomness, no modules, no state.

============================ ===============================================================
symbol                       meaning
============================ ===============================================================
:math:`a`, ``action``        action of the dataset, in [-1, 1]
:math:`x_t`, ``x``           noisy action, :math:`x_t = a + t z`
:math:`\Phi(x_t, t, s)`      flow map: :math:`x_t` moved along its trajectory to time s
:math:`\varphi(x_t, t, s)`   endpoint map, what the network predicts
:math:`A`, ``advantage``     Q(obs, action) - V(obs)
============================ ===============================================================

These functions are the reference: whatever computes the same faster is tested against them.
Shapes: B batch, O obs_dim, A action_dim.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from gtp_policy._contexts import transforming
from gtp_policy._numbers import as_int
from gtp_policy.errors import DataError, DeviceError, DistributedError, ShapeError
from gtp_policy.times import Path, TimeSchedule

_T = TypeVar("_T")
WRAPPERS = DistributedDataParallel, DataParallel, AveragedModel
"""Wrappers that keep the module they stand around as ``module``."""
# Of an interval of 20 octaves: what is left of it is less than float32 resolves.
HALVINGS = 24


class FlowMap(Protocol):
    r"""What every flow map offers: our network, the analytic oracles, and yours.

    Attributes:
        times: The time range, from which training and sampling take their grids.

    Example:
        >>> import torch
        >>> from gtp_policy.times import KarrasTimes
        >>> from gtp_policy.functional import flow_map
        >>> class Collapse:  # the exact flow map of data that is always 0
        ...     times = KarrasTimes()
        ...     def endpoint(self, obs, x, t, s):
        ...         return torch.zeros_like(x)
        ...     def __call__(self, obs, x, t, s):
        ...         return flow_map(x, self.endpoint(obs, x, t, s), t, s)
    """

    @property
    def times(self) -> TimeSchedule:
        """The time range; its ``grid`` gives the nodes of training and sampling."""
        ...

    def __call__(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r"""Returns :math:`\Phi(x_t, t, s)`.

        Args:
            obs: Observation, shape (B, O).
            x: Noisy action :math:`x_t`, shape (B, A).
            t: Start time, shape (B,), > 0.
            s: Target time, shape (B,), 0 <= s <= t.

        Returns:
            :math:`x_s`, shape (B, A).
        """
        ...

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r"""Returns :math:`\varphi(x_t, t, s)`; at s = t, the denoiser :math:`E[a | x_t]`.

        Args:
            obs: Observation, shape (B, O).
            x: Noisy action :math:`x_t`, shape (B, A).
            t: Start time, shape (B,), > 0.
            s: Target time, shape (B,), 0 <= s <= t.

        Returns:
            :math:`\varphi`, shape (B, A).
        """
        ...


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raises unless a tensor has exactly the expected shape.

    Torch broadcasts (B,) with (B, 1) to (B, B) without a word; every subtraction of two batch
    vectors goes through this check.

    Args:
        name: What the message calls the tensor.
        tensor: The tensor to look at.
        expected: The shape it must have.

    Raises:
        ShapeError: If the shapes differ.
        DataError: If it is no tensor.

    Example:
        >>> import torch
        >>> from gtp_policy.functional import check_shape
        >>> check_shape("reward", torch.zeros(3), (3,))
    """
    if not isinstance(tensor, Tensor):
        raise _no_tensor(name, tensor)
    if tuple(tensor.shape) != tuple(expected):
        raise ShapeError(
            f"`{name}` has the wrong shape: got {tuple(tensor.shape)}, expected {tuple(expected)}."
        )


def check_rows(name: str, tensor: Tensor, width: int) -> None:
    """Raises unless a tensor is a batch of rows of the expected width.

    Args:
        name: What the message calls the tensor.
        tensor: The tensor to look at.
        width: Expected size of the second of two dimensions.

    Raises:
        ShapeError: If the shape is not (B, width).
        DataError: If it is no tensor.

    Example:
        >>> import torch
        >>> from gtp_policy.functional import check_rows
        >>> check_rows("obs", torch.zeros(3), 3)
        Traceback (most recent call last):
        ...
        gtp_policy.errors.ShapeError: `obs` has the wrong shape: got (3,), expected (B, 3). Use \
obs[None] for a single row.
    """
    if not isinstance(tensor, Tensor):
        raise _no_tensor(name, tensor)
    if tensor.ndim != 2 or tensor.shape[1] != width:
        hint = f" Use {name}[None] for a single row." if tensor.ndim == 1 else ""
        raise ShapeError(
            f"`{name}` has the wrong shape: got {tuple(tensor.shape)}, expected (B, {width}).{hint}"
        )


def check_finite(name: str, tensor: Tensor, advice: str = "Look at where it comes from.") -> None:
    """Raises unless every number in rows on the CPU is finite; elsewhere the host would wait.

    What traces or transforms a computation has no numbers to look at, and is let through.

    Args:
        name: What the message calls the tensor.
        tensor: The tensor to look at, rows first.
        advice: What the message says to do.

    Raises:
        DataError: If a number is NaN or infinite; names its row.

    Example:
        >>> import torch
        >>> from gtp_policy.functional import check_finite
        >>> check_finite("obs", torch.tensor([[0.0], [torch.nan]]))
        Traceback (most recent call last):
        ...
        gtp_policy.errors.DataError: `obs` is not finite: got nan at row 1 of 2, expected finite \
numbers. Look at where it comes from.
    """
    if (
        transforming()
        or not tensor.is_cpu
        or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
    ):
        return
    # One number shows both; it may also be infinite where every term of it is finite.
    if math.isfinite(tensor.sum().item()):
        return
    bad = ~tensor.isfinite()
    if bad.any():
        place = tuple(int(i) for i in bad.nonzero()[0])
        raise DataError(
            f"`{name}` is not finite: got {float(tensor[place])} at row {place[0]} of "
            f"{len(tensor)}, expected finite numbers. {advice}"
        )


def check_actions(action: Tensor) -> None:
    """Raises unless a policy's actions on the CPU are finite: for values that go outside.

    Every observation that is finite is taken, also one so large that the networks overflow.

    Args:
        action: Actions for finite observations, rows first.

    Raises:
        DataError: If a number is NaN or infinite; names its row.

    Example:
        >>> import torch
        >>> from gtp_policy.functional import check_actions
        >>> check_actions(torch.tensor([[0.5, -1.0]]))
    """
    check_finite(
        "action",
        action,
        "The observation may be far outside of what the policy was trained on, or training has "
        "diverged: do not act on it.",
    )


class Placed(Protocol):
    """Anything with a dtype and a device, such as a tensor, an actor or a learner.

    Example:
        >>> from gtp_policy import FlowMapActor
        >>> from gtp_policy.functional import Placed
        >>> like: Placed = FlowMapActor(3, 2)
        >>> like.dtype
        torch.float32
    """

    @property
    def dtype(self) -> torch.dtype:
        """Its floating type."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        ...


def check_like(name: str, value: object, like: Placed) -> None:
    """Raises unless a value is a tensor of a certain dtype and on a certain device.

    Args:
        name: What the message calls the value.
        value: Anything.
        like: What has the right dtype and device.

    Raises:
        DataError: If it is no tensor, a sparse one, or one of another dtype or device.

    Example:
        >>> import torch
        >>> from gtp_policy.functional import check_like
        >>> check_like("reward", torch.zeros(3, dtype=torch.float64), torch.zeros(1))
        Traceback (most recent call last):
        ...
        gtp_policy.errors.DataError: `reward` has the wrong dtype: got torch.float64, expected \
torch.float32. Convert it with reward.to(torch.float32).
    """
    if not isinstance(value, Tensor):
        raise _no_tensor(name, value)
    if value.layout != torch.strided:
        raise DataError(
            f"`{name}` is sparse: got the layout {value.layout}, expected a dense tensor. Convert "
            f"it with {name}.to_dense()."
        )
    if value.dtype == like.dtype and value.device == like.device:
        return
    for kind in ("dtype", "device"):
        got, expected = getattr(value, kind), getattr(like, kind)
        if got != expected:
            # A device prints as its name; as an argument of `to` it needs quotes.
            target = f"'{expected}'" if kind == "device" else expected
            raise DataError(
                f"`{name}` has the wrong {kind}: got {got}, expected {expected}. Convert it with "
                f"{name}.to({target})."
            )


def check_kind(name: str, value: object, *kinds: type) -> None:
    """Raises a DataError unless a value is of a class that it has to be of.

    Args:
        name: What the message calls the value.
        value: Anything.
        *kinds: The classes.

    Raises:
        DataError: If it is of another one.

    Example:
        >>> from gtp_policy.functional import check_kind
        >>> check_kind("seed", 0, int)
    """
    if not isinstance(value, kinds):
        raise DataError(
            f"`{name}` is of the wrong kind: got {type(value).__name__}, expected "
            f"{' or '.join(kind.__name__ for kind in kinds)}."
        )


def check_dims(obs_dim: object, action_dim: object) -> tuple[int, int]:
    """Returns dimensions as plain integers, which are at least 1, and such that torch counts.

    Args:
        obs_dim: O.
        action_dim: A.

    Returns:
        Both, also where they came as integers of NumPy or torch.

    Raises:
        ValueError: If one of them is none.

    Example:
        >>> import numpy as np
        >>> from gtp_policy.functional import check_dims
        >>> check_dims(np.prod((3, 2)), 2)
        (6, 2)
    """
    obs, action = as_int(obs_dim), as_int(action_dim)
    if obs is None or action is None or not (1 <= obs < 2**31 and 1 <= action < 2**31):
        raise ValueError(
            f"Dimensions are out of range: got obs_dim={obs_dim!r}, action_dim={action_dim!r}, "
            "expected integers of at least 1, and below 2^31."
        )
    return obs, action


def check_device(device: torch.device | str) -> None:
    """Raises unless tensors can be made on a device.

    Args:
        device: The device.

    Raises:
        DataError: If there is no such device on this machine.

    Example:
        >>> from gtp_policy.functional import check_device
        >>> check_device("cpu")
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"`device` cannot be used: got {device!r} ({reason:.100}), expected a device of this "
            "machine, such as 'cpu'."
        ) from error


@contextmanager
def named_connection_errors(expected: str, group: Any = None) -> Iterator[None]:  # noqa: ANN401
    """Raises a typed error where torch's would not say that a process has lost another one.

    Args:
        expected: What the block waits for, for the message.
        group: Process group of `torch.distributed`; None for the default one.

    Yields:
        Nothing.

    Raises:
        DistributedError: If the connection fails.

    Example:
        >>> import tempfile, torch
        >>> from gtp_policy.functional import named_connection_errors
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.distributed.init_process_group(
        ...         "gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        ...     with named_connection_errors("its answer"):
        ...         raise RuntimeError("Connection closed by peer")
        Traceback (most recent call last):
        ...
        gtp_policy.errors.DistributedError: Process 0 of 1 has lost another one: got Connection \
closed by peer, expected its answer. Start all of them again from the last checkpoint.
        >>> torch.distributed.destroy_process_group()
    """
    try:
        yield
    except RuntimeError as error:
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        raise DistributedError(
            f"Process {rank} of {size} has lost another one: got {_first_line(error)}, expected "
            f"{expected}. Start all of them again from the last checkpoint."
        ) from error


@contextmanager
def named_device_errors(what: str, device: torch.device | str, size: int) -> Iterator[None]:
    """Raises a typed error where torch's would name neither what was to be done nor its size.

    Args:
        what: What the block does, for the message.
        device: Where.
        size: About how many bytes it needs.

    Yields:
        Nothing.

    Raises:
        DeviceError: If the device has no memory left for it, or another process has taken it.

    Example:
        >>> from gtp_policy.functional import named_device_errors
        >>> with named_device_errors("a table", "cuda", 2**20):
        ...     raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 MiB.")
        Traceback (most recent call last):
        ...
        gtp_policy.errors.DeviceError: There is no memory left on cuda for a table: got CUDA out \
of memory. Tried to allocate 1.00 MiB., expected about 1 MiB. End other processes on the device, \
or take less of it: a smaller batch_size, fewer seeds, data on the CPU.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"There is no memory left on {device} for {what}: got {_first_line(error)}, expected "
            f"about {max(size / 2**20, 1):.0f} MiB. End other processes on the device, or take "
            "less of it: a smaller batch_size, fewer seeds, data on the CPU."
        ) from error
    except RuntimeError as error:  # torch's errors of accelerators are some
        if not any(sign in str(error).lower() for sign in _TAKEN):
            raise
        raise DeviceError(
            f"{device} cannot be used for {what} (about {max(size / 2**20, 1):.0f} MiB): got "
            f"{_first_line(error)}, expected a device that this process may use. Another process "
            "may have taken it for itself: look at nvidia-smi, wait, or choose another device."
        ) from error


# What CUDA says of a device in exclusive mode that another process uses.
_TAKEN = (
    "busy or unavailable",
    "device is busy",
    "devices unavailable",
    "cudaerrordevicesunavailable",
)


def _first_line(error: BaseException) -> str:
    return f"{str(error).partition(chr(10))[0]:.200}"


def _no_tensor(name: str, value: object) -> DataError:
    return DataError(
        f"`{name}` is no tensor: got {type(value).__name__}, expected a torch tensor. Convert it "
        "with torch.as_tensor."
    )


def signal(t: Tensor, path: Path) -> Tensor:
    r"""Returns the factor of the action in a noisy action: 1, or 1 - t on the linear path.

    Args:
        t: Time, any shape.
        path: ``"ve"`` or ``"linear"``, as a schedule's ``path`` says.

    Returns:
        The same shape.

    Example:
        >>> import torch
        >>> from gtp_policy.functional import signal
        >>> signal(torch.tensor([0.25]), "linear")
        tensor([0.7500])
    """
    return torch.ones_like(t) if path == "ve" else 1 - t


def perturb(action: Tensor, t: Tensor, z: Tensor, path: Path = "ve") -> Tensor:
    r"""Adds noise to an action: on the default path, noise of standard deviation t.

    .. math:: x_t = a + t z \quad\text{or, on the linear path,}\quad x_t = (1 - t) a + t z,
        \quad z \sim N(0, I)

    Args:
        action: Action of the dataset, shape (B, A).
        t: Time, shape (B,), >= 0.
        z: Standard normal noise, shape (B, A).
        path: ``"ve"`` or ``"linear"``, as a schedule's ``path`` says.

    Returns:
        :math:`x_t`, shape (B, A).

    Raises:
        ShapeError: If the shapes disagree.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | Algorithm 1, https://arxiv.org/abs/2510.11499

    Example:
        >>> import torch
        >>> from gtp_policy.functional import perturb
        >>> perturb(torch.ones(1, 2), torch.tensor([0.5]), torch.ones(1, 2))
        tensor([[1.5000, 1.5000]])
    """
    check_shape("z", z, tuple(action.shape))
    check_shape("t", t, tuple(action.shape[:-1]))
    return signal(t, path).unsqueeze(-1) * action + t.unsqueeze(-1) * z


def flow_map(x: Tensor, endpoint: Tensor, t: Tensor, s: Tensor) -> Tensor:
    r"""Moves a noisy action along its trajectory from time t to time s.

    .. math:: \Phi(x_t, t, s) = \tfrac{s}{t} x_t + (1 - \tfrac{s}{t}) \varphi(x_t, t, s)

    Bit-exactly the identity at :math:`s = t` and bit-exactly the endpoint at :math:`s = 0`, for any
    finite endpoint: both hold by structure, not by training.

    Args:
        x: Noisy action :math:`x_t`, shape (B, A).
        endpoint: :math:`\varphi`, the network's prediction, shape (B, A), finite.
        t: Start time, shape (B,), in action units, > 0.
        s: Target time, shape (B,), 0 <= s <= t.

    Returns:
        :math:`x_s`, shape (B, A).

    Raises:
        ShapeError: If the shapes disagree.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | eq. 4, https://arxiv.org/abs/2510.11499

    Example:
        >>> import torch
        >>> from gtp_policy.functional import flow_map
        >>> flow_map(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([2.0]), torch.tensor([1.0]))
        tensor([[0.5000, 0.5000]])
    """
    check_shape("endpoint", endpoint, tuple(x.shape))
    check_shape("t", t, tuple(x.shape[:-1]))
    check_shape("s", s, tuple(x.shape[:-1]))
    ratio = (s / t).unsqueeze(-1)
    return ratio * x + (1 - ratio) * endpoint


class Preconditioning(NamedTuple):
    """The three factors that keep a denoiser's input and output near unit scale, each (B,).

    Attributes:
        skip: Factor of the noisy action in the output.
        out: Factor of the network's output.
        inner: Factor of the noisy action at the network's input.

    Example:
        >>> import torch
        >>> from gtp_policy.functional import precondition
        >>> precondition(torch.tensor([0.5]), 0.5).skip
        tensor([0.5000])
    """

    skip: Tensor
    out: Tensor
    inner: Tensor


def precondition(t: Tensor, sigma_data: float, path: Path = "ve") -> Preconditioning:
    r"""Returns the EDM factors at time t.

    .. math:: c_{skip} = \frac{\sigma_d^2}{t^2 + \sigma_d^2}, \quad
        c_{out} = \frac{t \sigma_d}{\sqrt{t^2 + \sigma_d^2}}, \quad
        c_{in} = \frac{1}{\sqrt{t^2 + \sigma_d^2}}

    On the linear path :math:`\sigma_d` is :math:`(1 - t) \sigma_d` under the roots, and
    :math:`c_{skip} = (1 - t) \sigma_d^2 / (t^2 + (1 - t)^2 \sigma_d^2)`. On both, a network that
    outputs 0 is exactly the denoiser of :math:`N(0, \sigma_d^2 I)`, and :math:`c_{in} x` has unit
    variance.

    Args:
        t: Time, shape (B,), >= 0.
        sigma_data: :math:`\sigma_d`, standard deviation of the actions, > 0.
        path: ``"ve"`` or ``"linear"``, as a schedule's ``path`` says.

    Returns:
        The factors, each of shape (B,).

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
        | table 1, https://arxiv.org/abs/2206.00364

    Example:
        >>> import torch
        >>> from gtp_policy.functional import precondition
        >>> precondition(torch.tensor([0.0]), 0.5).inner
        tensor([2.])
    """
    share = signal(t, path)
    variance = t.square() + share.square() * sigma_data**2
    inner = variance.rsqrt()
    return Preconditioning(sigma_data**2 / variance * share, t * sigma_data * inner, inner)


def advantage_weights(
    advantage: Tensor,
    eta: float,
    eps: float,
    max_weight: float,
    *,
    signed: bool = False,
    effective_share: float | None = None,
) -> Tensor:
    r"""Returns exponential advantage weights with the cap inside the exponent.

    .. math:: w = \exp \min\left(\eta \frac{\max(0, A)}{\mathrm{std}(A) + \epsilon},
        \ln w_{max}\right)

    Always in [1, w_max], exactly 1 where :math:`A \le 0`, and monotone in A. With
    :math:`w_{max} \to \infty` it is the printed formula wherever that is finite.

    ``signed`` leaves the :math:`\max(0, \cdot)` out, so that bad transitions weigh less than
    others, and bounds weights below too: they are in :math:`[1 / w_{max}, w_{max}]`.

    ``effective_share`` solves for the temperature instead of taking ``eta``: that at which the
    weights of this batch, before the cap, have an effective sample of that share, see
    `temperature_of`. The cap can only make the share larger.

    Deviation: the paper prints no cap, and its formula is infinite for two equal positive
    advantages (std 0) and for 5 +- 0.001. The cap belongs to the definition here; tested in
    ``tests/test_advantage_weighter.py``. The standard deviation is the population one over the
    batch, raw and not centred on 0.

    Args:
        advantage: A, shape (B,), finite; B >= 1.
        eta: Temperature, >= 0; 0 is behaviour cloning.
        eps: Floor added to the standard deviation, > 0.
        max_weight: Largest weight, >= 1.
        signed: Whether negative advantages count as they are and not as 0.
        effective_share: Share of B, in (0, 1); None: ``eta`` is the temperature.

    Returns:
        Weights, shape (B,), without gradient. NaN in gives NaN out, for the whole batch.

    Raises:
        ShapeError: If ``advantage`` is not of rank 1 or is empty.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | eq. 14, https://arxiv.org/abs/2510.11499
        | Signed: Advantage-Weighted Regression (Peng et al., 2019), eq. 9,
        | https://arxiv.org/abs/1910.00177

    Example:
        >>> import torch
        >>> from gtp_policy.functional import advantage_weights
        >>> advantage_weights(torch.tensor([-1.0, 0.0, 1.0]), 1.0, 1e-6, 100.0)
        tensor([1.0000, 1.0000, 3.4034])
        >>> advantage_weights(torch.tensor([-1.0, 0.0, 1.0]), 1.0, 1e-6, 100.0, signed=True)
        tensor([0.2938, 1.0000, 3.4034])
    """
    if not isinstance(advantage, Tensor):
        raise _no_tensor("advantage", advantage)
    if not advantage.is_floating_point():
        raise DataError(
            f"`advantage` has the wrong dtype: got {advantage.dtype}, expected a floating one."
        )
    check_shape("advantage", advantage, (max(advantage.numel(), 1),))
    advantage = advantage.detach()
    # w depends on A only through A / (std + eps). Scaling by max|A| first keeps the squares of
    # the standard deviation inside float32 for |A| as large as 1e30 and as small as 1e-30.
    tiny = torch.finfo(advantage.dtype).tiny
    scale = advantage.abs().amax().clamp_min(tiny)
    scaled = advantage / scale
    # A constant batch has std 0, and eps / scale may underflow: 0 / 0 without the floor.
    spread = (scaled.std(correction=0) + eps / scale).clamp_min(tiny)
    counted = scaled if signed else scaled.clamp_min(0)
    temperature: float | Tensor = eta
    if effective_share is not None:
        # Differences alone matter to the share, and stay finite where all advantages are equal.
        temperature = temperature_of((counted - counted.amax()) / spread, effective_share)
    exponent = temperature * counted / spread
    limit = math.log(max_weight)
    bounded = exponent.clamp(-limit, limit) if signed else exponent.clamp_max(limit)
    weight = bounded.exp().clamp_max(max_weight)
    # exp(log(cap)) may round below the cap; at the cap means exactly the cap.
    return torch.where(exponent >= limit, max_weight, weight)


def temperature_of(advantage: Tensor, effective_share: float) -> Tensor:
    r"""Returns the temperature at which exponential weights have a given effective sample.

    .. math:: \frac{(\sum_i w_i)^2}{B \sum_i w_i^2} = share, \quad w_i = e^{\eta A_i}

    The left-hand side falls from 1 as :math:`\eta` grows, so that halving an interval finds it. The
    interval is :math:`[2^{-10}, 2^{10}]`, at whose ends it stays where there is no solution. The
    number of steps is fixed, and nothing is copied to the host.

    A function of this batch alone, so that there is no state that a run would have to save.

    Args:
        advantage: Shape (B,), finite, in units of about one standard deviation; the largest is 0.
        effective_share: In (0, 1).

    Returns:
        :math:`\eta`, 0-d.

    References:
        | Maximum a Posteriori Policy Optimisation (Abdolmaleki et al., 2018), section 4.1, solves
        | for a temperature too, there of a divergence, https://arxiv.org/abs/1806.06920

    Example:
        >>> import torch
        >>> from gtp_policy.functional import effective_sample_size, temperature_of
        >>> advantage = torch.tensor([-2.0, -1.0, 0.0])
        >>> weight = (temperature_of(advantage, 0.5) * advantage).exp()
        >>> print(f"{float(effective_sample_size(weight) / 3):.4f}")
        0.5000
    """
    low, high = advantage.new_full((), -10.0), advantage.new_full((), 10.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        weight = (middle.exp2() * advantage).exp()
        share = weight.mean().square() / weight.square().mean()
        low = torch.where(share > effective_share, middle, low)
        high = torch.where(share > effective_share, high, middle)
    return ((low + high) / 2).exp2()


def effective_sample_size(weight: Tensor) -> Tensor:
    r"""Returns Kish's effective number of samples of a weighted batch.

    .. math:: \mathrm{ESS} = \frac{(\sum_i w_i)^2}{\sum_i w_i^2}

    Between 1 (one sample carries everything) and B (all weights equal).

    Args:
        weight: Weights, shape (..., B), > 0.

    Returns:
        ESS of each batch, shape (...).

    Example:
        >>> import torch
        >>> from gtp_policy.functional import effective_sample_size
        >>> effective_sample_size(torch.ones(256))
        tensor(256.)
    """
    # Weights up to 1e30 are legal, their squares overflow.
    weight = weight / weight.amax(-1, keepdim=True)
    return weight.sum(-1).square() / weight.square().sum(-1)


def td_target(reward: Tensor, discount: Tensor, next_q: Tensor) -> Tensor:
    r"""Returns the one-step bootstrapped target of the critic.

    .. math:: y = r + \gamma (1 - \mathrm{terminated}) \, Q(s', a')

    ``discount`` is :math:`\gamma (1 - \mathrm{terminated})`: zero where the episode ended by
    itself, never where a time limit cut it.

    Args:
        reward: r, shape (..., B).
        discount: The same shape, in [0, 1].
        next_q: Q(s', a'), the same shape.

    Returns:
        y, the same shape.

    Raises:
        ShapeError: If the shapes differ.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | eq. 16, https://arxiv.org/abs/2510.11499

    Example:
        >>> import torch
        >>> from gtp_policy.functional import td_target
        >>> td_target(torch.tensor([1.0]), torch.tensor([0.99]), torch.tensor([10.0]))
        tensor([10.9000])
    """
    check_shape("discount", discount, tuple(reward.shape))
    check_shape("next_q", next_q, tuple(reward.shape))
    return torch.addcmul(reward, discount, next_q)


def unwrapped(module: _T) -> _T:
    """Returns what torch's wrappers stand around: of processes, devices, averages, a compiler.

    For what a module says of itself. What is trained is called through its wrapper, which reduces
    the gradients of what it has computed itself.

    Args:
        module: Anything; what is no wrapper is returned as it is.

    Returns:
        The module inside ``DistributedDataParallel``, ``DataParallel``, ``AveragedModel`` and
        ``torch.compile``.

    Example:
        >>> from torch import nn
        >>> from gtp_policy.functional import unwrapped
        >>> layer = nn.Linear(2, 1)
        >>> unwrapped(nn.DataParallel(layer)) is unwrapped(layer) is layer
        True
    """
    found: Any = module
    while isinstance(found, nn.Module):
        inside = found._modules.get("_orig_mod")
        # To compare with an abstract class takes microseconds, and every action comes by here.
        if inside is None and "module" in found._modules and isinstance(found, WRAPPERS):
            inside = found.module
        if inside is None:
            break
        found = inside
    return cast(_T, found)


def frozen(module: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns a function that computes what a module does, without gradient to its parameters.

    A gradient to the inputs passes. A function that is no module is returned as it is.

    Args:
        module: The module; what it is called with is what the function takes.

    Returns:
        The function.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from gtp_policy.functional import frozen
        >>> layer, x = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
        >>> frozen(layer)(x).sum().backward()
        >>> layer.weight.grad is None, x.grad is None
        (True, False)
    """
    module = unwrapped(module)
    if not isinstance(module, nn.Module):
        return module
    constants = {name: value.detach() for name, value in module.named_parameters()}
    return lambda *inputs: torch.func.functional_call(module, constants, inputs)


@torch.no_grad()
def ema_(target: Iterable[Tensor], source: Iterable[Tensor], rate: float) -> None:
    r"""Moves target parameters towards the source, in place.

    .. math:: \theta^- \leftarrow (1 - \rho) \theta^- + \rho \theta

    Args:
        target: Parameters :math:`\theta^-`, changed in place.
        source: Parameters :math:`\theta`, in the same order.
        rate: ``ema_rate`` :math:`\rho`, in [0, 1]; 1 copies.

    Raises:
        ValueError: If ``rate`` is outside [0, 1], where the target runs away from the source.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | Algorithm 1, last line, https://arxiv.org/abs/2510.11499

    Example:
        >>> import torch
        >>> from gtp_policy.functional import ema_
        >>> target = torch.zeros(2)
        >>> ema_([target], [torch.ones(2)], 0.25)
        >>> target
        tensor([0.2500, 0.2500])
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"`rate` is no share: got {rate}, expected a number in [0, 1].")
    torch._foreach_lerp_(list(target), list(source), rate)


def sample_flow(
    flow_map: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    obs: Tensor,
    x: Tensor,
    grid: Tensor,
) -> Tensor:
    r"""Follows a flow map along a grid of times, one jump per interval.

    .. math:: x_{t_{i+1}} = \Phi(x_{t_i}, t_i, t_{i+1})

    Args:
        flow_map: Any flow map, or a function called like one.
        obs: Observation, shape (B, O), or whatever the function takes in its place.
        x: Start :math:`x_{t_0}`, shape (B, A).
        grid: Descending times, shape (K + 1,).

    Returns:
        All states including the start, shape (K + 1, B, A); the last is the action, not clipped.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | eq. 15, https://arxiv.org/abs/2510.11499

    Example:
        >>> import torch
        >>> from gtp_policy.functional import sample_flow
        >>> from gtp_policy.testing import PointMassFlowMap
        >>> oracle = PointMassFlowMap(torch.tensor([0.5]))
        >>> path = sample_flow(oracle, torch.zeros(1, 3), torch.ones(1, 1), oracle.times.grid(2))
        >>> path[-1]
        tensor([[0.5000]])
    """
    batch = x.shape[0]
    path = [x]
    for t, s in itertools.pairwise(grid):
        path.append(flow_map(obs, path[-1], t.expand(batch), s.expand(batch)))
    return torch.stack(path)
