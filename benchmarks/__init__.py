"""One script per figure that the documentation states.

This file makes the folder a package of its own: pyarrow 17 installs one of the same name, which
Python would take instead of a folder without it.
"""
