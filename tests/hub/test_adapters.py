"""Adapters: merged into the model that PEFT runs unmerged, or refused in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import change_json, write_dora_adapter, write_dream_folder, write_json, write_lora_adapter

import softmask
from softmask.cli.main import main
from softmask.hub.adapters import merge_adapter, quiet_peft, read_adapter
from softmask.hub.export import export

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SOME = {"target_modules": ["q_proj", "v_proj"]}
# Settings of peft, each of which gives an adapter that merges.
MERGED = {
    "plain": SOME,
    "every linear layer, DoRA": {"target_modules": "all-linear", "use_dora": True},
    "a causal task": SOME | {"task_type": "CAUSAL_LM"},
    "the head saved": SOME | {"modules_to_save": ["lm_head"]},
    "table and norms saved": SOME | {"modules_to_save": ["embed_tokens", "norm"]},
    "dotted names saved": SOME | {"modules_to_save": ["model.norm", "layers.0.mlp.up_proj"]},
    "biases": SOME | {"bias": "all", "use_rslora": True},
    "a bias of its own": SOME | {"lora_bias": True},
    "table and head": {"target_modules": ["embed_tokens", "lm_head"]},
    "the table, DoRA": {"target_modules": ["embed_tokens"], "use_dora": True},
    "patterns": SOME | {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 9}},
    "patterns for every layer": SOME | {"rank_pattern": {"q_proj": 2, "v_proj": 3}},
    "a regular expression": {"target_modules": r".*layers\.1.*(q|v)_proj"},
    "some layers": SOME | {"layers_to_transform": [1], "init_lora_weights": "gaussian"},
}
TIED = {
    "beside them": SOME,
    "the head": {"target_modules": ["lm_head"]},
    "the table": {"target_modules": ["embed_tokens"]},
    "both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "the head saved": SOME | {"modules_to_save": ["lm_head"]},
    "the table saved": SOME | {"modules_to_save": ["embed_tokens"]},
}
# peft's own advice while it makes such adapters.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{start}:UserWarning")
    for start in (
        "Model has `tie_word_embeddings=True`",
        "Model with `tie_word_embeddings=True`",
        "Setting `save_embedding_layers`",
        "Adapter 'default'",
    )
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_dream_folder(tmp_path_factory.mktemp("base") / "dream")


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    """A model whose head is its table, in two files."""
    path = tmp_path_factory.mktemp("tied") / "dream"
    write_dream_folder(path, tie_word_embeddings=True, shards=2)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    file = path / index["weight_map"].pop("lm_head.weight")
    write_json(path / "model.safetensors.index.json", index)
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    return path


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    write_dora_adapter(tmp_path / "adapter", base)
    return tmp_path / "adapter"


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    return model(input_ids=torch.arange(96)[None]).logits


def change_weights(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def assert_merges(base: Path, settings: dict, tmp_path: Path) -> None:
    unmerged = write_lora_adapter(tmp_path / "adapter", base, **settings)
    expected = logits_of(unmerged)
    loaded = softmask.load(base, tmp_path / "adapter", device="cpu")
    folder = export(tmp_path / "out", base, tmp_path / "adapter", dtype="float32")
    exported = softmask.load(folder, device="cpu")
    for checkpoint in (loaded, exported):
        torch.testing.assert_close(logits_of(checkpoint.model), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits_of(softmask.load(base, device="cpu").model), expected, 1e-2)


@pytest.mark.parametrize("kind", MERGED)
def test_a_merged_and_an_exported_adapter_are_the_model_that_peft_runs(
    base, tmp_path, kind
) -> None:
    assert_merges(base, MERGED[kind], tmp_path)


@pytest.mark.parametrize("kind", TIED)
def test_what_changes_one_of_a_tied_table_and_head_leaves_the_other(tied, tmp_path, kind) -> None:
    assert_merges(tied, TIED[kind], tmp_path)
    stays_tied = kind == "beside them"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] == (
        stays_tied
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert ("lm_head.weight" in index["weight_map"]) != stays_tied


def test_a_head_that_an_adapter_unties_is_in_the_original_layout_too(tied, tmp_path) -> None:
    ours = export(tmp_path / "ours", tied)
    unmerged = write_lora_adapter(tmp_path / "adapter", ours, **TIED["the table"])
    folder = export(tmp_path / "out", ours, tmp_path / "adapter", layout="original")
    found = logits_of(softmask.load(folder, device="cpu").model)
    torch.testing.assert_close(found, logits_of(unmerged), atol=0.3, rtol=0.1)  # in bfloat16


@pytest.mark.parametrize("task", ["SEQ_2_SEQ_LM", "SEQ_CLS", "SOMETHING"])
def test_the_task_that_an_adapter_names_changes_nothing(base, adapter, task) -> None:
    expected = logits_of(softmask.load(base, adapter, device="cpu").model)
    change_json(adapter / CONFIG, task_type=task)
    assert torch.equal(logits_of(softmask.load(base, adapter, device="cpu").model), expected)


def test_the_command_line_reads_what_the_published_trainer_writes(
    base, adapter, tmp_path, capsys
) -> None:
    change_json(adapter / CONFIG, task_type="CAUSAL_LM")
    options = ["--device", "cpu", "--max-new-tokens", "4"]
    assert main(["generate", "Hello", "--adapter", str(adapter), *options]) == 0
    assert main(["export", str(tmp_path / "out"), "--adapter", str(adapter)]) == 0
    assert capsys.readouterr().err == ""


def test_peft_itself_puts_an_adapter_with_a_task_onto_the_model(base, adapter) -> None:
    expected = logits_of(softmask.load(base, adapter, device="cpu").model)
    change_json(adapter / CONFIG, task_type="CAUSAL_LM")
    model = softmask.load(base, device="cpu").model
    with quiet_peft():
        wrapped = PeftModel.from_pretrained(model, adapter)
    torch.testing.assert_close(logits_of(wrapped), expected, atol=1e-5, rtol=1e-5)
    assert not model.can_generate()
    with pytest.raises(NotImplementedError, match="call diffusion_generate"):
        model.prepare_inputs_for_generation()


def test_the_base_is_taken_at_the_revision_that_the_adapter_names(
    base, adapter, tmp_path, monkeypatch
) -> None:
    asked = []

    def download(name, revision, **_):
        asked.append((name, revision))
        return str(base)

    monkeypatch.setattr("softmask.hub.download.snapshot_download", download)
    change_json(adapter / CONFIG, base_model_name_or_path="me/dream", revision="v2")
    softmask.load(adapter=adapter, device="cpu")
    softmask.load(adapter=adapter, revision="v3", device="cpu")
    assert asked == [("me/dream", "v2"), ("me/dream", "v3")]
    # That of the adapter, where this is named as the model.
    change_json(adapter / CONFIG, base_model_name_or_path=str(base))
    with pytest.raises(ValueError, match="is a local folder: a revision has no meaning there"):
        softmask.load(adapter=adapter, revision="v3", device="cpu")
    with pytest.raises(ValueError, match="the bundled model has no revisions"):
        softmask.load(revision="v3")


# What is refused


def without(*endings: str):
    """Removes the tensors with these endings."""

    def change(folder: Path) -> None:
        change_weights(
            folder,
            lambda tensors: [tensors.pop(n) for n in [*tensors] if n.endswith(endings)],
        )

    return change


def put(value: float):
    """Puts a number into one tensor."""

    def change(folder: Path) -> None:
        change_weights(folder, lambda tensors: tensors[min(tensors)].view(-1)[:1].fill_(value))

    return change


def setting(**values):
    return lambda folder: change_json(folder / CONFIG, **values)


def drop_setting(name: str):
    def change(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text())
        del values[name]
        write_json(folder / CONFIG, values)

    return change


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def as_integers(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({name: t.to(torch.int8) for name, t in tensors.items()}, folder / WEIGHTS)


REFUSED = {
    "no tensor of a layer": (without("k_proj.lora_A.weight"), r"it lacks .*0\.self_attn\.k_proj"),
    "no magnitudes": (without("magnitude_vector"), "it lacks .*magnitude_vector"),
    "no tensors": (without(""), "it lacks .*lora_A"),
    "magnitudes against its settings": (setting(use_dora=False), "unknown .*magnitude_vector"),
    "fewer targets": (setting(target_modules=["q_proj"]), "it has the unknown .*k_proj"),
    "no such target": (setting(target_modules=["query"]), "PEFT cannot put .*not found in the bas"),
    "no layer for a target": (setting(target_modules=["mlp"]), "PEFT cannot put this adapter"),
    "another rank": (setting(r=2), "of another shape is .*lora_A"),
    "a larger rank": (setting(r=10**9), "says rank 1000000000, but no tensor"),
    "no rank": (drop_setting("r"), "r must be given"),
    "no kind": (drop_setting("peft_type"), "'LORA' .* not None"),
    "another kind": (setting(peft_type="IA3"), "'LORA' .* not 'IA3'"),
    "an unknown kind": (setting(peft_type=["X"]), r"'LORA' .* not \['X'\]"),
    "a changed base": (setting(init_lora_weights="pissa"), "'pissa' may have changed the base"),
    "an unknown setting": (setting(use_qalora=True), "does not know use_qalora"),
    "new tokens": (setting(trainable_token_indices=[3]), "does not know trainable_token_indices"),
    "a module that is not there": (setting(modules_to_save=["score"], r=3), "another shape"),
    "a rank for nothing": (setting(rank_pattern={"qq": 2}), "did not match any targeted module"),
    "no number": (setting(lora_alpha=float("nan")), "lora_alpha must be a finite number"),
    "no pattern": (setting(target_modules="(q_proj"), r"'\(q_proj' is no pattern"),
    "no bias": (setting(bias="some"), "bias must be one of none, all, lora_only"),
    "no base": (setting(base_model_name_or_path=["a"]), "must be a name"),
    "NaN": (put(float("nan")), "holds NaN or infinity: the adapter is damaged"),
    "infinity": (put(float("inf")), "holds NaN or infinity: the adapter is damaged"),
    "integers": (as_integers, "holds integers"),
    "a pickle": (as_pickle, "in adapter_model.bin alone, .*convert it there by `python -c"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_damaged_or_odd_adapter_is_one_sentence(base, adapter, fault, tmp_path) -> None:
    change, message = REFUSED[fault]
    change(adapter)
    with pytest.raises(ValueError, match=message) as caught:
        softmask.load(adapter=adapter, device="cpu")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "out", None, adapter)
    assert not (tmp_path / "out").exists()


def test_a_bias_for_a_layer_without_one_is_one_sentence(base, tmp_path) -> None:
    with pytest.warns(UserWarning, match="has no bias"):
        write_lora_adapter(tmp_path / "a", base, target_modules=["o_proj"], lora_bias=True)
    with pytest.raises(ValueError, match=r"PEFT cannot put this adapter .*has no bias"):
        softmask.load(base, tmp_path / "a", device="cpu")


def test_the_pickle_is_converted_as_the_sentence_says(base, adapter, monkeypatch) -> None:
    expected = logits_of(softmask.load(base, adapter, device="cpu").model)
    as_pickle(adapter)
    with pytest.raises(ValueError, match="convert it there by") as caught:
        softmask.load(base, adapter, device="cpu")
    code = str(caught.value).partition('python -c "')[2].rpartition('"`')[0]
    monkeypatch.chdir(adapter)
    exec(code)
    assert torch.equal(logits_of(softmask.load(base, adapter, device="cpu").model), expected)


def test_of_several_adapters_in_a_folder_one_has_to_be_given(base, adapter, tmp_path) -> None:
    for name in ("one", "two"):
        shutil.copytree(adapter, tmp_path / "many" / name)
    for arguments in ({"name": tmp_path / "many"}, {"adapter": tmp_path / "many"}):
        with pytest.raises(ValueError, match=r"give one of .*many/one, .*many/two"):
            softmask.load(**arguments, device="cpu")
    assert softmask.load(tmp_path / "many" / "two", device="cpu").name == str(base)


def test_an_adapter_in_the_models_own_folder_is_not_put_into_it_unasked(
    base, adapter, tmp_path
) -> None:
    both = shutil.copytree(base, tmp_path / "both")
    for name in (CONFIG, WEIGHTS):
        shutil.copy(adapter / name, both / name)
    with pytest.raises(ValueError, match="holds a model and an adapter"):
        softmask.load(both, device="cpu")


# Any value at all

VALUES = [
    *(None, True, False, 0, 1, -1, 5, 3.5, 1e308, float("nan"), 10**30, "", "x", "(", "lm_head"),
    *("all-linear", ".*", "LORA", "IA3", "CAUSAL_LM", "a" * 10000, [], [""], ["x"], ["q_proj"]),
    *(["("], [None], [[1]], [0], [1, 2], ["self_attn"], ["embed_tokens"], ["model"], {}),
    *({"x": 1}, {"q_proj": 2}, {"(": 1}, {"q_proj": "x"}),
]
# Numbers that are as good as others: nothing in the files says which was meant.
FREE = ("lora_alpha", "use_rslora", "alpha_pattern")


def mutants(settings: dict) -> list[dict]:
    """The settings with each of them left out, and with every other value in its place."""
    left_out = [{k: v for k, v in settings.items() if k != key} for key in settings]
    return left_out + [settings | {key: value} for key in settings for value in VALUES]


@pytest.mark.parametrize("every", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_any_value_in_adapter_config_gives_the_same_model_or_one_sentence(
    base, adapter, every
) -> None:
    expected = logits_of(softmask.load(base, adapter, device="cpu").model)
    plain = softmask.load(base, device="cpu").model
    untouched = {name: value.clone() for name, value in plain.state_dict().items()}
    settings = json.loads((adapter / CONFIG).read_text())
    outcomes = {"same": 0, "refused": 0, "other": 0}
    sentences: list[str] = []
    for values in mutants(settings)[::every]:
        write_json(adapter / CONFIG, values)
        model = softmask.models.DreamModel(plain.config).eval()
        model.load_state_dict(untouched)
        try:
            found = logits_of(merge_adapter(model, read_adapter(adapter)))
        except ValueError as error:
            outcomes["refused"] += 1
            sentences.append(str(error))
            continue
        if any(values.get(key) != settings[key] for key in FREE):
            outcomes["other"] += 1
        else:
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
            outcomes["same"] += 1
    assert not any("\n" in sentence for sentence in sentences)
    assert min(outcomes["same"], outcomes["refused"]) > 30
    assert outcomes["other"] < 40
