"""Offline datasets for gtp-policy: Minari, D4RL's HDF5, OGBench; a report, normalised scores.

Loading builds no environment, downloads nothing and executes nothing that a file contains. Minari
and h5py (extra ``datasets``) are imported on first use.
"""

from gtp_datasets.d4rl_loader import load_d4rl_hdf5
from gtp_datasets.dataset_report import DatasetReport, Summary, report
from gtp_datasets.minari_loader import load_minari, minari_reference
from gtp_datasets.ogbench_loader import load_ogbench
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
    "load_d4rl_hdf5",
    "load_minari",
    "load_ogbench",
    "minari_reference",
    "normalized_score",
    "report",
]
