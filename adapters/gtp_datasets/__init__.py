"""Offline datasets for gtp-policy: from every common kind of file; a report, normalised scores.

Loading builds no environment, downloads nothing and executes nothing that a file contains. Minari
and h5py (extra ``datasets``), pyarrow (``csv``) and PyAV (``lerobot``) are imported on first use.
"""

from gtp_datasets.conversion import convert
from gtp_datasets.csv_loader import load_csv
from gtp_datasets.d4rl_loader import load_d4rl_hdf5
from gtp_datasets.dataset_report import DatasetReport, Summary, report
from gtp_datasets.lerobot_loader import load_lerobot
from gtp_datasets.loader import load_dataset
from gtp_datasets.minari_loader import load_minari, minari_reference
from gtp_datasets.npz_loader import load_npz
from gtp_datasets.ogbench_loader import load_ogbench
from gtp_datasets.robomimic_loader import load_robomimic
from gtp_datasets.scores import (
    D4RL_REFERENCE,
    NormalizedScore,
    ReferenceScores,
    normalized_score,
)

__all__ = [
    "D4RL_REFERENCE",
    "DatasetReport",
    "NormalizedScore",
    "ReferenceScores",
    "Summary",
    "convert",
    "load_csv",
    "load_d4rl_hdf5",
    "load_dataset",
    "load_lerobot",
    "load_minari",
    "load_npz",
    "load_ogbench",
    "load_robomimic",
    "minari_reference",
    "normalized_score",
    "report",
]
