"""GGUF files: read as llama.cpp's converter writes them, written as its package reads them."""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from commands import failed
from gguf import GGMLQuantizationType as Type
from gguf_files import side_by_side, write_as_llama_cpp
from tiny import bytes_of, change_json, write_dream_folder, write_json, write_lora_adapter

import softmask
from softmask.cli.main import main
from softmask.cli.options import load_model
from softmask.cli.serve import make_parser as serve_parser
from softmask.families.registry import FAMILIES
from softmask.hub import gguf_export
from softmask.hub.gguf_export import export_gguf
from softmask.hub.local import look_at
from softmask.models.checkpoint import Checkpoint
from softmask.models.quantize import Quantizer

GOLDENS = Path(__file__).parents[1] / "families" / "goldens"
# Folders of tiny models, with the family where a user has to say it, and llama.cpp's architecture.
MODELS = {
    "llada": (None, "llada"),
    "a2d_qwen3_mdlm": (None, "qwen3"),
    "a2d_qwen2_mdlm": (None, "dream"),
    "a2d_llama_mdlm": (None, "llada"),
    "opendcoder": ("opendcoder", "dream"),
    "dreamon": (None, "dream"),
    "a2d_qwen3_bd3lm": ("bd3lm-qwen3", "qwen3"),
    "sdar": (None, "qwen3"),
    # Block-causal: under an architecture that llama.cpp denoises it would see all positions.
    "fastdllm2": (None, "qwen2"),
}
TEXTS = [
    *("", " ", "Hello, world!", "  two  spaces", "tabs\tand\r\nlines\n\n", "it's WE'LL I'd"),
    *("12345 6.78", "\u00e9t\u00e9 Stra\u00dfe", "e\u0301 decomposed", "\u4f60\u597d\uff0c"),
    *("\U0001f642 emoji \U0001f469\u200d\U0001f4bb", "def f(x):\n    return x**2"),
    *("<|mask|><|mdm_mask|>", "a<|endoftext|>b", "\u0645\u0631\u062d\u0628\u0627", "x" * 40),
    *("!!!???...", "mixed123abc", "\ufeffbom", "trailing space "),
]
assert len(TEXTS) == 20


@functools.cache
def original(name: str) -> Checkpoint:
    return softmask.load(GOLDENS / name / "model", family=MODELS[name][0], device="cpu")


def logits_of(checkpoint: Checkpoint) -> torch.Tensor:
    with torch.no_grad():
        return checkpoint.model(torch.arange(5, 29)[None]).logits


def ids_of(checkpoint: Checkpoint) -> list[list[int]]:
    return checkpoint.tokenizer(TEXTS, add_special_tokens=False)["input_ids"]


def assert_the_same(found: Checkpoint, wanted: Checkpoint) -> None:
    assert torch.equal(logits_of(found), logits_of(wanted))
    assert ids_of(found) == ids_of(wanted)
    assert found.tokenizer.chat_template == wanted.tokenizer.chat_template
    assert found.end_ids == wanted.end_ids
    assert found.model.mask_id == wanted.model.mask_id
    for key in ("family", "block_size", "block_origin", "expand_token_id", "logit_shift"):
        assert getattr(found.model.config, key) == getattr(wanted.model.config, key), key
    assert (found.sampling, found.soft_mask) == (wanted.sampling, wanted.soft_mask)


def data_of(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a file as the package gguf reads and dequantises them."""
    tensors = gguf.GGUFReader(file).tensors
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in tensors}


@pytest.fixture(scope="module")
def dream(tmp_path_factory) -> Path:
    folder = write_dream_folder(tmp_path_factory.mktemp("dream") / "m", chat=True)
    soft = {"transparency_scale": 0.25, "transparency_centre": -1.0, "transparency_steepness": 5.0}
    soft |= {"transparency_alg": "mixinputs_with_topk", "mixinputs_k": 1, "mixture_temp": None}
    write_json(folder / "transparency_config.json", {**soft, "transparency_scheduling": "none"})
    write_json(folder / "sampling_config.json", {"temperature": 0.5})
    return folder


@pytest.fixture(scope="module")
def exported(dream, tmp_path_factory) -> Path:
    return export_gguf(tmp_path_factory.mktemp("gguf") / "dream.gguf", dream)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_each_family_comes_back_from_a_file_as_it_was(name, tmp_path) -> None:
    family, architecture = MODELS[name]
    file = export_gguf(tmp_path / "m.gguf", GOLDENS / name / "model", family=family)
    # The goldens are in bf16, so that nothing is rounded.
    assert_the_same(softmask.load(file, device="cpu"), original(name))
    assert gguf.GGUFReader(file).fields["general.architecture"].contents() == architecture


def test_settings_of_sampling_and_soft_masking_are_in_the_file(dream, exported) -> None:
    found, wanted = softmask.load(exported, device="cpu"), softmask.load(dream, device="cpu")
    assert_the_same(found, wanted)
    assert found.soft_mask is not None
    assert found.sampling["temperature"] == 0.5


@pytest.mark.parametrize(
    ("name", "architecture", "family", "pre"),
    [
        ("llada", "llada", None, "gpt-2"),
        ("dreamon", "dream", "dreamon", "qwen2"),
        ("a2d_qwen2_mdlm", "qwen2", "a2d-qwen2", "qwen2"),
        ("a2d_qwen3_mdlm", "qwen3", "a2d-qwen3", "qwen2"),
        ("a2d_llama_mdlm", "llama", "a2d-llama", "llama-bpe"),
    ],
)
def test_a_file_of_llama_cpps_converter_gives_the_logits_and_ids_of_the_folder(
    name, architecture, family, pre, tmp_path
) -> None:
    folder, config = GOLDENS / name / "model", original(name).model.config
    settings = {
        key: getattr(config, key)
        for key in (
            *("num_hidden_layers", "max_position_embeddings", "hidden_size", "intermediate_size"),
            *("num_attention_heads", "num_key_value_heads", "vocab_size", "rms_norm_eps"),
        )
    }
    settings["rope_theta"] = config.rope_parameters["rope_theta"]

    def change(writer) -> None:
        if architecture == "llada":
            writer.add_diffusion_shift_logits(False)
        if "mask_token_id" not in writer.kv_data[0]:
            writer.add_mask_token_id(config.mask_token_id)

    file = write_as_llama_cpp(
        tmp_path / "m.gguf",
        folder,
        architecture,
        original(name).tokenizer,
        pre=pre,
        change=change,
        **settings,
    )
    if name == "dreamon":  # its <|expand|> is in no key of llama.cpp's
        with pytest.raises(ValueError, match=r"id of <\|expand\|>"):
            softmask.load(file, device="cpu")
        return
    found = softmask.load(file, family=family, device="cpu")
    assert torch.equal(logits_of(found), logits_of(original(name)))
    assert ids_of(found) == ids_of(original(name))
    assert found.tokenizer.chat_template == original(name).tokenizer.chat_template
    assert found.end_ids == original(name).end_ids


def test_a_dream_file_of_llama_cpps_converter_is_known_without_being_told(dream, tmp_path) -> None:
    wanted = softmask.load(dream, device="cpu")
    file = write_as_llama_cpp(tmp_path / "m.gguf", dream, "dream", wanted.tokenizer, pre="qwen2")
    found = softmask.load(file, device="cpu")
    assert torch.equal(logits_of(found), logits_of(wanted))
    assert ids_of(found) == ids_of(wanted)
    assert found.family.name == "dream"


@pytest.mark.parametrize("kind", gguf_export.KINDS)
def test_the_package_reads_what_is_exported(dream, kind, tmp_path) -> None:
    file = export_gguf(tmp_path / "m.gguf", dream, kind=kind)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DREAM, 2)
    weights = softmask.load(dream, device="cpu").model.state_dict()
    wanted = {names.get_name(n, (".weight", ".bias")): t.numpy() for n, t in weights.items()}
    reader = gguf.GGUFReader(file)
    assert {tensor.name for tensor in reader.tensors} == wanted.keys()
    for tensor in reader.tensors:
        theirs = Type[kind.upper()]
        if len(tensor.shape) == 1:
            theirs = Type.F32
        elif kind == "q8_0" and tensor.shape[0] % 32:
            theirs = Type.F16  # as llama.cpp's converter has rows that blocks do not divide
        assert tensor.tensor_type == theirs
        assert np.array_equal(tensor.data, gguf.quantize(wanted[tensor.name], theirs))
    assert Type.F16 in {t.tensor_type for t in reader.tensors} or kind in ("bf16", "f32")


def random_blocks(kind: Type, rows: int, columns: int) -> np.ndarray:
    """Blocks of any values, but for scales, which are fp16 and small."""
    block, width = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 256, (rows, columns // block, width), np.uint8)
    scale = np.array([0.01], np.float16).view(np.uint8)
    places = {Type.Q4_K: (0, 2), Type.Q6_K: (width - 2,)}[kind]
    for place in places:
        data[..., place : place + 2] = scale
    return data.reshape(rows, -1)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q6_K"])
def test_each_type_is_dequantised_as_the_package_says(kind, tmp_path) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    folder = write_dream_folder(tmp_path / "m", **wide)
    type_ = Type[kind]
    tokenizer = softmask.load(folder, device="cpu").tokenizer
    convert = functools.partial(
        write_as_llama_cpp, tmp_path / "m.gguf", folder, "dream", tokenizer, pre="qwen2"
    )
    if kind.endswith("_K"):  # which the package does not quantise
        file = convert()
        plain, reader = file.read_bytes(), gguf.GGUFReader(file)
        file = tmp_path / "k.gguf"
        writer = gguf.GGUFWriter(file, "dream")
        for key, field in reader.fields.items():
            if not key.startswith(("GGUF.", "general.architecture")):
                sub = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub)
        for tensor in reader.tensors:
            if len(tensor.shape) == 1:
                writer.add_tensor(tensor.name, tensor.data)
            else:
                data = random_blocks(type_, *tensor.data.shape)
                writer.add_tensor(tensor.name, data, raw_dtype=type_)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert file.stat().st_size < len(plain)
    else:
        file = convert(kind=type_)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DREAM, 1)
    weights = softmask.load(file, device="cpu").model.state_dict()
    found = {names.get_name(n, (".weight", ".bias")): t.numpy() for n, t in weights.items()}
    wanted = data_of(file)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.array_equal(found[name], value), name


def test_a_file_goes_layer_by_layer_into_the_packed_form_of_its_folder(tmp_path) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4}
    folder = write_dream_folder(tmp_path / "m", **wide)
    file = export_gguf(tmp_path / "m.gguf", folder)
    for kind in ("int8", "int4"):
        found = softmask.load(file, quantize=kind, device="cpu")
        wanted = softmask.load(folder, quantize=kind, device="cpu")
        assert torch.equal(logits_of(found), logits_of(wanted))
        assert bytes_of(found.model) == bytes_of(wanted.model)
        assert not any(p.requires_grad for p in found.model.parameters())


def test_no_more_than_one_layer_is_whole_while_a_file_is_quantised(tmp_path, monkeypatch) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 128}
    file = export_gguf(tmp_path / "m.gguf", write_dream_folder(tmp_path / "m", **wide))
    seen, replace = [], Quantizer.replace

    def watched(quantizer, blocks, name, inside) -> None:
        whole = [
            place
            for place, module in blocks.named_modules()
            if isinstance(module, torch.nn.Linear)
            and module.weight.dtype == torch.float32
            and not module.weight.is_meta
        ]
        seen.append((name, whole))
        replace(quantizer, blocks, name, inside)

    monkeypatch.setattr(Quantizer, "replace", watched)
    softmask.load(file, quantize="int8", device="cpu")
    assert len(seen) == 14
    assert all(whole == [name] for name, whole in seen)


def test_no_tensor_is_whole_in_fp32_where_the_model_is_not(dream, tmp_path, monkeypatch) -> None:
    from softmask.hub import gguf_weights

    file = export_gguf(tmp_path / "m.gguf", dream, kind="q8_0")
    monkeypatch.setattr(gguf_weights, "CHUNK", 200)  # a few rows
    sizes, dequantize = [], gguf.dequantize

    def watched(data, kind):
        found = dequantize(data, kind)
        sizes.append(found.size)
        return found

    monkeypatch.setattr(gguf, "dequantize", watched)
    model = softmask.load(file, device="cpu", dtype="bfloat16").model
    assert model.dtype == torch.bfloat16
    assert max(sizes) <= 200
    monkeypatch.undo()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DREAM, 2)
    wanted = data_of(file)
    for name, tensor in model.state_dict().items():
        value = torch.tensor(wanted[names.get_name(name, (".weight", ".bias"))])
        assert torch.equal(tensor, value.bfloat16()), name


def test_an_adapter_is_merged_into_what_is_exported_and_into_a_file(dream, tmp_path) -> None:
    write_lora_adapter(tmp_path / "a", dream, target_modules=["q_proj", "down_proj"])
    wanted = softmask.load(dream, tmp_path / "a", device="cpu")
    file = export_gguf(tmp_path / "m.gguf", dream, tmp_path / "a")
    rounded = softmask.load(file, device="cpu").model.state_dict()
    for name, tensor in wanted.model.state_dict().items():
        kept = tensor if tensor.dim() == 1 else tensor.bfloat16().float()
        assert torch.equal(rounded[name], kept), name
    plain = export_gguf(tmp_path / "base.gguf", dream)
    found = softmask.load(plain, tmp_path / "a", device="cpu")
    assert torch.equal(logits_of(found), logits_of(wanted))
    # An adapter that names a file as its base finds it.
    change_json(tmp_path / "a" / "adapter_config.json", base_model_name_or_path=str(plain))
    assert torch.equal(logits_of(softmask.load(tmp_path / "a", device="cpu")), logits_of(wanted))
    assert look_at(tmp_path / "a", "a").problem is None
    # A file is exported anew, in another type too.
    again = export_gguf(tmp_path / "again.gguf", plain)
    assert again.read_bytes()[-10000:] == plain.read_bytes()[-10000:]


def test_llama_3s_rotary_embedding_is_a_tensor_of_factors(tmp_path) -> None:
    folder = shutil.copytree(GOLDENS / "a2d_llama_mdlm" / "model", tmp_path / "m")
    rope = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    change_json(folder / "config.json", rope_scaling=rope)
    wanted = softmask.load(folder, device="cpu")
    file = export_gguf(tmp_path / "m.gguf", folder)
    reader = gguf.GGUFReader(file)
    assert reader.fields["general.architecture"].contents() == "llama"  # which reads the factors
    inverse = wanted.model.model.rotary_emb.inv_freq
    theta = wanted.model.config.rope_parameters["rope_theta"]
    plain = 1 / theta ** (torch.arange(0, 2 * len(inverse), 2) / (2 * len(inverse)))
    factors = torch.from_numpy(data_of(file)["rope_freqs.weight"].copy())
    torch.testing.assert_close(plain / factors, inverse)
    assert_the_same(softmask.load(file, device="cpu"), wanted)
    # llama.cpp's converter writes the factors alone.
    other = tmp_path / "other.gguf"
    other.write_bytes(file.read_bytes().replace(b"softmask.config", b"softmask.xonfig"))
    found = softmask.load(other, family="a2d-llama", device="cpu")
    assert torch.equal(found.model.model.rotary_emb.inv_freq, inverse)
    # Factors that are not Llama 3's are refused.
    start = next(t.data_offset for t in reader.tensors if t.name == "rope_freqs.weight")
    content = bytearray(other.read_bytes())
    content[start : start + 4] = np.float32(1.5).tobytes()
    other.write_bytes(content)
    with pytest.raises(ValueError, match="not those of Llama 3"):
        softmask.load(other, family="a2d-llama", device="cpu")


def test_rows_of_queries_lie_as_the_converter_puts_them(tmp_path) -> None:
    file = export_gguf(tmp_path / "m.gguf", GOLDENS / "llada" / "model")
    weights = original("llada").model.state_dict()
    heads = original("llada").model.config.num_attention_heads
    rows = weights["model.layers.0.self_attn.q_proj.weight"]
    found = data_of(file)["blk.0.attn_q.weight"]
    assert np.array_equal(found, side_by_side(rows, heads).numpy())


def test_a_truncated_or_changed_file_is_refused_in_a_sentence(exported, tmp_path) -> None:
    content = exported.read_bytes()
    start = min(t.data_offset for t in gguf.GGUFReader(exported).tensors)
    file = tmp_path / "m.gguf"
    ends = [0, 3, 4, 8, 16, 23, 24, *range(30, start, start // 40), start, len(content) - 1]
    for end in ends:
        file.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"^[^\n]{10,300}$"):
            softmask.load(file, device="cpu")
    # In front of the tokenizer, where each byte counts.
    random = np.random.default_rng(0)
    for place in random.integers(4, 1500, 60).tolist():
        changed = bytearray(content)
        changed[place] ^= int(random.integers(1, 256))
        file.write_bytes(changed)
        try:
            softmask.load(file, device="cpu")
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017, some changes are harmless


def rewritten(file: Path, target: Path, **changes) -> Path:
    """A file with other values of some keys, or without them where they are None."""
    reader = gguf.GGUFReader(file)
    architecture = changes.pop("general.architecture", None)
    architecture = architecture or reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for key, field in reader.fields.items():
        if key.startswith(("GGUF.", "general.architecture")) or key in changes:
            continue
        sub = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub)
    for key, value in changes.items():
        if value is not None:
            gguf_export._add(writer, key, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "gemma3"}, "softmask loads dream, llada, qwen2, qwen3, llama"),
        ({"split.count": 3}, "llama-gguf-split --merge"),
        ({"tokenizer.huggingface.json": None, "tokenizer.ggml.pre": "tekken"}, "cuts texts as"),
        ({"tokenizer.huggingface.json": None, "tokenizer.ggml.model": "llama"}, "byte-level BPE"),
        ({"tokenizer.ggml.mask_token_id": 5}, "no mask token at id 5"),
        ({"tokenizer.ggml.mask_token_id": 5000}, "mask_token_id"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "2 kinds of them"),
        ({"dream.embedding_length": 64}, "wrong shape for"),
        ({"dream.block_count": None}, "no dream.block_count"),
        ({"dream.attention.head_count": "four"}, "num_attention_heads"),
        ({"dream.rope.dimension_count": 4}, "one width for both"),
        ({"diffusion.shift_logits": False}, "diffusion.shift_logits"),
        ({"softmask.config": "{"}, "softmask.config is no JSON mapping"),
        ({"softmask.config": '{"new": 1}'}, "update softmask"),
        ({"softmask.config": '{"family": "llada"}'}, "--family dream"),
        ({"softmask.sampling": '{"heat": 1}'}, "heat"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_in_a_sentence(
    exported, tmp_path, changes, message
) -> None:
    file = rewritten(exported, tmp_path / "m.gguf", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        softmask.load(file, device="cpu")
    assert "\n" not in str(caught.value)


def test_an_ordinary_causal_architecture_needs_a_family(tmp_path) -> None:
    file = export_gguf(tmp_path / "m.gguf", GOLDENS / "a2d_qwen3_mdlm" / "model")
    bare = rewritten(
        file, tmp_path / "bare.gguf", **{"softmask.config": None, "qwen3.attention.causal": None}
    )
    with pytest.raises(ValueError, match="as ordinary ones are too: say what it is by --family"):
        softmask.load(bare, device="cpu")
    with pytest.raises(ValueError, match="which LLaDA is not"):
        softmask.load(bare, family="llada", device="cpu")
    found = softmask.load(bare, family="a2d-qwen3", device="cpu")
    assert torch.equal(logits_of(found), logits_of(original("a2d_qwen3_mdlm")))
    # Where the file itself says that nothing is causal, it is known.
    plain = rewritten(file, tmp_path / "plain.gguf", **{"softmask.config": None})
    assert softmask.load(plain, device="cpu").family is FAMILIES["a2d-qwen3"]


def test_a_missing_package_is_a_sentence_that_names_the_extra(exported, monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "gguf" else found(name, *a)
    )
    with pytest.raises(ValueError, match=r"pip install 'softmask\[gguf\]'"):
        softmask.load(exported, device="cpu")


def test_an_export_that_fails_leaves_the_older_file_and_nothing_else(
    dream, tmp_path, monkeypatch
) -> None:
    target = export_gguf(tmp_path / "m.gguf", dream)
    before = target.read_bytes()
    with pytest.raises(ValueError, match="is there already: give another file, or --overwrite"):
        export_gguf(target, dream)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_export, "_encoded", full)
    with pytest.raises(ValueError, match="cannot be written: No space left"):
        export_gguf(target, dream, overwrite=True)
    monkeypatch.undo()
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    other = tmp_path / "notes.gguf"
    other.write_text("mine")
    with pytest.raises(ValueError, match="no GGUF file, so it is not replaced"):
        export_gguf(other, dream, overwrite=True)
    with pytest.raises(ValueError, match=r"does not end in \.gguf"):
        export_gguf(tmp_path / "m", dream)
    with pytest.raises(ValueError, match="there is no folder"):
        export_gguf(tmp_path / "none" / "m.gguf", dream)
    with pytest.raises(ValueError, match="what is to be exported"):
        export_gguf(target, target, overwrite=True)


def test_what_llama_cpp_has_no_network_or_tokenizer_for_is_not_written(dream, tmp_path) -> None:
    folder = shutil.copytree(dream, tmp_path / "m")
    change_json(folder / "config.json", hidden_act="relu")
    with pytest.raises(ValueError, match="softmask knows no architecture"):
        export_gguf(tmp_path / "m.gguf", folder)
    folder = shutil.copytree(GOLDENS / "a2d_qwen3_mdlm" / "model", tmp_path / "q")
    described = json.loads((folder / "tokenizer.json").read_text())
    described["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W+"
    write_json(folder / "tokenizer.json", described)
    with pytest.raises(ValueError, match="no name for how its tokenizer cuts texts"):
        export_gguf(tmp_path / "m.gguf", folder)


def test_the_commands_export_list_and_generate_with_a_file(dream, tmp_path, capsys) -> None:
    file = tmp_path / "m.gguf"
    assert main(["export", "--gguf", "bf16", str(file), "--model", str(dream)]) == 0
    assert capsys.readouterr().out == f"the model is in {file}\n"
    assert main(["models", "--json", str(tmp_path)]) == 0
    entries = json.loads(capsys.readouterr().out)
    (entry,) = [entry for entry in entries if entry["name"] == str(file)]
    assert entry["what"] == "Dream model in GGUF for chat, soft-masked"
    assert entry["bytes"] == file.stat().st_size
    written = []
    for model in (file, dream):
        command = f"generate The --model {model} --device cpu --max-new-tokens 8 --steps 4 --seed 1"
        assert main(command.split()) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1] != ""
    served = load_model(serve_parser().parse_args(["--model", str(file), "--device", "cpu"]))
    assert served.name == str(file)


def test_what_llama_cpp_does_not_denoise_is_said_when_it_is_written(tmp_path, capsys) -> None:
    model = GOLDENS / "a2d_qwen3_mdlm" / "model"
    command = ["export", str(tmp_path / "m.gguf"), "--gguf", "q8_0", "--model", str(model)]
    assert main(command) == 0
    assert "from left to right" in capsys.readouterr().out


def test_mistakes_with_files_are_one_sentence_and_exit_2(dream, exported, tmp_path, capsys) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(exported.read_bytes()[:5000])
    for command in ("generate", "serve"):
        prompt = ["The"] if command == "generate" else ["--port", "0"]
        assert "its head is cut off" in failed(capsys, command, *prompt, "--model", str(cut))
    text = tmp_path / "text.gguf"
    text.write_text("no model")
    assert "is no GGUF file" in failed(capsys, "generate", "The", "--model", str(text))
    revision = ["--model", str(exported), "--revision", "main"]
    assert "is a local file" in failed(capsys, "generate", "The", *revision)
    as_adapter = ["--model", str(dream), "--adapter", str(exported)]
    assert "is a model, no adapter" in failed(capsys, "generate", "The", *as_adapter)
    target = str(tmp_path / "out")
    assert "give --gguf" in failed(capsys, "export", target, "--model", str(exported))
    both = ["--gguf", "bf16", "--dtype", "float16"]
    assert "--dtype is for a folder" in failed(capsys, "export", target, *both)
    assert "bf16" in failed(capsys, "export", f"{target}.gguf", "--gguf", "q2_k")
    # A damaged file is listed with what is wrong.
    assert main(["models", str(tmp_path)]) == 0
    assert f"{cut} is damaged (its head is cut off)" in capsys.readouterr().err
