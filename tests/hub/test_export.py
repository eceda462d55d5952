"""export(): a folder that transformers alone loads, with the same tokens as this package."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from alone import run_alone
from paths import ROOT
from safetensors.torch import load_file, save_file
from tiny import change_json, write_dora_adapter, write_dream_folder, write_json
from transformers import Qwen2Tokenizer

import softmask
from softmask.cli.main import main
from softmask.files import locked
from softmask.hub.export import export
from softmask.hub.remote_code import CODE_MARK, remote_code

SOFT = {
    "transparency_alg": "mixinputs_with_topk",
    "transparency_scale": 0.8,
    "transparency_centre": -4.0,
    "transparency_steepness": 1.0,
    "mixinputs_k": 3,
    "mixture_temp": None,
    "transparency_scheduling": "none",
}
MASK = 263
PROMPT = [[40, 41, 42, 43]]
HOLES = [[40, MASK, MASK, 43, 44, MASK, 46, 47]]
GREEDY = {"alg": "entropy", "max_new_tokens": 12, "steps": 12}
# Each call of diffusion_generate that must give the same tokens with and without this package.
CALLS = {
    "its own soft-masking": {"inputs": PROMPT, **GREEDY},
    "its own with another scale": {"inputs": PROMPT, **GREEDY, "transparency_scale": 0.3},
    "plain": {"inputs": PROMPT, **GREEDY, "transparency_alg": "none"},
    "top-k": {"inputs": PROMPT, **GREEDY, **SOFT, "mixinputs_k": 5},
    "a schedule": {"inputs": PROMPT, **GREEDY, **SOFT, "transparency_scheduling": "linear"},
    "temperature": {
        **{"inputs": PROMPT, **GREEDY, **SOFT},
        **{"transparency_alg": "mixinputs_with_temp", "mixture_temp": 0.7},
    },
    "another mixture and weight": {
        **{"inputs": PROMPT, **GREEDY, **SOFT, "mixture": "spherical"},
        **{"mixture_weight": "entropy", "mixture_entropy_temp": 2.0, "mixture_token_temp": 0.5},
    },
    "infilling": {"inputs": HOLES, **GREEDY, "max_new_tokens": 4},
    "padded rows": {
        **{"inputs": [[256, 256, 42, 43], [40, 41, 42, 43]], **GREEDY},
        "attention_mask": [[0, 0, 1, 1], [1, 1, 1, 1]],
    },
    "sampling": {"inputs": PROMPT, "max_new_tokens": 12, "steps": 8, "temperature": 0.7},
}
# Runs where softmask cannot be imported: models and their calls, and a program, on standard input.
ALONE = """
import contextlib, io, json, sys
import torch
from transformers import AutoModel, AutoTokenizer

adapt = lambda model: model


def found(name, jobs):
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    model = AutoModel.from_pretrained(name, trust_remote_code=True, dtype=torch.float32).eval()
    model = adapt(model)

    # As Dream's evaluation scripts have it.
    @torch.no_grad()
    def get_logits(batch):
        logits = model(batch).logits
        # since bos always unmask, the first logits will not be used
        logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        return logits[:, :batch.shape[1]]

    holes = torch.tensor([[40, 263, 263, 43, 44, 263, 46, 47]])
    every = get_logits(holes)
    inside = model(holes, labels=torch.where(holes == 263, 5, -100), return_dict=False)
    answers = {}
    for key, job in jobs.items():
        torch.manual_seed(5)
        tensors = {k: torch.tensor(job.pop(k)) for k in ("inputs", "attention_mask") if k in job}
        answers[key] = model.diffusion_generate(**tensors, **job).tolist()
    return {"tokens": answers, "logits": every.tolist(), "loss": inside[0].item(),
            "ids": tokenizer("the<|mask|> \\u00e9").input_ids,
            "module": type(model).__module__, "tokenizer": type(tokenizer).__name__}


models, program = json.load(sys.stdin)
answers = {name: found(name, jobs) for name, jobs in models.items()}
with contextlib.redirect_stdout(io.StringIO()) as said:
    exec(program, {})
assert "softmask" not in sys.modules
print(json.dumps({**answers, "said": said.getvalue()}))
"""


def run_here(folder: Path, jobs: dict, adapter: Path | None = None) -> dict:
    """The same calls through this package."""
    model = softmask.load(folder, adapter, device="cpu").model
    answers = {}
    for key, job in jobs.items():
        torch.manual_seed(5)
        tensors = {k: torch.tensor(job[k]) for k in ("inputs", "attention_mask") if k in job}
        answers[key] = model.diffusion_generate(**(job | tensors)).tolist()
    return answers


def write_adapter(path: Path, base: Path, soft: dict | None = SOFT) -> Path:
    """A DoRA adapter with random weights, and the soft-mask parameters beside it."""
    write_dora_adapter(path, base)
    if soft is not None:
        write_json(path / "transparency_config.json", soft)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_dream_folder(tmp_path_factory.mktemp("base") / "dream", shards=2, chat=True)


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter") / "soft", base)


@pytest.fixture(scope="module")
def exported(base, adapter, tmp_path_factory) -> Path:
    return export(tmp_path_factory.mktemp("out") / "my.soft-dream", base, adapter)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def same_bytes(one: Path, other: Path, pattern: str) -> bool:
    names = sorted(path.name for path in one.glob(pattern))
    assert names == sorted(path.name for path in other.glob(pattern))
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


LLADA = ROOT / "tests" / "families" / "goldens" / "llada" / "model"
TWO_CALLS = {key: CALLS[key] for key in ("its own soft-masking", "plain")}
ORIGINAL_CALLS = {
    "default": {"inputs": PROMPT, **GREEDY},
    "plain": CALLS["plain"],
    "top-k": CALLS["top-k"],
}


@pytest.fixture(scope="module")
def original(base, tmp_path_factory) -> Path:
    """An export without an adapter."""
    return export(tmp_path_factory.mktemp("original") / "out", base)


@pytest.fixture(scope="module")
def llada(tmp_path_factory) -> tuple[Path, Path]:
    """An adapter on a model of another family, and its export."""
    folder = tmp_path_factory.mktemp("llada")
    adapter = write_adapter(folder / "adapter", LLADA)
    return adapter, export(folder / "out", LLADA, adapter, dtype="float32")


@pytest.fixture(scope="module")
def all_alone(exported, original, llada, tmp_path_factory) -> dict:
    """What the exported folders and the code on a card give where softmask is not installed."""
    folder = tmp_path_factory.mktemp("alone")
    # A repository in the cache, as a download leaves it: the loader takes another path there.
    repository = folder / "hf" / "hub" / "models--me--soft-dream"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(exported, repository / "snapshots" / ("0" * 40))
    code = re.search(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)[1]
    code = code.replace(f'"{exported.name}"', repr(str(exported)))
    code = code.replace("max_new_tokens=64, steps=64", "max_new_tokens=8, steps=8")
    models = {str(exported): CALLS, "me/soft-dream": TWO_CALLS, str(original): ORIGINAL_CALLS}
    models[str(llada[1])] = TWO_CALLS
    return run_alone(folder, [models, code], ALONE)


@pytest.fixture(scope="module")
def alone(exported, all_alone) -> dict:
    """What the exported folder gives."""
    return all_alone[str(exported)]


def test_dreams_own_get_logits_gives_each_position_its_prediction(exported, alone) -> None:
    model = softmask.load(exported, device="cpu").model
    holes = torch.tensor(HOLES)
    with torch.no_grad():
        aligned = model(holes).logits
        loss = model(holes, labels=torch.where(holes == MASK, 5, -100)).loss
    torch.testing.assert_close(torch.tensor(alone["logits"]), aligned, atol=1e-4, rtol=0)
    assert alone["loss"] == pytest.approx(loss.item(), abs=1e-4)


def test_the_exported_folder_gives_the_same_tokens_where_softmask_is_not_installed(
    exported, alone
) -> None:
    here = run_here(exported, CALLS)
    assert alone["tokens"] == here
    assert alone["module"].startswith("transformers_modules.")
    assert here["its own soft-masking"] != here["plain"]
    assert here["its own soft-masking"] != here["its own with another scale"]
    assert here["another mixture and weight"] != here["its own soft-masking"]
    assert not any(MASK in row for row in here["infilling"])


def test_the_exported_tokenizer_is_transformers_own_and_gives_the_original_ids(
    exported, base, alone
) -> None:
    assert alone["tokenizer"] == "Qwen2Tokenizer"
    original = softmask.load(base, device="cpu").tokenizer
    assert alone["ids"] == original("the<|mask|> \u00e9").input_ids
    assert "auto_map" not in read(exported / "tokenizer_config.json")
    tokenizer = Qwen2Tokenizer.from_pretrained(exported)
    assert tokenizer.chat_template == original.chat_template


def test_from_the_hub_it_gives_the_same_tokens_too(exported, all_alone) -> None:
    assert all_alone["me/soft-dream"]["tokens"] == run_here(exported, TWO_CALLS)


def test_another_family_in_its_own_layout_is_exported_with_an_adapter_like_dream(
    llada, all_alone
) -> None:
    adapter, exported = llada
    alone = all_alone[str(exported)]
    assert alone["tokens"] == run_here(exported, TWO_CALLS)
    assert alone["tokens"]["plain"] == run_here(LLADA, TWO_CALLS, adapter)["plain"]
    assert alone["tokens"]["plain"] != run_here(LLADA, TWO_CALLS)["plain"]
    assert not any(name.endswith("proj.bias") for name in tensors_of(exported))


def test_the_package_loads_the_exported_folder_with_its_soft_mask_parameters(
    exported, base, adapter
) -> None:
    merged = softmask.load(base, adapter, device="cpu")
    loaded = softmask.load(exported, device="cpu")
    assert loaded.soft_mask == merged.soft_mask
    assert loaded.soft_mask.scale == 0.8
    text = softmask.generate(loaded, "Hello", max_new_tokens=8).text
    assert text == softmask.generate(loaded, "Hello", max_new_tokens=8).text


@pytest.mark.slow
def test_peft_puts_an_adapter_of_the_published_trainer_onto_it_where_softmask_is_not_installed(
    exported, adapter, tmp_path
) -> None:
    causal = shutil.copytree(adapter, tmp_path / "causal")
    change_json(causal / "adapter_config.json", task_type="CAUSAL_LM")
    code = ALONE.replace(
        "adapt = lambda model: model\n",
        "from peft import PeftModel\n"
        f"adapt = lambda model: PeftModel.from_pretrained(model, {str(causal)!r}).eval()\n",
    )
    alone = run_alone(tmp_path, [{str(exported): TWO_CALLS}, ""], code)[str(exported)]
    assert alone["tokens"] == run_here(exported, TWO_CALLS, causal)
    assert alone["tokens"] != run_here(exported, TWO_CALLS)


def test_an_adapter_is_merged_in_float32_and_written_in_the_dtype_of_the_base(
    exported, base, adapter
) -> None:
    merged = softmask.load(base, adapter, device="cpu", dtype="float32").model.state_dict()
    stored, original = tensors_of(exported), tensors_of(base)
    assert set(stored) == set(original)
    for name, tensor in stored.items():
        assert tensor.dtype == original[name].dtype == torch.bfloat16
        assert torch.equal(tensor, merged[name].to(torch.bfloat16))
    changed = {name for name in stored if not torch.equal(stored[name], original[name])}
    assert changed
    assert all(re.search(r"[qkvo]_proj\.weight$", name) for name in changed)


def test_exported_in_float32_the_merged_weights_are_those_of_load(base, adapter, tmp_path) -> None:
    folder = export(tmp_path / "out", base, adapter, dtype="float32")
    merged = softmask.load(base, adapter, device="cpu").model.state_dict()
    stored = tensors_of(folder)
    assert all(torch.equal(stored[name], merged[name]) for name in stored)
    index = read(folder / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in stored.values())
    assert index["weight_map"] == read(base / "model.safetensors.index.json")["weight_map"]
    config = read(folder / "config.json")
    assert config["dtype"] == "float32"
    assert "torch_dtype" not in config
    assert softmask.load(folder, device="cpu", dtype="auto").model.dtype == torch.float32


@pytest.mark.parametrize("shards", [1, 3])
def test_without_an_adapter_the_weight_files_stay_bit_identical(tmp_path, shards) -> None:
    source = write_dream_folder(tmp_path / "dream", shards=shards)
    # On this machine's cache of the Hub, files are links: an export must hold the files.
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    source = source.rename(tmp_path / "snapshots" / "main")
    blob = (source / "merges.txt").rename(tmp_path / "blobs" / "0123")
    (source / "merges.txt").symlink_to(blob)
    folder = export(tmp_path / "out", source)
    assert same_bytes(source, folder, "model*.safetensors*")
    assert same_bytes(source, folder, "merges.txt")
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_an_original_checkpoint_stays_plain_by_default_and_soft_masks_when_asked(
    original, base, all_alone
) -> None:
    assert "transparency_config" not in read(original / "config.json")
    assert not (original / "transparency_config.json").exists()
    tokens = all_alone[str(original)]["tokens"]
    assert tokens == run_here(base, ORIGINAL_CALLS)
    assert tokens["default"] == tokens["plain"] != tokens["top-k"]


def test_the_adapters_parameters_win_over_the_bases_also_where_they_say_none(
    tmp_path, exported
) -> None:
    plain = write_adapter(tmp_path / "plain", exported, {"transparency_alg": "none"})
    other = write_adapter(tmp_path / "other", exported, SOFT | {"mixinputs_k": 2})
    silent = write_adapter(tmp_path / "silent", exported, None)
    for adapter, k in ((plain, None), (other, 2), (silent, 3)):
        folder = export(tmp_path / f"out-{adapter.name}", exported, adapter)
        own = read(folder / "config.json").get("transparency_config")
        assert (own and own["mixinputs_k"]) == k
        for checkpoint in (
            softmask.load(folder, device="cpu"),
            softmask.load(exported, adapter, device="cpu"),
        ):
            assert (checkpoint.soft_mask and checkpoint.soft_mask.k) == k
            assert checkpoint.model.config.transparency_config == own


def test_the_config_keeps_every_key_and_the_flat_rope_theta(exported, base) -> None:
    config, original = read(exported / "config.json"), read(base / "config.json")
    assert config["auto_map"] == {
        "AutoConfig": "configuration_dream.DreamConfig",
        "AutoModel": "modeling_dream.DreamModel",
    }
    assert config.pop("transparency_config") == read(exported / "transparency_config.json")
    assert config.pop("rope_theta") == 1000000.0
    assert config == {k: v for k, v in original.items() if k != "rope_theta"}


def test_a_checkpoint_saved_by_transformers_5_gets_its_flat_rope_theta_back(tmp_path) -> None:
    source = write_dream_folder(tmp_path / "dream")
    config = read(source / "config.json")
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    write_json(source / "config.json", config)
    assert read(export(tmp_path / "out", source) / "config.json")["rope_theta"] == 1000000.0


def test_settings_travel_and_training_state_does_not(tmp_path) -> None:
    source = write_dream_folder(tmp_path / "dream")
    kind = {"prompt_starts_with": ["Sudoku"], "sampling": {"alg": "entropy"}, "max_new_tokens": 2}
    write_json(source / "sampling_config.json", {"steps": 7, "prompt_kinds": [kind]})
    write_json(source / "generation_config.json", {"eos_token_id": 259})
    for stray in ("optimizer.pt", "trainer_state.json", "tokenization_dream.py", "secrets.txt"):
        (source / stray).write_text("{}")
    folder = export(tmp_path / "out", source)
    names = {path.name for path in folder.iterdir()}
    assert {"sampling_config.json", "generation_config.json", "README.md"} <= names
    assert names.isdisjoint({"optimizer.pt", "trainer_state.json", "secrets.txt"})
    assert {n for n in names if n.endswith(".py")} == set(remote_code())
    loaded = softmask.load(folder, device="cpu")
    assert loaded.sampling == {"steps": 7}
    assert loaded.prompt_kinds[0].max_new_tokens == 2


def test_an_export_of_an_export_is_the_same(exported, tmp_path) -> None:
    again = export(tmp_path / exported.name, exported)
    assert same_bytes(exported, again, "*.safetensors")
    assert same_bytes(exported, again, "*.py")
    assert same_bytes(exported, again, "*.json")


def test_the_remote_code_imports_torch_transformers_the_standard_library_and_its_own_folder() -> (
    None
):
    code = remote_code()
    assert {"config.py", "soft_mask.py", "unmask.py", "sampler.py", "diffusion_generate.py"} < set(
        code
    )
    # numpy: both of them need it.
    allowed = {"torch", "transformers", "numpy"} | set(sys.stdlib_module_names)
    for name, text in code.items():
        assert text.isascii(), name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, name
                assert f"{node.module}.py" in code, name
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in allowed, name
            elif isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, name


def test_the_modelling_file_names_every_other_file_as_transformers_reads_it() -> None:
    # The expression is that of transformers' get_relative_imports, which does not parse.
    code = remote_code()
    text = code["modeling_dream.py"]
    named = re.findall(r"^\s*from\s+\.(\S+)\s+import", text, flags=re.MULTILINE)
    assert {f"{name}.py" for name in named} == set(code) - {"modeling_dream.py"}


def test_the_remote_code_differs_in_its_imports_and_in_whose_logits_a_plain_call_gives() -> None:
    package = Path(softmask.__file__).parent

    def shape(text: str) -> list[str]:
        body = ast.parse(text).body
        return [ast.dump(n) for n in body if not isinstance(n, ast.ImportFrom | ast.If)]

    for name, text in remote_code().items():
        rooms = [package, package / "models", package / "decoding"]
        (path,) = [room / name for room in rooms if (room / name).is_file()]
        own = shape(path.read_text(encoding="utf-8"))
        if name == "modeling_dream.py":
            own += shape("DreamModel.aligned_logits = False")
        assert shape(text) == own


def test_the_model_card_says_what_it_is_and_how_to_use_it(
    exported, base, adapter, tmp_path
) -> None:
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "base_model" not in card  # a folder on this machine means nothing to others
    assert str(base) not in card
    assert "trust_remote_code=True" in card
    assert "| `transparency_scale` | 0.8 |" in card
    other = shutil.copytree(adapter, tmp_path / "adapter")
    settings = read(other / "adapter_config.json")
    write_json(
        other / "adapter_config.json", settings | {"base_model_name_or_path": "Dream-org/Dream"}
    )
    named = (export(tmp_path / "out", base, other) / "README.md").read_text()
    assert "\nbase_model: Dream-org/Dream\n" in named


def test_the_code_on_the_model_card_runs(all_alone) -> None:
    assert all_alone["said"].strip()


def test_a_folder_that_is_not_empty_is_kept_unless_told_otherwise(base, tmp_path) -> None:
    target = export(tmp_path / "out", base)
    (target / "old.py").write_text(f"{CODE_MARK}0.0.9\n")  # an older version had such a file
    with pytest.raises(ValueError, match="not empty: give another folder, or --overwrite"):
        export(target, base)
    assert (target / "old.py").exists()
    export(target, base, overwrite=True)
    assert not (target / "old.py").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    (tmp_path / "empty").mkdir()
    assert (export(tmp_path / "empty", base) / "config.json").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_export_that_fails_leaves_the_old_one_and_no_trace(
    base, tmp_path, monkeypatch, error
) -> None:
    target = export(tmp_path / "out", base)
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    def fail() -> dict[str, str]:
        raise error

    monkeypatch.setattr("softmask.hub.export.remote_code", fail)
    expected = KeyboardInterrupt if error is KeyboardInterrupt else ValueError
    with pytest.raises(expected, match=None if expected is KeyboardInterrupt else "No space left"):
        export(target, base, overwrite=True)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_stopped_in_the_last_moment_the_old_one_is_still_there(base, tmp_path, monkeypatch) -> None:
    target = export(tmp_path / "out", base)
    (target / "old.py").write_text(f"{CODE_MARK}0.0.9\n")
    rename = Path.rename

    def stop(path: Path, to: Path) -> Path:
        if path.name.endswith(".new"):
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        export(target, base, overwrite=True)
    assert (target / "old.py").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_what_is_exported_or_is_no_checkpoint_is_never_replaced(base, tmp_path) -> None:
    source = export(tmp_path / "runs" / "dream", base)
    with pytest.raises(ValueError, match="holds what is to be exported"):
        export(source, source, overwrite=True)
    with pytest.raises(ValueError, match="holds dream, which no export wrote"):
        export(source.parent, source, overwrite=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("")
    with pytest.raises(ValueError, match=r"holds cat.png, which no export wrote"):
        export(tmp_path / "photos", source, overwrite=True)
    trained = write_dream_folder(tmp_path / "trained")
    with pytest.raises(ValueError, match="holds no export"):
        export(trained, source, overwrite=True)
    exported = export(tmp_path / "exported", source)
    (exported / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes.txt, which no export wrote"):
        export(exported, source, overwrite=True)
    assert (exported / "notes.txt").read_text() == "mine"


def test_a_folder_whose_place_cannot_be_taken_is_refused_before_anything_is_written(
    base, tmp_path, monkeypatch
) -> None:
    """Where somebody stands, and a volume of a container."""
    (tmp_path / "out" / "deep").mkdir(parents=True)
    target = tmp_path / "out" / "deep"
    with monkeypatch.context() as patched:
        patched.chdir(target)
        for here in (".", target):
            with pytest.raises(
                ValueError, match=r"the folder that you are in.*: name a new folder"
            ):
                export(here, base)
        assert export("model", base).is_dir()
    shutil.rmtree(target / "model")
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == target)
    with pytest.raises(ValueError, match="is a mounted volume: name a new folder in it"):
        export(target, base)
    assert not any(target.iterdir())
    assert [path.name for path in target.parent.iterdir()] == ["deep"]


def test_what_a_kill_left_is_cleared_away_and_an_older_export_put_back(base, tmp_path) -> None:
    target = export(tmp_path / "out", base)
    before = (target / "config.json").read_bytes()
    # Killed between the two renames.
    (tmp_path / ".out.new").mkdir()
    (tmp_path / ".out.new" / "config.json").write_text("{")
    target.rename(tmp_path / ".out.old")
    with pytest.raises(ValueError, match="there is no folder"):
        export(target, tmp_path / "nothing", overwrite=True)
    export(target, base, overwrite=True)
    assert (target / "config.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="it is Linux that says")
def test_nothing_in_a_folder_is_open_when_it_is_renamed(base, tmp_path, monkeypatch) -> None:
    """Else Windows would not rename it."""
    renamed, rename = [], Path.rename

    def watched(self, target):
        opened = {Path(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
        places = [os.readlink(path) for path in opened if path.is_symlink()]
        assert not [place for place in places if place.startswith(f"{self}/")]
        renamed.append(self.name)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    export(tmp_path / "out", base)
    export(tmp_path / "out", base, overwrite=True)
    assert renamed == [".out.new", "out", ".out.new"]


def test_two_exports_into_one_folder_are_one_and_a_sentence(base, tmp_path) -> None:
    with (
        locked(tmp_path / ".out.lock", "exports"),
        pytest.raises(ValueError, match="another process exports in"),
    ):
        export(tmp_path / "out", base)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_those_of_the_config_are_refused(tmp_path) -> None:
    source = write_dream_folder(tmp_path / "dream")
    config = read(source / "config.json")
    for change, message in (
        ({"num_hidden_layers": 3}, r"the weights lack model\.layers\.2"),
        ({"num_hidden_layers": 1}, r"have unknown model\.layers\.1"),
        ({"intermediate_size": 64}, "have the wrong shape for model.layers"),
    ):
        write_json(source / "config.json", config | change)
        with pytest.raises(ValueError, match=message):
            export(tmp_path / "out", source)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [{}, {"dtype": "float32"}, {"link": True}])
def test_weights_that_are_not_finite_are_refused(tmp_path, arguments) -> None:
    source = write_dream_folder(tmp_path / "dream", shards=2)
    file = source / "model-00002-of-00002.safetensors"
    tensors = load_file(file)
    name = min(tensors)
    tensors[name].view(-1)[7] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{file.name}: {re.escape(name)} holds NaN or infinity"):
        export(tmp_path / "out", source, **arguments)
    assert not (tmp_path / "out").exists()


def test_a_dtype_that_cannot_hold_the_weights_is_refused(tmp_path) -> None:
    source = write_dream_folder(tmp_path / "dream")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.norm\.weight does not fit torch\.float16"):
        export(tmp_path / "out", source, dtype="float16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/out", "--model", "{tmp}/nothing/at/all"], "there is no folder"),
        (["{tmp}/out", "--model", "{base}", "--dtype", "int3"], "'int3' is no dtype"),
        (["{tmp}/out", "--model", "{base}", "--adapter", "{base}"], "no adapter_config.json"),
        (["{tmp}/out", "--model", "{base}", "--revision", "v1"], "revision has no meaning"),
        (["{base}/config.json", "--model", "{base}"], "is a file"),
        (["{base}/config.json/out", "--model", "{base}"], "cannot be written: Not a directory"),
    ],
)
def test_at_the_command_line_bad_input_is_one_sentence(
    base, tmp_path, capsys, arguments, message
) -> None:
    arguments = [argument.format(tmp=tmp_path, base=base) for argument in arguments]
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_line_exports(base, adapter, exported, tmp_path, capsys) -> None:
    target = tmp_path / exported.name
    assert main(["export", str(target), "--adapter", str(adapter)]) == 0
    assert capsys.readouterr().out == f"the model is in {target}\n"
    assert same_bytes(target, exported, "*")
