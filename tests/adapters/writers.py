"""Files of each format, written as those who use it write them, from the same few episodes.

The layouts of robomimic and of LeRobot 3 are written out here from their documentation: neither
library is installed.
"""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Episode = dict[str, np.ndarray]
FPS = 10


def make_episodes(
    lengths: Sequence[int] = (4, 3, 5), seed: int = 0, ends: bool = True
) -> list[Episode]:
    """Episodes in float32; every other one ends by itself."""
    rng = np.random.default_rng(seed)
    return [
        {
            "obs": rng.normal(size=(n + 1, 3)).astype(np.float32),
            "action": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
            "reward": rng.normal(size=n).astype(np.float32),
            "terminated": (np.arange(n) == n - 1) & bool(ends and i % 2 == 0),
        }
        for i, n in enumerate(lengths)
    ]


def flat(episodes: Sequence[Episode], final: bool) -> dict[str, Any]:
    """The arguments of `from_arrays` for the same data; `final`: with the last observations."""
    ends = [np.arange(len(e["action"])) == len(e["action"]) - 1 for e in episodes]
    columns = {
        "obs": [e["obs"][:-1] for e in episodes],
        "action": [e["action"] for e in episodes],
        "reward": [e["reward"] for e in episodes],
        "terminated": [e["terminated"] for e in episodes],
        "truncated": [end & ~e["terminated"] for end, e in zip(ends, episodes, strict=True)],
    }
    if final:
        columns["next_obs"] = [e["obs"][1:] for e in episodes]
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def write_robomimic(path: Path, episodes: Sequence[Episode], next_obs: bool = True) -> Path:
    """As robomimic's `playback` and `dataset_states_to_obs` scripts write."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(len(e["action"]) for e in episodes)
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}})
        for i, episode in enumerate(episodes):
            demo = data.create_group(f"demo_{i}")
            steps = len(episode["action"])
            demo.attrs["num_samples"] = steps
            demo.attrs["model_file"] = "<mujoco/>"
            demo.create_dataset("actions", data=episode["action"])
            demo.create_dataset("states", data=np.zeros((steps, 7)))
            demo.create_dataset("rewards", data=episode["reward"])
            demo.create_dataset("dones", data=episode["terminated"].astype(np.int64))
            parts = {"robot0_eef_pos": slice(0, 2), "object": slice(2, 3)}
            for group, rows in (("obs", slice(0, -1)), ("next_obs", slice(1, None))):
                if group == "next_obs" and not next_obs:
                    continue
                for key, dims in parts.items():
                    kwargs = {"compression": "gzip"} if key == "object" else {}
                    demo.create_dataset(f"{group}/{key}", data=episode["obs"][rows, dims], **kwargs)
        names = [f"demo_{i}" for i in range(len(episodes))]
        file.create_dataset("mask/train", data=np.array(names[:-1], dtype="S8"))
        file.create_dataset("mask/valid", data=np.array(names[-1:], dtype="S8"))
    return path


def write_lerobot(
    root: Path,
    episodes: Sequence[Episode],
    *,
    frames: Sequence[np.ndarray] | None = None,
    images: Sequence[Sequence[bytes]] | None = None,
    per_file: int = 2,
    codec: str = "libx264rgb",
    **info: Any,
) -> Path:
    """A LeRobotDataset of version 3: several episodes per file, videos joined likewise."""
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": [3], "names": ["a", "b", "c"]},
        "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        "next.done": {"dtype": "bool", "shape": [1], "names": None},
        "next.success": {"dtype": "bool", "shape": [1], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        "frame_index": {"dtype": "int64", "shape": [1], "names": None},
        "episode_index": {"dtype": "int64", "shape": [1], "names": None},
        "index": {"dtype": "int64", "shape": [1], "names": None},
        "task_index": {"dtype": "int64", "shape": [1], "names": None},
    }
    key = "observation.images.top"
    if frames is not None or images is not None:
        shape = [*frames[0].shape[1:]] if frames is not None else [4, 5, 3]
        features[key] = {
            "dtype": "video" if frames is not None else "image",
            "shape": shape,
            "names": ["height", "width", "channels"],
        }
    said = {
        "codebase_version": "v3.0",
        "robot_type": "so101",
        "total_episodes": len(episodes),
        "total_frames": sum(len(e["action"]) for e in episodes),
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 500,
        "fps": FPS,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(said | info, indent=4))
    records, start = [], 0
    for first in range(0, len(episodes), per_file):
        number = first // per_file
        group = list(range(first, min(first + per_file, len(episodes))))
        tables, since = [], 0.0
        for i in group:
            episode, steps = episodes[i], len(episodes[i]["action"])
            last = np.arange(steps) == steps - 1
            columns = {
                "observation.state": _lists(episode["obs"][:-1]),
                "action": _lists(episode["action"]),
                "next.reward": pa.array(episode["reward"]),
                "next.done": pa.array(last),
                "next.success": pa.array(episode["terminated"]),
                "timestamp": pa.array(np.float32(np.arange(steps) / FPS)),
                "frame_index": pa.array(np.arange(steps)),
                "episode_index": pa.array(np.full(steps, i)),
                "index": pa.array(np.arange(start, start + steps)),
                "task_index": pa.array(np.zeros(steps, np.int64)),
            }
            if images is not None:
                packed = [{"bytes": one, "path": f"{j}.png"} for j, one in enumerate(images[i])]
                kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
                columns[key] = pa.array(packed, kind)
            tables.append(pa.table(columns))
            record = {
                "episode_index": i,
                "tasks": ["push"],
                "length": steps,
                "data/chunk_index": 0,
                "data/file_index": number,
                "dataset_from_index": start,
                "dataset_to_index": start + steps,
            }
            if frames is not None:
                record |= {
                    f"videos/{key}/chunk_index": 0,
                    f"videos/{key}/file_index": number,
                    f"videos/{key}/from_timestamp": since,
                    f"videos/{key}/to_timestamp": since + steps / FPS,
                }
                since += steps / FPS
            records.append(record)
            start += steps
        data = root / "data" / "chunk-000" / f"file-{number:03d}.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(tables), data)
        if frames is not None:
            video = root / "videos" / key / "chunk-000" / f"file-{number:03d}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            write_video(video, np.concatenate([frames[i] for i in group]), codec)
    meta = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    meta.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(records), meta)
    pq.write_table(pa.table({"task_index": [0], "task": ["push"]}), root / "meta/tasks.parquet")
    (root / "meta" / "stats.json").write_text("{}")
    return root


def _lists(rows: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def write_video(path: Path, frames: np.ndarray, codec: str = "libx264rgb", fps: int = FPS) -> Path:
    """Without loss by default, so that what is decoded can be compared with what was there."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24" if codec.endswith("rgb") else "yuv420p"
        stream.options = {"crf": "0", "g": "2"} if codec.endswith("rgb") else {"g": "2"}
        for image in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_growing_video(path: Path, frames: np.ndarray, size: int, codec: str) -> Path:
    """The frames, and behind them one of size x size pixels that its own header announces."""
    large = av.CodecContext.create(codec, "w")
    large.width, large.height, large.pix_fmt = size, size, "yuv420p"
    large.framerate, large.time_base = Fraction(FPS), Fraction(1, FPS)
    black = av.VideoFrame.from_ndarray(np.zeros((size, size, 3), np.uint8), format="rgb24")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"g": "1"}
        images = [av.VideoFrame.from_ndarray(image, format="rgb24") for image in frames]
        for image in [*images, None]:
            for packet in stream.encode(image):
                container.mux(packet)
        for packet in [*large.encode(black.reformat(format="yuv420p")), *large.encode()]:
            last = av.Packet(bytes(packet))
            last.stream, last.time_base = stream, Fraction(1, FPS)
            last.pts = last.dts = len(frames)
            container.mux(last)
    return path
