"""GTP for Stable-Baselines3: ``GTP("MlpPolicy", env, dataset=...)``, used as SB3's own algorithms.

With a dataset it learns offline and never touches the environment; without one it is an ordinary
off-policy algorithm. Needs the extra ``sb3``.
"""

try:
    import stable_baselines3 as _host  # noqa: F401 - only whether it is there
except ImportError as error:
    from gtp_policy.errors import MissingDependencyError, how_to_install

    raise MissingDependencyError(
        f"Stable-Baselines3 is not installed: got `{error}`. {how_to_install('sb3')}"
    ) from error

from gtp_sb3.gtp import GTP
from gtp_sb3.policies import CnnPolicy, GTPPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["GTP", "CnnPolicy", "GTPPolicy", "MlpPolicy", "MultiInputPolicy"]
