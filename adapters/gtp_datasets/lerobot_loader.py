"""LeRobot's datasets of version 3: a folder of Parquet files and videos, read without LeRobot."""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from gtp_datasets._arrow import ParquetFile, column
from gtp_datasets._fields import Wanted, choose_all, ends_of
from gtp_datasets._hdf5 import check_expansion, located, stored_bytes, table_bytes
from gtp_datasets._images import decoded
from gtp_datasets._video import Clip, read_clips
from gtp_policy import OfflineDataset
from gtp_policy.episodes import FLAGS, Episode, read_episode
from gtp_policy.errors import DataError
from gtp_policy.records import decode

Array = npt.NDArray[Any]
_MOST_JSON = 2**24
_MOST_AXES = 32
_MOST_SECONDS = 1e9  # thirty years of one video
_NUMBERS = re.compile("(u?int|float)(8|16|32|64)|bool")
_EPISODE, _FRAME = "episode_index", "frame_index"  # the numbers of a row's episode, and in it
_KEY = re.compile(r"[\w\-]+(\.[\w\-]+)*")  # of a video: a folder, and no other one


def load_lerobot(
    path: str | os.PathLike[str],
    *,
    obs: Wanted = None,
    action: Wanted = None,
    reward: Wanted = None,
    terminated: Wanted = None,
    low: npt.ArrayLike | None = None,
    high: npt.ArrayLike | None = None,
    gamma: float = 0.99,
    out_of_bounds: Literal["error", "clip"] = "error",
    unbounded: Literal["error", "data"] = "error",
    memory: int = 8 * 2**30,
    device: torch.device | str = "cpu",
) -> OfflineDataset:
    """Reads a ``LeRobotDataset`` of version 3 from a folder on this machine; downloads nothing.

    Read are ``meta/info.json``, the rows in ``data/chunk-*/file-*.parquet`` and, for videos, where
    their frames are, in ``meta/episodes``, and the frames themselves in ``videos``. Paths that
    ``info.json`` names are not followed: the layout of version 3 is fixed.

    An episode has as many observations as actions: it counts as cut at its end unless
    ``terminated`` says otherwise, and its last row is left out where it does. Its rows stand in
    the order of ``frame_index``, where there is one.

    Args:
        path: The folder that holds ``meta``.
        obs: Features that are observed, a name, a pattern or a list. None: all numbers among
            ``observation.*``; images and videos have to be named. Several become a Dict.
        action: Feature with the actions. None: ``action``.
        reward: Feature with the rewards. None: ``next.reward`` if there is one; False: none.
        terminated: Feature that says that an episode has ended by itself, e.g. ``"next.success"``.
            None: nothing does. ``next.done`` stands at the end of every episode, cut ones included.
        low: Lower bounds of the actions, of their shape or a scalar; the folder does not hold them.
        high: Upper bounds of the actions, likewise.
        gamma: Discount factor, in [0, 1].
        out_of_bounds: Whether actions outside the bounds raise or are clipped.
        unbounded: Whether a dimension without known bounds raises, or takes the limits of the
            data, with a warning.
        memory: Bytes that images and what is made from them may take: videos are packed so well
            that the size of the folder is no bound.
        device: Where the table lives.

    Returns:
        The dataset, actions scaled to [-1, 1].

    Raises:
        DataError: If the folder is of another version or cannot be read, or a feature is missing or
            wrong; file, episode and row are named.
        EmptyDatasetError: If there is no episode or no transition is left.
        UnsupportedSpaceError: If bounds are missing or no Box.
        MissingDependencyError: If pyarrow is not installed, or for videos PyAV.

    References:
        | LeRobot: State-of-the-art Machine Learning for Real-World Robotics (Cadene et al., 2024)
        | https://github.com/huggingface/lerobot

    Example:
        >>> from gtp_datasets import load_lerobot
        >>> load_lerobot("missing")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        gtp_policy.errors.DataError: `missing` is no LeRobotDataset: got no meta/info.json, ...
    """
    root = located(path)
    info = _info(root)
    features: Mapping[str, Any] = info["features"]
    numbers = [name for name, f in features.items() if _NUMBERS.fullmatch(str(f["dtype"]))]
    if obs is None:
        obs = [name for name in numbers if name.startswith("observation.")]
    if reward is None and "next.reward" in numbers:
        reward = "next.reward"
    chosen = choose_all(
        [*features],
        {
            **dict.fromkeys(FLAGS, False),
            "obs": obs,
            "action": action,
            "reward": reward,
            "terminated": terminated,
            "next_obs": False,
            "episode": False,
        },
    )
    images = [name for name in chosen["obs"] if name not in numbers]
    table = _rows(root, features, chosen, images)
    ends = ends_of(table[_EPISODE], _EPISODE)
    if _FRAME in table:
        _check_order(table, ends)
    stops = np.flatnonzero(ends) + 1
    shapes = {name: _shape(name, features[name]) for name in chosen["obs"]}
    if images:
        # The frames as they are, and as the numbers that observation and next observation are.
        pixels = sum(math.prod(shapes[name]) for name in images)
        needed = len(ends) * pixels * (1 + 2 * np.dtype(np.float32).itemsize)
        if needed > memory:
            raise DataError(
                f"The images of `{root}` take too much memory: got {needed} bytes for {images}, "
                f"expected at most {memory}. Pass memory= if the machine has it, or name fewer in "
                "obs=."
            )
        table |= _frames(root, features, images, table, stops, float(info["fps"]))

    def episodes() -> Iterator[Episode]:
        for start, stop in zip([0, *stops[:-1].tolist()], stops.tolist(), strict=True):
            number = int(table[_EPISODE][start])
            one = {
                field: {name: table[name][start:stop] for name in names}
                for field, names in chosen.items()
            }
            fields: dict[str, Any] = {
                field: dict(parts) if field == "obs" and len(parts) > 1 else _one(field, parts)
                for field, parts in one.items()
            }
            yield read_episode(fields, f"Episode {number}")

    return OfflineDataset.from_episodes(
        episodes(),
        low=low,
        high=high,
        obs_keys=chosen["obs"] if len(chosen["obs"]) > 1 else None,
        gamma=gamma,
        out_of_bounds=out_of_bounds,
        unbounded=unbounded,
        device=device,
        source=f"LeRobot {root.name}",
    )


def _check_order(table: Mapping[str, Array], ends: npt.NDArray[np.bool_]) -> None:
    """Raises where the row behind another one of its episode is not the next frame."""
    frames = table[_FRAME]
    # In float64: differences of small or unsigned integers begin anew behind the largest.
    steps = np.diff(frames.astype(np.float64))
    wrong = np.flatnonzero((steps != 1) & ~ends[:-1])
    if wrong.size:
        row = int(wrong[0]) + 1
        raise DataError(
            f"`{_FRAME}` is not in order: got {frames[row]} behind {frames[row - 1]} at row {row}, "
            f"in episode {table[_EPISODE][row]}, expected numbers that rise by one. Sort "
            "the rows by episode and frame, and make an episode that lacks some into two."
        )


def _one(field: str, parts: Mapping[str, Array]) -> Array:
    if len(parts) == 1:
        return next(iter(parts.values()))
    if field != "action":
        raise DataError(f"`{field}` is of several features: got {list(parts)}, expected one.")
    return np.concatenate([part.reshape(len(part), -1) for part in parts.values()], 1)


def _info(root: Path) -> dict[str, Any]:
    """Returns what meta/info.json says, as far as it is needed and fits."""
    path = root / "meta" / "info.json"
    shown = f"`{root}` is no LeRobotDataset"
    if not os.path.isfile(path):
        raise DataError(
            f"{shown}: got no meta/info.json, expected a folder of version 3 with meta and data."
        )
    if path.stat().st_size > _MOST_JSON:
        raise DataError(
            f"{shown}: got a meta/info.json of {path.stat().st_size} bytes, expected "
            f"at most {_MOST_JSON}."
        )
    try:
        info = decode(path.read_bytes())
        version, features = str(info["codebase_version"]), info["features"]
        for name, feature in features.items():
            if not isinstance(feature["dtype"], str):
                raise TypeError(f"the dtype of {name}")
            _shape(name, feature)
        fps = float(info["fps"])
    except DataError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{shown}: got {type(error).__name__} ({error}) in meta/info.json, expected "
            "codebase_version, fps and features with dtype and shape."
        ) from error
    if not version.startswith("v3."):
        raise DataError(
            f"{shown} of a version that is read: got {version}, expected v3. Convert it with "
            "LeRobot's own script."
        )
    if not 0 < fps < 1e4:
        raise DataError(f"{shown}: got fps={fps} in meta/info.json, expected frames per second.")
    return dict(info)


def _shape(name: str, feature: Mapping[str, Any]) -> tuple[int, ...]:
    shape = feature["shape"]
    if (
        not isinstance(shape, list)
        or len(shape) > _MOST_AXES
        or not all(type(n) is int and 0 < n < 2**20 for n in shape)
    ):
        raise DataError(
            f"`{name}` has no shape: got {shape!r:.80} in meta/info.json, expected a list of at "
            f"most {_MOST_AXES} integers."
        )
    return tuple(shape)


def _rows(
    root: Path, features: Mapping[str, Any], chosen: Mapping[str, list[str]], images: Sequence[str]
) -> dict[str, Any]:
    """Returns the columns of all data files, one below the other; images as they are packed."""
    names = [name for columns in chosen.values() for name in columns]
    packed = [name for name in images if features[name]["dtype"] == "image"]
    for name in names:
        if name not in images or name in (_EPISODE, _FRAME):
            if not _NUMBERS.fullmatch(features[name]["dtype"]):
                raise DataError(
                    f"`{name}` holds no numbers: got {features[name]['dtype']}, expected numbers."
                )
    plain = [name for name in names if name not in images]
    # Each once: a feature may be several fields, and its rows would stand there twice.
    wanted = list(dict.fromkeys([*plain, *packed, _EPISODE]))
    paths = _files(root / "data")
    files = [ParquetFile(path, [*wanted, _FRAME]) for path in paths]
    if _FRAME not in wanted and any(_FRAME in file.names for file in files):
        wanted.append(_FRAME)
    rows = sum(file.rows for file in files)
    if not files or not rows:
        raise DataError(
            f"`{root}` holds no rows: got {len(files)} files in data/chunk-*, expected some."
        )
    width, height = (
        sum(math.prod(_shape(n, features[n])) for n in chosen[field] if n not in images)
        for field in ("obs", "action")
    )
    declared = sum(file.declared for file in files) + table_bytes(rows, width, height)
    on_disk = sum(stored_bytes(path) for path in paths)
    check_expansion(declared, on_disk, str(root / "data"))
    parts: dict[str, list[Any]] = {name: [] for name in wanted}
    for path, file in zip(paths, files, strict=True):
        if missing := [name for name in wanted if name not in file.names]:
            raise DataError(
                f"`{root}` lacks columns: got {file.names}, expected {missing} too, which "
                "meta/info.json or another file names."
            )
        table = file.read()
        for name in wanted:
            own = table.column(name)
            if name in packed:
                parts[name].append(own)
            else:
                # The two have one number per row, whatever is said of them.
                shape = () if name in (_EPISODE, _FRAME) else _shape(name, features[name])
                if shape == (1,) and _scalar(own):
                    shape = ()
                try:
                    parts[name].append(column(name, own, shape))
                except DataError as error:  # the row is one of this file
                    raise DataError(f"{path.relative_to(root)}: {error}") from error
    return {
        name: arrays if name in packed else np.concatenate(arrays) for name, arrays in parts.items()
    }


def _scalar(values: Any) -> bool:  # noqa: ANN401 - pyarrow has no types
    """Returns whether rows are plain numbers, as LeRobot keeps what has the shape (1,)."""
    import pyarrow.types as kinds

    return bool(kinds.is_primitive(values.type))


def _files(folder: Path) -> list[Path]:
    """Returns the Parquet files below a folder in their order."""
    return sorted(p for p in folder.glob("chunk-*/file-*.parquet") if p.is_file())


def _frames(
    root: Path,
    features: Mapping[str, Any],
    images: Sequence[str],
    table: Mapping[str, Any],
    stops: npt.NDArray[np.int64],
    fps: float,
) -> dict[str, Array]:
    """Returns the images of every row, uint8, in the shape that their feature has."""
    starts = np.append(0, stops[:-1])
    found = {}
    for name in images:
        shape, kind = _shape(name, features[name]), features[name]["dtype"]
        if len(shape) != 3 or 3 not in (shape[0], shape[2]) or not _KEY.fullmatch(name):
            raise DataError(
                f"`{name}` is no image that is read: got {kind} of shape {shape}, expected three "
                "colours, first or last."
            )
        first = shape[2] != 3
        height, width = shape[1:] if first else shape[:2]
        pixels = np.empty((int(stops[-1]), height, width, 3), np.uint8)
        if kind == "image":
            _unpack(name, table[name], pixels)
        elif kind == "video":
            clips = _clips(root, name, table[_EPISODE][starts], starts, stops, pixels)
            for (chunk, file), own in clips.items():
                video = root / "videos" / name / f"chunk-{chunk:03d}" / f"file-{file:03d}.mp4"
                read_clips(video, own, fps)
        else:
            raise DataError(f"`{name}` holds no numbers: got {kind}, expected numbers or images.")
        found[name] = np.moveaxis(pixels, -1, 1) if first else pixels
    return found


def _unpack(name: str, chunks: Sequence[Any], pixels: npt.NDArray[np.uint8]) -> None:
    """Decodes images that stand in the rows, one at a time."""
    rows = (row for chunk in chunks for row in chunk)
    seen: dict[bytes, int] = {}  # an image of many rows stands in the file once, and costs once
    for i, row in enumerate(rows):
        packed = row.as_py()
        data = packed.get("bytes") if isinstance(packed, dict) else None
        if not isinstance(data, bytes):
            raise DataError(
                f"`{name}` holds no image at row {i}: got {type(packed).__name__} without bytes, "
                "expected JPEG or PNG. Paths in a file are not followed."
            )
        before = seen.setdefault(data, i)
        pixels[i] = (
            pixels[before] if before < i else decoded(data, pixels.shape[1:], f"{name} at row {i}")
        )


def _clips(
    root: Path,
    name: str,
    numbers: Array,
    starts: Array,
    stops: Array,
    pixels: npt.NDArray[np.uint8],
) -> dict[tuple[int, int], list[Clip]]:
    """Returns where the frames of each episode are, by chunk and file of the video."""
    columns = [f"videos/{name}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")]
    wanted = [_EPISODE, "length", *columns]
    places: dict[int, tuple[int, int, float, int]] = {}
    for path in _files(root / "meta" / "episodes"):
        file = ParquetFile(path, wanted)
        if missing := [column for column in wanted if column not in file.names]:
            raise DataError(
                f"`{path}` lacks columns: got {file.names[:20]}, expected {missing} too."
            )
        rows = file.read()
        parts = [column(n, rows.column(n), ()) for n in wanted]
        for name_of, part in zip(wanted, parts, strict=True):
            if not np.isfinite(part).all():
                row = int(np.flatnonzero(~np.isfinite(part))[0])
                raise DataError(
                    f"`{path}` lacks a number: got {part[row]} as {name_of} at row {row}, expected "
                    "where the frames of the episode are."
                )
            if name_of != columns[-1] and (odd := np.flatnonzero(part % 1)).size:
                raise DataError(
                    f"`{path}` has no whole number: got {part[odd[0]]} as {name_of} at row "
                    f"{odd[0]}, expected an integer."
                )
        index, length, chunk, number, since = parts
        for i in range(file.rows):
            if int(index[i]) in places:
                raise DataError(
                    f"`{path}` names an episode again: got {int(index[i])} at row {i}, expected "
                    "each once. Download it again."
                )
            places[int(index[i])] = (
                int(chunk[i]),
                int(number[i]),
                float(since[i]),
                int(length[i]),
            )
    clips: dict[tuple[int, int], list[Clip]] = {}
    for episode, start, stop in zip(numbers.tolist(), starts, stops, strict=True):
        place = places.get(int(episode))
        fits = place is not None and place[3] == stop - start and 0 <= place[2] < _MOST_SECONDS
        if place is None or not fits or min(place[:2]) < 0:
            raise DataError(
                f"Episode {episode} of `{root}` is not where meta/episodes says: got {place}, "
                f"expected chunk, file, time and the length {stop - start} of its video."
            )
        clips.setdefault(place[:2], []).append(Clip(place[2], pixels[start:stop]))
    return clips
