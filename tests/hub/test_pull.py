"""pull and models: repositories fetched from a stand-in for the Hub, and what is here listed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from commands import failed
from safetensors.torch import save_file
from tiny import change_json, write_dream_folder, write_json

import softmask
from softmask.cli.main import main

COMMIT = "1" * 40
PART = "adapter_model.safetensors"


class StandIn(ThreadingHTTPServer):
    """Answers of the Hub that a download needs, for the repositories in a folder."""

    daemon_threads = True

    def __init__(self, repositories: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories = repositories
        self.sent: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        folder = self.server.repositories / name
        if not folder.is_dir():
            self._answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        elif "revision" in parts and parts[-1] not in ("main", "v2", COMMIT):
            self._answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        elif parts[0] == "api":
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            files = [(str(path.relative_to(folder)), path.stat().st_size) for path in paths]
            siblings = [{"rfilename": file, "size": size} for file, size in files]
            tree = [{"type": "file", "path": f, "size": s, "oid": f} for f, s in files]
            info = {"id": name, "sha": COMMIT, "siblings": siblings}
            self._answer(json.dumps(tree if "tree" in parts else info).encode())
        else:
            inside = "/".join(parts[4:])  # behind OWNER/NAME/resolve/REVISION
            body = (folder / inside).read_bytes()
            etag = f'"{hashlib.sha1(body).hexdigest()}"'
            self._answer(body, headers={"ETag": etag, "X-Repo-Commit": COMMIT})
            if self.command == "GET":
                self.server.sent.append(f"{name}/{inside}")

    def _answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> Path:
    """me/dream, me/chat in two shards, me/adapter of me/dream, and what softmask does not read."""
    place = tmp_path_factory.mktemp("hub")
    write_dream_folder(place / "me" / "dream")
    (place / "me" / "dream" / "pytorch_model.bin").write_text("not to be fetched")
    write_dream_folder(place / "me" / "dream" / "checkpoint-100")
    chat = write_dream_folder(place / "me" / "chat", shards=2, chat=True)
    write_json(chat / "transparency_config.json", {"transparency_alg": "mixinputs_with_topk"})
    change_json(
        write_dream_folder(place / "me" / "coder") / "config.json",
        architectures=["Qwen2ForCausalLM"],
        model_type="qwen2",
    )
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    bases = {"adapter": "me/dream", "lost": "/nowhere/dream", "of-coder": "me/coder"}
    for name, base in bases.items():
        (place / "me" / name).mkdir()
        own = settings | {"base_model_name_or_path": base}
        write_json(place / "me" / name / "adapter_config.json", own)
        save_file({"q_proj.lora_A.weight": torch.ones(2, 3)}, place / "me" / name / PART)
    other = write_dream_folder(place / "you" / "other")
    change_json(other / "config.json", architectures=["LlamaForCausalLM"])
    (place / "you" / "pickled").mkdir()
    (place / "you" / "pickled" / "config.json").write_text("{}")
    (place / "you" / "text").mkdir()
    (place / "you" / "text" / "README.md").write_text("a data set")
    return place


@pytest.fixture
def hub(repositories, tmp_path, monkeypatch) -> Iterator[StandIn]:
    server = StandIn(repositories)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    constants = "huggingface_hub.constants."
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants + "ENDPOINT", server.address)
    monkeypatch.setattr(constants + "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants + "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants + "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def here(hub, capsys) -> Callable[..., tuple[str, str]]:
    """Runs a command and returns what it prints: the result and the notes."""

    def run(*arguments: object) -> tuple[str, str]:
        assert main([*map(str, arguments)]) == 0
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


def listed(here, *arguments: object) -> dict[str, dict]:
    entries = json.loads(here("models", "--json", *arguments)[0])
    return {entry["name"]: entry for entry in entries}


def test_a_model_comes_with_what_softmask_reads_of_it_and_says_what_to_type(hub, here) -> None:
    out, notes = here("pull", "me/dream")
    folder = Path(out.strip())
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors"}
    assert not (folder / "pytorch_model.bin").exists()
    assert not (folder / "checkpoint-100").exists()
    assert {file.count("/") for file in hub.sent} == {2}
    assert notes.splitlines()[0].startswith("softmask: fetching me/dream: ")
    assert notes.splitlines()[-1].endswith("is ready: softmask generate --model me/dream")
    assert softmask.load("me/dream", device="cpu").model.config.vocab_size == 272
    hub.sent.clear()
    assert "here already" in here("pull", "me/dream")[1]
    assert hub.sent == []


def test_bytes_are_counted_while_they_come(here, monkeypatch) -> None:
    counted = []
    monkeypatch.setattr("softmask.hub.download.Step.advance", lambda _, n: counted.append(n))
    folder = Path(here("pull", "me/chat")[0].strip())
    size = sum(path.stat().st_size for path in folder.iterdir())
    # Without config.json, which was looked at before.
    assert sum(counted) * 1e6 == pytest.approx(size - (folder / "config.json").stat().st_size)


def test_ctrl_c_keeps_what_is_whole_and_the_same_command_goes_on(
    hub, here, capsys, monkeypatch, tmp_path
) -> None:
    before = signal.getsignal(signal.SIGINT)  # a job in the background ignores it
    once = iter([signal.SIGINT])

    def interrupt(*_: object) -> None:
        for number in once:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr("softmask.hub.download.Step.advance", interrupt)
        assert main(["pull", "me/chat"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    kept = {f"me/chat/{path.name}" for path in tmp_path.rglob("snapshots/*/*")}
    hub.sent.clear()
    here("pull", "me/chat")
    assert not kept & {*hub.sent}
    assert listed(here)["me/chat"]["problem"] is None


def test_an_adapter_brings_its_base_along(hub, here) -> None:
    _, notes = here("pull", "me/adapter")
    assert "me/adapter is an adapter of me/dream" in notes
    assert notes.splitlines()[-1].endswith("softmask generate --model me/adapter")
    assert {"me/dream/model.safetensors", f"me/adapter/{PART}"} < {*hub.sent}
    found = listed(here)
    assert found["me/adapter"]["what"] == "adapter of me/dream"
    assert found["me/dream"]["kind"] == "model"


def test_a_family_that_is_said_is_that_of_an_adapters_base(hub, here) -> None:
    _, notes = here("pull", "me/of-coder", "--family", "opendcoder")
    assert "me/coder/model.safetensors" in hub.sent
    assert notes.splitlines()[-1].endswith("--model me/of-coder --family opendcoder")


def test_an_adapter_of_a_base_that_is_nowhere_is_fetched_and_says_so(here) -> None:
    assert "its base /nowhere/dream is not: give one as --model" in here("pull", "me/lost")[1]
    assert "its base /nowhere/dream is not here" in here("models")[1]


def test_a_revision_is_fetched_and_listed_with_the_option_that_asks_for_it(here) -> None:
    _, notes = here("pull", "me/chat", "--revision", "v2")
    command = "softmask chat --model me/chat --revision v2"
    assert notes.splitlines()[-1].endswith(command)
    entry = listed(here)["me/chat --revision v2"]
    assert (entry["use"], entry["what"]) == (command, "Dream model for chat, soft-masked")
    assert entry["bytes"] > 50_000


def test_what_softmask_does_not_read_is_refused_before_the_weights_come(hub, capsys) -> None:
    for name, message in {
        "you/other": "holds a model of the family 'LlamaForCausalLM'",
        "you/pickled": "has no weights in safetensors",
        "you/text": "neither config.json nor adapter_config.json",
        "me/nothing": "no repository me/nothing that you may read: check the spelling, or run `hf",
        "just-a-word": "is no Hub id",
        "default": "nothing to fetch",
    }.items():
        assert message in failed(capsys, "pull", name)
    assert "no revision 'v9'" in failed(capsys, "pull", "me/dream", "--revision", "v9")
    assert not [file for file in hub.sent if file.endswith(".safetensors")]


def test_a_disk_without_room_and_a_hub_out_of_reach_are_one_sentence(
    hub, capsys, monkeypatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=2000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert main(["pull", "me/dream"]) == 2
    assert "do not fit into" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "Hub cannot be reached" in failed(capsys, "pull", "me/dream")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in failed(capsys, "pull", "me/dream")


def cut(file: Path) -> None:
    blob = file.resolve()
    blob.write_bytes(blob.read_bytes()[:-9])


def lose(file: Path) -> None:
    file.resolve().unlink()


# With what has to be sent again: an unlinked file's content is still there.
@pytest.mark.parametrize(("damage", "sent"), [(cut, 1), (lose, 1), (Path.unlink, 0)])
def test_a_download_that_is_not_whole_is_said_and_completed(hub, here, damage, sent) -> None:
    folder = Path(here("pull", "me/chat")[0].strip())
    shard = "model-00001-of-00002.safetensors"
    damage(folder / shard)
    entry = listed(here)["me/chat"]
    assert (entry["use"], entry["kind"]) == ("softmask pull me/chat", "model")
    assert entry["problem"]
    shown, notes = here("models")
    assert "not whole" in shown
    assert "(`softmask pull me/chat`)" in notes
    hub.sent.clear()
    here("pull", "me/chat")
    assert hub.sent == [f"me/chat/{shard}"] * sent
    assert listed(here)["me/chat"]["problem"] is None


def test_a_cache_without_anything_of_ours_leaves_the_bundled_model(here, tmp_path) -> None:
    assert [*listed(here)] == ["default"]
    other = tmp_path / "cache" / "models--you--other" / "snapshots" / COMMIT
    other.mkdir(parents=True)
    write_json(other / "config.json", {"model_type": "llama"})
    (tmp_path / "cache" / "models--you--begun" / "blobs").mkdir(parents=True)
    found = listed(here)
    assert [*found] == ["default", "you/begun"]
    assert found["you/begun"]["use"] == "softmask pull you/begun"


def test_folders_are_listed_by_what_they_hold(hub, here, repositories, tmp_path, capsys) -> None:
    for name in ("dream", "adapter"):
        shutil.copytree(repositories / "me" / name, Path("made", name))
    change_json(Path("made", "adapter", "adapter_config.json"), base_model_name_or_path="default")
    (Path("made", "adapter") / PART).write_bytes(b"cut")
    shutil.copytree(repositories / "me" / "adapter", Path("made", "no-json"))
    Path("made", "no-json", "tokenizer_config.json").write_text("")
    Path("site").mkdir()
    Path("site", "config.json").write_text("no JSON, and none of ours", encoding="utf-8")
    found = listed(here)
    assert [*found] == ["default", "made/adapter", "made/dream", "made/no-json"]
    assert "tokenizer_config.json is damaged" in found["made/no-json"]["problem"]
    assert found["made/dream"]["use"] == "softmask generate --model made/dream"
    assert "truncated or damaged" in found["made/adapter"]["problem"]
    assert "made/dream" in here("models", "made")[0]
    assert "there is no folder nowhere" in failed(capsys, "models", "nowhere")


def test_the_list_comes_without_torch() -> None:
    script = (
        "import sys; from softmask.cli.main import main\n"
        "main(['models'])\n"
        "print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Models")
    assert lines[-1] == "False"
