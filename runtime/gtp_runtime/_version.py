"""The version, that of the gtp-policy release that it belongs to."""

__version__ = "0.1.0"
