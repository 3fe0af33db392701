"""Learners on disk: ``files`` what users call, ``document`` the content, ``bundle`` the bytes."""

from gtp_policy._stopping import StopSignal
from gtp_policy.checkpoint.files import (
    Checkpoint,
    CheckpointFolder,
    CheckpointInfo,
    latest_valid,
    load_checkpoint,
    read_metadata,
    restore_,
    save_checkpoint,
)

__all__ = [
    "Checkpoint",
    "CheckpointFolder",
    "CheckpointInfo",
    "StopSignal",
    "latest_valid",
    "load_checkpoint",
    "read_metadata",
    "restore_",
    "save_checkpoint",
]
