"""Minari datasets made on the spot from arrays: no environment, nothing from outside."""

import warnings
from collections.abc import Callable
from pathlib import Path

import minari
import numpy as np
import pytest
from gymnasium.spaces import Box
from minari.data_collector import EpisodeBuffer


@pytest.fixture
def minari_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that Minari takes for its own during a test."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def make_minari(minari_root: Path) -> Callable[..., minari.MinariDataset]:
    """Writes episodes as the dataset `toy/set-v0`."""

    def make(*episodes: EpisodeBuffer, **options: object) -> minari.MinariDataset:
        spaces = {
            "observation_space": Box(-np.inf, np.inf, (3,), np.float64),
            "action_space": Box(-1, 1, (2,)),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Minari wants an author, a description and so on
            return minari.create_dataset_from_buffers(
                "toy/set-v0", list(episodes), **(spaces | options)
            )

    return make
