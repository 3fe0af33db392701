"""Policies as files that run without this package, and as repositories of the Hugging Face Hub."""

from gtp_policy.export.files import export_onnx, export_torch, read_policy_file
from gtp_policy.export.hub import from_pretrained, model_card, push_to_hub, save_pretrained
from gtp_policy.export.policy_file import PolicyFile
from gtp_policy.export.source import ObservationFacts, PolicySource, Surroundings

__all__ = [
    "ObservationFacts",
    "PolicyFile",
    "PolicySource",
    "Surroundings",
    "export_onnx",
    "export_torch",
    "from_pretrained",
    "model_card",
    "push_to_hub",
    "read_policy_file",
    "save_pretrained",
]
