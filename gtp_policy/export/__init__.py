"""Policies as files that run without this package: ONNX for any runtime, programs for torch."""

from gtp_policy.export.files import export_onnx, export_torch, read_policy_file
from gtp_policy.export.policy_file import PolicyFile
from gtp_policy.export.source import ObservationFacts, PolicySource

__all__ = [
    "ObservationFacts",
    "PolicyFile",
    "PolicySource",
    "export_onnx",
    "export_torch",
    "read_policy_file",
]
