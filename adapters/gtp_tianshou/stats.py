"""What an update tells Tianshou's trainers and loggers."""

from dataclasses import dataclass

from tianshou.algorithm.algorithm_base import TrainingStats


@dataclass(kw_only=True)
class GTPTrainingStats(TrainingStats):
    """The metrics of an update as floats; what was not computed is None, and not logged.

    Fetching them is the only transfer from the device, so `GTP` does it once in ``log_every``
    updates; in between, the numbers of the last such update stand.

    Args:
        train_time: Seconds that this update took on the host, set by Tianshou.
        smoothed_loss: Moving averages, set by Tianshou's trainer.
        actor_loss: Weighted consistency + flow_weight * flow.
        consistency: Trajectory consistency loss, weighted.
        flow: Instantaneous flow loss, weighted.
        actor_grad_norm: Gradient norm of the actor before clipping.
        critic_loss: Mean squared TD error over members and transitions.
        critic_grad_norm: Gradient norm of the critic before clipping.
        q_mean: Mean value of the data's actions over members.
        advantage_mean: Mean advantage of the data's actions.
        advantage_std: Its population standard deviation.
        weight_mean: Mean weight.
        weight_max: Largest weight.
        weight_clipped: Fraction of weights at the cap.
        weight_ess: Effective sample size over batch size, in (0, 1]; near 0, a few transitions
            carry the update: lower eta or max_weight.
        guided_q: Mean value of the actor's own actions, with linear-Q guidance.
        ms_per_update: Mean milliseconds of an update since the numbers were fetched last, without
            sampling the batch.

    Example:
        >>> from gtp_tianshou import GTPTrainingStats
        >>> stats = GTPTrainingStats(actor_loss=1.0, consistency=0.5, flow=0.5,
        ...                          actor_grad_norm=2.0, ms_per_update=3.0)
        >>> sorted(stats.get_loss_stats_dict())
        ['actor_grad_norm', 'actor_loss', 'consistency', 'flow', 'ms_per_update']
    """

    actor_loss: float
    consistency: float
    flow: float
    actor_grad_norm: float
    critic_loss: float | None = None
    critic_grad_norm: float | None = None
    q_mean: float | None = None
    advantage_mean: float | None = None
    advantage_std: float | None = None
    weight_mean: float | None = None
    weight_max: float | None = None
    weight_clipped: float | None = None
    weight_ess: float | None = None
    guided_q: float | None = None
    ms_per_update: float
