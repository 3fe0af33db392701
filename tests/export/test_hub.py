"""The Hub: a folder of files, and a stubbed endpoint that takes and gives them as the Hub does."""

import base64
import functools
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from gtp_policy import (
    ActionScaler,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    ObservationLayout,
    load_checkpoint,
)
from gtp_policy.checkpoint.bundle import content_id
from gtp_policy.errors import CheckpointError, DataError, ExportError, PolicyFileError
from gtp_policy.export import (
    from_pretrained,
    model_card,
    push_to_hub,
    read_policy_file,
    save_pretrained,
)

SCALER, LAYOUT = ActionScaler([-2.0, 0.0], [2.0, 1.0]), ObservationLayout((3,))
RECORD: dict[str, Any] = {
    "method": "gtp",
    "dataset": "maze/toy-v0",
    "data_note": "made | here <b>",
    "data_sha256": "a" * 64,
    "seed": 3,
    "status": "finished",
    "task": "toy",
    "evaluations": [
        {"update": 10, "returns": [0.0, 0.0], "success": [False, False]},
        {"update": 20, "returns": [1.0, 2.0], "success": [True, False]},
    ],
    "reference": {"min": 0.0, "max": 1.0, "source": "made up"},
    "provenance": {"python": "3.11"},
    "config": {"updates": 20},
}


def make(seed: int = 0) -> GTPLearner:
    config = GTPConfig(actor=FlowMapActorConfig(hidden=(8,)), critic=None)
    learner = GTPLearner.build(3, 2, config)
    learner.updates = 20
    return learner


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a commit of small files and a download need."""

    repositories: ClassVar[dict[str, dict[str, bytes]]] = {}
    tokens: ClassVar[list[str | None]] = []

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, content: object, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.tokens.append(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            self.repositories.setdefault("me/policy", {})
            self.answer({"url": f"http://{self.headers['Host']}/me/policy", "name": "me/policy"})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "deletedFile":
                    del self.repositories["me/policy"][line["value"]["path"]]
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.repositories["me/policy"][line["value"]["path"]] = content
            url = f"http://{self.headers['Host']}/me/policy/commit/1"
            self.answer({"success": True, "commitUrl": url, "commitOid": "1" * 40})
        else:  # the check of the card's head
            self.answer({"errors": [], "warnings": []})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            files = self.repositories["me/policy"].items()
            self.answer([{"type": "file", "path": p, "size": len(f), "oid": "0"} for p, f in files])
            return
        owner, name, _, _, file = (self.path.split("?")[0].strip("/").split("/", 4) + [""] * 5)[:5]
        found = self.repositories.get(f"{owner}/{name}", {}).get(file)
        if found is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(found).hexdigest()}"')
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(found)


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Hub.repositories.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def same(a: GTPLearner, b: GTPLearner) -> bool:
    obs = torch.linspace(-1, 1, 12).view(4, 3)
    return torch.equal(a.act(obs, deterministic=True), b.act(obs, deterministic=True))


@pytest.mark.global_rng  # huggingface_hub draws from it when it is imported
def test_a_folder_holds_checkpoint_file_and_card(tmp_path: Path) -> None:
    learner = make()
    (tmp_path / "result.json").write_text(json.dumps(RECORD))
    folder = save_pretrained(
        learner,
        tmp_path / "policy",
        action_scaler=SCALER,
        layout=LAYOUT,
        result=tmp_path / "result.json",
        command="python -m gtp_experiments run toy",
        license="mit",
    )
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "checkpoint.zip",
        "policy.onnx",
    ]
    loaded = from_pretrained(folder)
    assert same(loaded.learner, learner)
    assert loaded.action_scaler == SCALER
    digest = content_id(folder / "checkpoint.zip")
    assert read_policy_file(folder / "policy.onnx").checkpoint.sha256 == digest
    card = (folder / "README.md").read_text()
    head = card.split("---")[1]
    assert "license: mit" in head
    assert "library_name: gtp-policy" in head
    for line in (
        digest,
        "| data | maze/toy-v0 made \\| here &lt;b> |",
        "a" * 64,
        "| return at the end | 1.5, mean of 2 episodes after 20 updates |",
        "| success at the end | 50.0 % |",
        "| made with python | 3.11 |",
        "python -m gtp_experiments run toy",
        "| updates | 20 |",
    ):
        assert line in card
    # What was loaded is saved again with all that came with it.
    again = save_pretrained(loaded, tmp_path / "again", onnx=False)
    assert load_checkpoint(again / "checkpoint.zip").action_scaler == SCALER
    assert not (again / "policy.onnx").exists()


@pytest.mark.global_rng
@pytest.mark.slow  # torch's own exporter takes its time
def test_an_encoder_of_ones_own_is_exported_with_the_checkpoint(tmp_path: Path) -> None:
    encoder = torch.nn.Linear(3, 4)
    encoder.features_dim = 4
    torch.nn.init.eye_(encoder.weight)
    config = GTPConfig(actor=FlowMapActorConfig(hidden=(8,)), critic=None)
    learner = GTPLearner.build(3, 2, config, encoder=encoder)
    folder = save_pretrained(learner, tmp_path, action_scaler=SCALER, layout=LAYOUT)
    file = read_policy_file(folder / "policy.onnx")
    assert file.checkpoint.sha256 == content_id(folder / "checkpoint.zip")
    assert (file.action.low, file.action.high) == ((-2.0, 0.0), (2.0, 1.0))
    assert same(from_pretrained(folder, encoder=encoder).learner, learner)


def test_a_policy_goes_to_the_hub_and_comes_back(endpoint: str, tmp_path: Path) -> None:
    learner = make()
    url = push_to_hub(learner, "me/policy", endpoint=endpoint, token="hf_secret", result=RECORD)
    assert url == f"{endpoint}/me/policy/commit/1"
    assert sorted(Hub.repositories["me/policy"]) == ["README.md", "checkpoint.zip", "policy.onnx"]
    assert b"hf_secret" not in b"".join(Hub.repositories["me/policy"].values())
    options: dict[str, Any] = {"endpoint": endpoint, "cache_dir": tmp_path, "token": False}
    loaded = from_pretrained("me/policy", **options)
    assert same(loaded.learner, learner)
    assert loaded.learner.updates == 20
    # From the cache, without asking.
    Hub.repositories.clear()
    assert same(from_pretrained("me/policy", **options, local_files_only=True).learner, learner)
    with pytest.raises(CheckpointError, match="me/other cannot be loaded"):
        from_pretrained("me/other", **options)


def test_a_repository_keeps_no_file_of_an_earlier_policy(endpoint: str) -> None:
    for onnx in (False, True, False):
        push_to_hub(make(), "me/policy", endpoint=endpoint, token="hf_secret", onnx=onnx)
        assert ("policy.onnx" in Hub.repositories["me/policy"]) == onnx


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(depth):
        found = {"a": found}
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() if p.is_file() else b"" for p in folder.iterdir()}


@pytest.mark.global_rng
def test_a_folder_holds_one_policy_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_pretrained(make(), tmp_path)
    before = contents(folder)

    def fail(*_: object, **__: object) -> None:
        raise ExportError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr("gtp_policy.export.hub.export_onnx", fail)
        with pytest.raises(ExportError, match="on purpose"):
            save_pretrained(make(1), folder)
    with pytest.raises(DataError, match="no result of a run"):
        save_pretrained(make(1), folder, result={"method": "gtp"}, onnx=False)
    assert contents(folder) == before
    save_pretrained(make(1), folder, onnx=False)
    assert sorted(contents(folder)) == ["README.md", "checkpoint.zip"]
    assert same(from_pretrained(folder).learner, make(1))
    for name in ("policy.onnx", "README.md"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
        before = contents(folder)
        with pytest.raises(CheckpointError, match=r"cannot be written: got .*directory"):
            save_pretrained(make(), folder, onnx=name == "README.md")
        assert contents(folder) == before
        (folder / name).rmdir()


@pytest.mark.parametrize("onnx", [True, False])
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("stuck", ["checkpoint.zip", "policy.onnx", "README.md"])
def test_files_of_two_policies_are_never_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: str, links: bool, onnx: bool
) -> None:
    folder = save_pretrained(make(), tmp_path)
    before = contents(folder)
    replace, unlink = os.replace, Path.unlink

    def refused(path: Path, *rest: Any, of: Any, **choices: Any) -> Any:
        if path.name == stuck or (rest and Path(rest[0]).name == stuck):
            monkeypatch.undo()  # what is put back is not refused
            raise PermissionError(1, "Operation not permitted")
        return of(path, *rest, **choices)

    def no_link(*_: object, **__: object) -> None:
        raise OSError("a file system without links")

    monkeypatch.setattr(os, "replace", functools.partial(refused, of=replace))
    monkeypatch.setattr(Path, "unlink", lambda path, **choices: refused(path, of=unlink, **choices))
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(CheckpointError, match="not permitted"):
        save_pretrained(make(1), folder, onnx=onnx)
    assert contents(folder) == before
    # Into an empty folder, nothing.
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_link)
        with pytest.raises(CheckpointError, match="cannot be written"):
            save_pretrained(make(1), tmp_path / "new", onnx=False)
    assert not contents(tmp_path / "new")


def test_a_damaged_download_is_refused(endpoint: str, tmp_path: Path) -> None:
    push_to_hub(make(), "me/policy", endpoint=endpoint, token="hf_secret")
    data = bytearray(Hub.repositories["me/policy"]["checkpoint.zip"])
    data[len(data) // 2] ^= 1
    Hub.repositories["me/policy"]["checkpoint.zip"] = bytes(data)
    with pytest.raises(CheckpointError, match="cannot be read"):
        from_pretrained("me/policy", endpoint=endpoint, cache_dir=tmp_path, token=False)


@pytest.mark.parametrize(
    "result",
    [
        "missing.json",
        {},
        {**RECORD, "evaluations": [{"update": 1, "returns": []}]},
        {**RECORD, "evaluations": [{"update": 1, "returns": [1e308] * 3}]},
        {**RECORD, "evaluations": [{"update": 1, "returns": [10**400]}]},
        {**RECORD, "config": nested(3000)},
    ],
)
def test_what_is_no_result_of_a_run_is_refused(tmp_path: Path, result: Any) -> None:
    with pytest.raises(DataError, match="no result of a run"):
        save_pretrained(make(), tmp_path, result=result, onnx=False)


def test_a_link_in_the_place_of_the_card_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("a file of the user's")
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "README.md").symlink_to(tmp_path / "precious.txt")
    record = {**RECORD, "method": "\ud800", "task": "one\rmore\u2028# line"}
    record["provenance"] = {"a |\n\n# <script>": "1"}
    save_pretrained(make(), folder, result=record, onnx=False)
    assert (tmp_path / "precious.txt").read_text() == "a file of the user's"
    card = (folder / "README.md").read_text()
    assert "| method | \\ud800 |" in card
    assert "| task | one more # line |" in card
    assert "| made with a \\|  # &lt;script> | 1 |" in card


def test_a_pipe_is_no_file_of_a_policy(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PolicyFileError, match="cannot be read: got something else than a file"):
        read_policy_file(tmp_path / "pipe")
    with pytest.raises(DataError, match="no result of a run: got something else than a file"):
        save_pretrained(make(), tmp_path / "policy", result=tmp_path / "pipe", onnx=False)


def test_a_card_without_a_run_says_what_the_checkpoint_says(tmp_path: Path) -> None:
    folder = save_pretrained(make(), tmp_path, onnx=False)
    card = model_card(folder / "checkpoint.zip")
    assert "## The run" not in card
    assert "a clone of the data" in card


def test_a_path_is_as_good_as_a_learner_and_anything_else_is_refused(tmp_path: Path) -> None:
    learner = GTPLearner.build(3, 2, GTPConfig(critic=None))
    saved = learner.save(tmp_path / "policy.zip")
    folder = save_pretrained(str(saved), tmp_path / "folder", onnx=False)
    loaded = from_pretrained(folder).learner
    obs = torch.zeros(1, 3)
    assert torch.equal(loaded.act(obs, deterministic=True), learner.act(obs, deterministic=True))
    with pytest.raises(ExportError, match="There is no policy to save: got Identity, expected"):
        save_pretrained(torch.nn.Identity(), tmp_path / "other")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError):
        save_pretrained(tmp_path / "nowhere.zip", tmp_path / "other")
    assert not (tmp_path / "other").exists()
