"""Model folders changed at random: each loads, or is refused in one sentence."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path

import pytest
from tiny import write_dream_folder, write_json
from transformers import Qwen2Tokenizer

import softmask
from softmask.hub.export import export

SOFT = {
    "transparency_alg": "mixinputs_with_topk",
    "transparency_scale": 0.25,
    "transparency_centre": -1.0,
    "transparency_steepness": 5.0,
    "mixinputs_k": 1,
    "mixture_temp": None,
    "transparency_scheduling": "none",
}
VALUES = [
    *(None, True, False, -1, 0, 1, 2, 7, 10**6, 10**12, -(10**12), 10**400, 0.5, -0.5, 1e308),
    *(float("nan"), float("inf"), -float("inf"), "", "x", "0", "true", "../../../../etc/passwd"),
    *("/etc/passwd", "torch.float16", "float8_e4m3fn", "flash_attention_2", "\ud800", "\0"),
    *("x" * 5000, [], {}, [1], ["x"], [None], {"a": 1}, [[[[[[]]]]]], {"x": {"y": {"z": []}}}),
    *({"type": "yarn", "factor": -1.0}, {"rope_type": "dynamic", "factor": 2.0}, {"rope_type": 3}),
    *({"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "x"}),
]
KEYS = {
    "config.json": [
        *("attn_implementation", "_attn_implementation", "experts_implementation", "num_labels"),
        *("id2label", "return_dict", "output_attentions", "output_hidden_states", "problem_type"),
        *("quantization_config", "head_dim", "block_size", "expand_token_id", "layer_types"),
        *("is_causal", "logit_shift", "rope_parameters", "rope_scaling", "use_mrope", "dtype"),
        *("per_layer_config", "torchscript", "transparency_config", "text_config", "to_dict"),
        *("tie_word_embeddings", "sub_configs", "base_model_tp_plan", "name_or_path", "auto_map"),
    ],
    "tokenizer_config.json": [
        *("vocab_file", "merges_file", "tokenizer_file", "gguf_file", "init_inputs", "backend"),
        *("vocab", "merges", "tokenizer_object", "extra_special_tokens", "chat_template"),
        *("additional_special_tokens", "add_prefix_space", "split_special_tokens", "decode"),
        *("padding_side", "model_input_names", "post_processor", "chat_control_tokens"),
        *("clean_up_tokenization_spaces", "tokenizer_class", "added_tokens_decoder", "errors"),
    ],
    "adapter_config.json": ["base_model_name_or_path"],
}
TEMPLATES = [
    *("{{1/0}}", "{{ messages[0].content + 1 }}", "{% if %}", "{{ messages[9].content }}"),
    *("{{ 'a' * 10 ** 10 }}", "{{ (" * 2000, "{{ ''.__class__.__mro__ }}", "\ufeff{{ x }}"),
    *("{% for a in x %}" * 30 + "{% endfor %}" * 30, "{{ raise_exception(messages) }}"),
    *("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{% include 'x' %}", "{{ 10 ** 10 ** 9}}"),
    *(
        "{% extends messages %}",
        "{{ namespace(__class__=1) }}",
        "{{ messages | tojson(indent=-5) }}",
    ),
]


def write_bases(path: Path) -> list[Path]:
    """One folder of each kind that people have."""
    plain = write_dream_folder(path / "plain", chat=True)
    write_json(plain / "transparency_config.json", SOFT)
    write_json(plain / "sampling_config.json", {"steps": 4})
    write_json(plain / "generation_config.json", {"eos_token_id": 259})
    older = write_dream_folder(path / "older", shards=2)
    settings = json.loads((older / "tokenizer_config.json").read_text())
    del settings["added_tokens_decoder"]
    write_json(older / "tokenizer_config.json", settings)
    newer = write_dream_folder(path / "newer", chat=True, tie_word_embeddings=False)
    Qwen2Tokenizer.from_pretrained(newer).save_pretrained(newer)
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"):
        (newer / name).unlink(missing_ok=True)
    config = json.loads((newer / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    write_json(newer / "config.json", config | {"layer_types": ["full_attention"] * 2})
    return [plain, older, newer]


def change_value(values, dice: random.Random):
    """Something somewhere in a JSON value is another value, or gone."""
    changed = copy.deepcopy(values)
    place, parent, key = changed, None, None
    while isinstance(place, dict | list) and place and (parent is None or dice.random() < 0.7):
        keys = list(place) if isinstance(place, dict) else range(len(place))
        parent, key = place, dice.choice(keys)
        place = place[key]
    if parent is None:
        return dice.choice(VALUES)
    if dice.random() < 0.2:
        del parent[key]
    else:
        parent[key] = copy.deepcopy(dice.choice(VALUES))
    return changed


def change_json(path: Path, dice: random.Random) -> str:
    values = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(values, dict) and path.name in KEYS and dice.random() < 0.4:
        key, value = dice.choice(KEYS[path.name]), dice.choice(VALUES)
        values[key] = value
        what = f"{key} = {str(value)[:40]!r}"
    else:
        for _ in range(dice.choice([1, 1, 1, 3])):
            values = change_value(values, dice)
        what = "a value"
    path.write_text(json.dumps(values), encoding="utf-8")
    return what


def change_bytes(path: Path, dice: random.Random) -> str:
    content = bytearray(path.read_bytes())
    what = dice.choice(["cut", "flip", "noise", "empty", "twice", "head"])
    if what == "cut":
        content = content[: dice.randrange(max(1, len(content)))]
    elif what == "flip":
        for _ in range(dice.choice([1, 5, 50])):
            content[dice.randrange(len(content))] = dice.randrange(256)
    elif what == "noise":
        content = bytearray(dice.randbytes(dice.choice([1, 8, 100, 5000])))
    elif what == "empty":
        content = bytearray()
    elif what == "twice":
        content = content + content
    else:
        for i in range(min(len(content), 16)):
            content[i] = dice.randrange(256)
    path.write_bytes(bytes(content))
    return what


def change_file(path: Path, dice: random.Random) -> str:
    what = dice.choice(["gone", "a folder", "a dangling link", "a link out", "nested", "digits"])
    path.unlink()
    if what == "a folder":
        path.mkdir()
    elif what == "a dangling link":
        path.symlink_to("nothing")
    elif what == "a link out":
        path.symlink_to("/etc/passwd")
    elif what == "nested":
        path.write_text("[" * 5000 + "]" * 5000, encoding="utf-8")
    elif what == "digits":
        path.write_text('{"hidden_size": ' + "1" * 5000 + "}", encoding="utf-8")
    return what


def mutate(folder: Path, dice: random.Random) -> str:
    """Changes one file of the folder; returns what was done."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    path = dice.choice(files)
    if dice.random() < 0.3:
        path = dice.choice([f for f in files if "config" in f.name])
    kind = dice.random()
    if kind < 0.05 and (folder / "tokenizer_config.json").is_file():
        template = dice.choice(TEMPLATES)
        (folder / "chat_template.jinja").write_text(template)
        return f"template {template[:40]!r}"
    if kind < 0.6 and path.suffix == ".json":
        what = change_json(path, dice)
    elif kind < 0.9:
        what = change_bytes(path, dice)
    else:
        what = change_file(path, dice)
    return f"{path.name}: {what}"


def use(folder: Path, target: Path | None) -> str:
    """Loads the folder and uses all of it; returns what happened."""
    try:
        checkpoint = softmask.load(folder, device="cpu")
        softmask.generate(checkpoint, "Hello the", chat=False, max_new_tokens=2, steps=2)
        if checkpoint.tokenizer.chat_template:
            softmask.generate(checkpoint, "Hello", max_new_tokens=2, steps=2)
        if target is not None:
            export(target, folder)
            softmask.load(target, device="cpu")
    except (ValueError, OSError) as error:
        return f"refused: {error}"
    return "loaded"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_mutated_folder_loads_or_is_refused_in_one_sentence(tmp_path, seed) -> None:
    dice = random.Random(seed)
    bases = write_bases(tmp_path)
    seen = {"loaded": 0, "refused": 0}
    for number in range(100):
        folder = tmp_path / f"mutated-{number}"
        shutil.copytree(dice.choice(bases), folder)
        done = mutate(folder, dice)
        target = tmp_path / "out" if number % 5 == 0 else None
        try:
            what, _, sentence = use(folder, target).partition(":")
            assert what == "loaded" or 0 < len(sentence.strip()) < 1000, sentence[:2000]
            seen[what] += 1
        except BaseException as error:
            error.add_note(f"mutation {number} of seed {seed} in {folder.name}: {done}")
            raise
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert min(seen.values()) >= 10
