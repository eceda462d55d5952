"""push: the real command line against a stand-in for the Hub on this machine."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import change_json, write_dream_folder, write_json

from softmask.cli.main import main
from softmask.hub.export import export
from softmask.hub.push import push

SOFT = {"transparency_alg": "mixinputs_with_topk", "transparency_scale": 0.5}


class StandIn(ThreadingHTTPServer):
    """The few answers of the Hub that an upload needs; keeps what arrives."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.status: int | None = None  # refuse everything with this status
        self.exists_in_public = self.forbids_writing = self.refuses_cards = False
        self.created: list[dict] = []
        self.branches: list[str] = []
        self.commits: list[tuple[str, str, dict[str, bytes]]] = []
        self.files: list[str] = []  # that are there already
        self.deleted: list[str] = []
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        private = not self.server.exists_in_public
        info = {"id": "me/model", "private": private, "siblings": [], "sha": "0" * 40}
        if self.path.startswith("/api/models/me/model/tree/"):
            file = {"type": "file", "oid": "2" * 40, "size": 1}
            self._answer([{**file, "path": name} for name in self.server.files])
        else:
            self._answer(info, self.server.status or 200)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server, path = self.server, self.path.split("?")[0]
        if server.status is not None:
            self._answer({"error": "no"}, server.status)
        elif server.forbids_writing:  # and creating, but everybody may read it
            self._answer({"error": "Forbidden"}, 403)
        elif path == "/api/validate-yaml":
            errors = [{"message": "base_model is no model id"}] if server.refuses_cards else []
            self._answer({"errors": errors, "warnings": []}, 400 if errors else 200)
        elif path == "/api/repos/create":
            server.created.append(json.loads(body))
            status = 409 if server.exists_in_public else 200
            self._answer({"url": f"{server.address}/me/model"}, status)
        elif path.startswith("/api/models/me/model/branch/"):
            server.branches.append(path.split("/")[-1])
            self._answer({})
        elif path.startswith("/api/models/me/model/preupload/"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif path.startswith("/api/models/me/model/commit/"):
            self._commit(path.split("/")[-1], body)
        else:
            self._answer({"error": "not part of this stand-in"}, 404)

    def _commit(self, revision: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        gone = [line["value"]["path"] for line in lines if line["key"] == "deletedFile"]
        self.server.deleted += gone
        self.server.commits.append((revision, lines[0]["value"]["summary"], files))
        url = f"{self.server.address}/me/model/commit/{'1' * 40}"
        self._answer({"success": True, "commitUrl": url, "commitOid": "1" * 40})

    def _answer(self, values: Any, status: int = 200) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        body = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[StandIn]:
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def softmask(endpoint: str, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The real command, with a token, a home of its own and the stand-in as the Hub."""
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | settings
    return subprocess.run(
        [sys.executable, "-m", "softmask", "push", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


@pytest.fixture
def here(hub, monkeypatch, capsys) -> Callable[..., str]:
    """Runs the command in this process, which is faster, and returns what it prints."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def run(*arguments: object, code: int = 0) -> str:
        assert main(["push", *map(str, arguments)]) == code
        captured = capsys.readouterr()
        assert not code or captured.out == ""
        return captured.err if code else captured.out

    return run


@pytest.fixture
def adapter(tmp_path) -> Path:
    """A training checkpoint: the adapter among what resuming needs."""
    folder = tmp_path / "checkpoint-100"
    folder.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": "Dream-org/Dream-v0-Instruct-7B"}
    settings |= {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    write_json(folder / "adapter_config.json", settings)
    weights = {"base_model.model.q_proj.lora_A.weight": torch.ones(2, 3)}
    save_file(weights, folder / "adapter_model.safetensors")
    save_file({"raw_scale": torch.ones(1)}, folder / "soft_mask.safetensors")
    write_json(folder / "transparency_config.json", SOFT)
    state = "optimizer.pt scheduler.pt rng_state.pth rng_state_0.pth trainer_state.json"
    for name in f"{state} training_args.bin ema.safetensors .env notes.txt".split():
        (folder / name).write_text("secret")
    (folder / "checkpoint-50").mkdir()
    write_json(folder / "checkpoint-50" / "adapter_config.json", settings)
    return folder


@pytest.fixture
def exported(tmp_path) -> Path:
    source = write_dream_folder(tmp_path / "dream", shards=2)
    write_json(source / "transparency_config.json", SOFT)
    return export(tmp_path / "exported", source)


ADAPTER = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "soft_mask.safetensors",
    "transparency_config.json",
}


def test_an_adapter_goes_up_without_the_training_state(hub, adapter, here) -> None:
    assert here("me/model", adapter) == f"{hub.address}/me/model/commit/{'1' * 40}\n"
    ((revision, summary, files),) = hub.commits
    assert (revision, summary) == ("main", "Upload with softmask")
    assert set(files) == ADAPTER
    assert all(files[name] == (adapter / name).read_bytes() for name in files)
    assert [(c["organization"], c["name"]) for c in hub.created] == [("me", "model")]
    assert "visibility" not in hub.created[0]


def test_what_an_earlier_upload_left_and_would_be_read_with_this_one_goes(
    hub, adapter, exported, here, capsys
) -> None:
    (adapter / "transparency_config.json").unlink()
    (adapter / "soft_mask.safetensors").unlink()
    of_run = ["transparency_config.json", "soft_mask.safetensors", "network_config.json"]
    of_run += ["tokenizer_config.json", "chat_template.jinja"]
    kept = ["README.md", "LICENSE", "plot.png", "other/transparency_config.json"]
    hub.files = [*of_run, *kept, "adapter_config.json"]
    here("me/model", adapter)
    assert sorted(hub.deleted) == sorted(of_run)
    # A model of other shards and another template.
    shards = ["model-00003-of-00003.safetensors", "model.safetensors", "chat_template.jinja"]
    hub.files, hub.deleted = [*kept, *shards, "model.safetensors.index.json", "tokenizer.py"], []
    assert main(["push", "me/model", str(exported)]) == 0
    assert sorted(hub.deleted) == sorted(shards)
    note = capsys.readouterr().err
    assert note.startswith("softmask: note: removed from me/model, as of an earlier upload: ")
    assert note.count("\n") == 1


def test_a_model_and_an_adapter_do_not_share_a_repository(
    hub, adapter, exported, here, monkeypatch
) -> None:
    hub.files = ["config.json"]
    assert "me/model holds a model, beside which an adapter" in here("me/model", adapter, code=2)
    hub.files = ["adapter_config.json"]
    sentence = "me/model holds an adapter, beside which a model"
    assert sentence in here("me/model", exported, code=2)
    # Before anything is merged.
    monkeypatch.setattr("softmask.hub.push.export", None)
    assert sentence in here("me/model", "--model", exported, code=2)
    assert hub.commits == []


def test_weights_go_up_under_whatever_names_the_index_has(hub, exported, here) -> None:
    index = exported / "model.safetensors.index.json"
    text = index.read_text()
    for shard in exported.glob("model-*.safetensors"):
        name = f"model.safetensors-{shard.stem.removeprefix('model-')}.safetensors"
        shard.rename(exported / name)
        text = text.replace(shard.name, name)
    index.write_text(text)
    (exported / "other.safetensors").write_bytes(b"")
    here("me/model", exported)
    ((_, _, files),) = hub.commits
    assert set(files) == {path.name for path in exported.iterdir()} - {"other.safetensors"}


@pytest.mark.parametrize("way", ["here", pytest.param("started", marks=pytest.mark.slow)])
def test_an_exported_model_goes_up_whole_to_a_private_branch(
    hub, exported, tmp_path, here, way
) -> None:
    """Started, it reads the Hub's address where a user says it."""
    (exported / "optimizer.pt").write_text("")
    words = ["me/model", exported, "--private", "--revision", "v2", "--message", "Second try"]
    if way == "here":
        here(*words)
    else:
        done = softmask(hub.address, tmp_path, *words)
        assert done.returncode == 0, done.stderr
    ((revision, summary, files),) = hub.commits
    assert (revision, summary) == ("v2", "Second try")
    assert hub.branches == ["v2"]
    assert "private" in hub.created[0].values() or hub.created[0]["private"] is True
    assert set(files) == {path.name for path in exported.iterdir()} - {"optimizer.pt"}
    assert all(files[name] == (exported / name).read_bytes() for name in files)


def test_one_command_copies_a_checkpoint_under_my_name_with_the_code_in_it(
    hub, here, tmp_path
) -> None:
    source = write_dream_folder(tmp_path / "dream", shards=2)
    here("me/model", "--model", source)
    ((_, _, files),) = hub.commits
    weights = [path.name for path in source.glob("model*")]
    assert len(weights) == 3
    assert all(files[name] == (source / name).read_bytes() for name in weights)
    assert {"modeling_dream.py", "soft_mask.py", "sampler.py", "vocab.json"} < set(files)
    assert "AutoModel" in json.loads(files["config.json"])["auto_map"]
    assert b'name = "me/model"' in files["README.md"]


def test_a_public_repository_does_not_get_what_was_meant_to_be_private(hub, adapter, here) -> None:
    hub.exists_in_public = True
    error = here("me/model", adapter, "--private", code=2)
    assert "me/model exists and is public: make it private" in error
    assert hub.commits == []
    here("me/model", adapter)
    assert len(hub.commits) == 1


def test_a_dry_run_prints_what_would_go_up_and_contacts_nobody(
    hub, adapter, here, tmp_path
) -> None:
    source = write_dream_folder(tmp_path / "dream")
    shown = here("me/model", "--model", source, "--dry-run")
    assert shown.startswith("would upload to me/model:\n")
    assert "modeling_dream.py" in shown
    shown = here("me/model", adapter, "--dry-run")
    rows = dict(line.split()[::-1] for line in shown.splitlines()[1:5])
    assert set(rows) == ADAPTER
    size = (adapter / "adapter_model.safetensors").stat().st_size
    assert rows["adapter_model.safetensors"] == f"{size:,}"
    assert "optimizer.pt" in shown.splitlines()[-1]
    error = here("me/model", "--model", "you/dream", "--dry-run", code=2)
    assert "softmask pull you/dream" in error
    assert hub.requests == []


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, "your token may not write to me/model: make one with write permission for me"),
        (404, "the Hub finds no me/model that you may write to"),
        (402, "the Hub refused the upload to me/model (402)"),
        (500, "the Hub refused the upload to me/model (500)"),
    ],
)
def test_a_refusal_says_what_to_do(hub, adapter, here, status, message) -> None:
    hub.status = status
    error = here("me/model", adapter, code=2)
    assert message in error
    assert error.count("\n") == 1
    assert hub.commits == []


def test_without_a_login_it_says_how_to_log_in(hub, adapter, here) -> None:
    hub.status = 401
    error = here("me/model", adapter, code=2)
    assert error.count("\n") == 1
    assert "the Hub does not accept your login: run `hf auth login`" in error


def test_a_repository_that_others_own_is_refused_at_the_upload(hub, adapter, here) -> None:
    hub.forbids_writing = True
    error = here("me/model", adapter, code=2)
    assert "your token may not write to me/model" in error


def test_a_card_that_the_hub_refuses_is_one_sentence(hub, adapter, here) -> None:
    hub.refuses_cards = True
    (adapter / "README.md").write_text("---\nbase_model: /data/dream\n---\n")
    assert "Invalid metadata in README.md" in here("me/model", adapter, code=2)


def test_without_a_network_it_says_what_to_check(adapter, here, monkeypatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        error = here("me/model", adapter, code=2)
    assert error.count("\n") == 1
    assert "the Hub cannot be reached" in error
    assert "check the network and HF_ENDPOINT" in error


def test_offline_mode_is_named(adapter, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set: unset it"):
        push("me/model", adapter)


def damage(name: str, content: bytes | None):
    def break_it(folder: Path) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)

    return break_it


def setting(**values):
    return lambda folder: change_json(folder / "adapter_config.json", **values)


def put(value: float):
    weights = {"base_model.model.q_proj.lora_A.weight": torch.full((2, 3), value)}
    return lambda folder: save_file(weights, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (damage("adapter_config.json", b"{"), "adapter_config.json is damaged"),
        (damage("adapter_config.json", None), "neither adapter_config.json nor config.json"),
        (damage("adapter_model.safetensors", b"cut"), "truncated or damaged"),
        (damage("adapter_model.safetensors", None), "has no adapter_model.safetensors"),
        (setting(peft_type="IA3"), "'LORA' (LoRA and DoRA), not 'IA3'"),
        (put(float("nan")), "holds NaN or infinity: the adapter is damaged"),
        (damage("transparency_config.json", b'{"mixinputs_q": 1}'), "did you mean 'mixinputs_k'"),
    ],
)
def test_a_damaged_adapter_is_not_uploaded(adapter, break_it, message, capsys) -> None:
    break_it(adapter)
    assert main(["push", "me/model", str(adapter), "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (damage("sampler.py", None), None),
        (damage("modeling_dream.py", None), "lacks modeling_dream.py"),
        (damage("model-00002-of-00002.safetensors", None), "lacks the weight file"),
        (damage("vocab.json", None), "has no tokenizer"),
        (damage("transparency_config.json", b"[]"), "expected a mapping"),
    ],
)
def test_a_damaged_export_is_not_uploaded(exported, break_it, message, capsys) -> None:
    break_it(exported)
    code = main(["push", "me/model", str(exported), "--dry-run"])
    assert code == (0 if message is None else 2)
    assert message is None or message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "{adapter}"], "give it as OWNER/NAME"),
        (["me/model"], "give either a folder to upload, or --model"),
        (["me/model", "{adapter}", "--adapter", "{adapter}"], "give either a folder"),
        (
            ["me/model", "{dream}"],
            "which transformers would need: `softmask push REPO --model",
        ),
        (["me/model", "{adapter}/nowhere"], "there is no folder"),
    ],
)
def test_bad_arguments_are_one_sentence(adapter, tmp_path, capsys, arguments, message) -> None:
    dream = write_dream_folder(tmp_path / "dream")
    values = read_config(dream)
    write_json(dream / "config.json", {k: v for k, v in values.items() if k != "auto_map"})
    arguments = [argument.format(adapter=adapter, dream=dream) for argument in arguments]
    assert main(["push", *arguments, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("mapped", [None, ["a"], {"AutoModel": None}])
def test_a_model_that_names_no_code_is_one_sentence_however_it_says_so(
    tmp_path, capsys, mapped
) -> None:
    folder = write_dream_folder(tmp_path / "dream")
    change_json(folder / "config.json", auto_map=mapped)
    assert main(["push", "me/model", str(folder), "--dry-run"]) == 2
    assert "has no code of its own, which transformers would need" in capsys.readouterr().err


def test_the_original_layout_of_dream_goes_up_without_code(tmp_path, capsys) -> None:
    model = str(write_dream_folder(tmp_path / "m"))
    command = ["push", "me/model", "--model", model, "--layout", "original", "--dry-run"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "model.safetensors" in said
    assert ".py" not in said


def read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_an_adapter_whose_base_is_a_local_folder_gets_a_note(adapter, capsys) -> None:
    change_json(adapter / "adapter_config.json", base_model_name_or_path="/data/dream")
    assert main(["push", "me/model", str(adapter), "--dry-run"]) == 0
    assert "others will have to give --model" in capsys.readouterr().err
