"""Faster ways to compute what the reference computes, on plain tensors.

What is here never changes a result beyond rounding, and falls back to torch's own operators where
it would not be faster or not be differentiable. ``with using("reference"):`` switches it off.
"""

from gtp_policy.kernels.switch import explain, using

__all__ = ["explain", "using"]
