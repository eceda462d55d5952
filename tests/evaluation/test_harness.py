"""The harness' model class: what each request gets, alone, in a batch, cut and softened."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager
from tiny import write_dora_adapter, write_dream_folder, write_json

from softmask.config import FEEDBACK_PRESETS, SamplingConfig, SoftMaskConfig, soft_mask_to_published
from softmask.decoding import masked_rows
from softmask.decoding.likelihood import Estimate
from softmask.decoding.memory import Footprint
from softmask.decoding.prompts import encode, encode_chat
from softmask.evaluation.auto_batch import PAYING
from softmask.evaluation.batching import make_batches
from softmask.evaluation.config import cut, model_args, task_args
from softmask.evaluation.harness import SoftMaskLM
from softmask.evaluation.responses import Responses, request_key
from softmask.models import DreamModel

SOFT = SoftMaskConfig(k=2, scale=0.8, offset=-4.0, steepness=1.0)
PROMPTS = ("on", "the other one, and on and on", "The", "then there was nothing more to be said")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dream_folder(tmp_path_factory.mktemp("model") / "m", chat=True)


@pytest.fixture(scope="module")
def soft_folder(tmp_path_factory):
    path = write_dream_folder(tmp_path_factory.mktemp("soft") / "m", chat=True)
    write_json(path / "transparency_config.json", soft_mask_to_published(SOFT))
    return path


def requests(*contexts: str, **kwargs) -> list[Instance]:
    return [
        Instance("generate_until", {}, (context, kwargs), 0, ("task", i, 1))
        for i, context in enumerate(contexts)
    ]


def lm(folder, **args) -> SoftMaskLM:
    return SoftMaskLM(pretrained=str(folder), device="cpu", **args)


def test_the_harness_knows_the_model_by_name_and_its_own_ones_still() -> None:
    assert get_model("softmask") is SoftMaskLM
    assert get_model("dummy").__name__ == "DummyLM"


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_p": 0.9}])
def test_a_row_is_answered_the_same_in_a_batch_and_alone(soft_folder, settings) -> None:
    wanted = {"max_gen_toks": 12, "until": []}
    batch = lm(soft_folder, batch_size=4, **settings).generate_until(requests(*PROMPTS, **wanted))
    one = lm(soft_folder, batch_size=1, **settings)
    alone = [one.generate_until(requests(prompt, **wanted))[0] for prompt in PROMPTS]
    assert batch == alone
    assert len(set(batch)) > 1


def test_every_row_keeps_its_own_stop_strings_and_length(folder) -> None:
    whole = lm(folder).generate_until(requests("on", max_gen_toks=16))[0]
    assert len(whole) > 4
    stop = whole[3]
    model = lm(folder, batch_size=4)
    mixed = [
        *requests("on", max_gen_toks=16),
        *requests("on", max_gen_toks=16, until=[stop]),
        *requests("on", max_gen_toks=5),
    ]
    first, second, third = model.generate_until(mixed)
    assert first == whole
    assert second == whole[: whole.index(stop)]
    short = model.responses[request_key(("on", {"max_gen_toks": 5}))]
    assert third == short["text"]
    assert short["tokens"] <= 5
    assert short["steps"] == 5


def test_answers_go_on_behind_stop_strings_where_that_is_asked_for(folder) -> None:
    whole = lm(folder).generate_until(requests("on", max_gen_toks=16))[0]
    asked = requests("on", max_gen_toks=16, until=[whole[3]])
    assert lm(folder, escape_until=True).generate_until(asked) == [whole]
    # A template's stop strings come on top of a task's.
    both = lm(folder).using(lm(folder).args, Responses(), until=(whole[1],))
    assert both.generate_until(asked) == [whole[: whole.find(whole[1])]]


@pytest.mark.parametrize("off", [{"top_k": 0}, {"top_k": -1}, {"top_p": 0, "temperature": 0.0}])
def test_a_filter_that_is_off_by_convention_is_off(folder, off) -> None:
    rest = {"top_k": {"temperature": 0.9, "seed": 3}, "top_p": {}}[next(iter(off))]
    plain = lm(folder, **rest).generate_until(requests("on", max_gen_toks=12))
    assert lm(folder, **rest | off).generate_until(requests("on", max_gen_toks=12)) == plain
    asked = requests("on", max_gen_toks=12, **off)
    assert lm(folder, **rest).generate_until(asked) == plain
    # What is said of the model wins over a task, off too.
    if "top_k" in off:
        asked = requests("on", max_gen_toks=12, top_k=1)
        assert lm(folder, **rest | off).generate_until(asked) == plain


def test_top_p_0_where_tokens_are_drawn_may_mean_two_things_and_is_refused(folder) -> None:
    with pytest.raises(ValueError, match=r"top_p must lie in \(0, 1\], not 0"):
        lm(folder, top_p=0).generate_until(requests("on", temperature=1.0, max_gen_toks=4))


def test_a_task_says_how_warm_it_wants_it_unless_the_model_arguments_do(folder) -> None:
    greedy = lm(folder, seed=1).generate_until(requests("on", do_sample=False, max_gen_toks=16))
    other_seed = lm(folder, seed=2).generate_until(requests("on", do_sample=False, max_gen_toks=16))
    assert greedy == other_seed
    warm = {"do_sample": True, "temperature": 2.0, "max_gen_toks": 16}
    one, two = (lm(folder, seed=s).generate_until(requests("on", **warm)) for s in (1, 2))
    assert one != two
    cold = lm(folder, temperature=0.0, seed=1).generate_until(requests("on", **warm))
    assert cold == greedy


def test_model_arguments_win_over_the_task_in_length_and_steps(folder) -> None:
    model = lm(folder, max_new_tokens=12, diffusion_steps=6, alg="maskgit_plus")
    model.generate_until(requests("on", max_gen_toks=99))
    answer = model.responses[request_key(("on", {"max_gen_toks": 99}))]
    assert answer["steps"] == 6
    assert answer["forwards"] <= 6
    assert answer["tokens"] <= 12


def test_a_fraction_of_the_forwards_follows_the_length_of_each_task(folder) -> None:
    model = lm(folder, nfe=0.25)
    model.generate_until([*requests("on", max_gen_toks=16), *requests("on", max_gen_toks=40)])
    assert model.responses[request_key(("on", {"max_gen_toks": 16}))]["steps"] == 4
    assert model.responses[request_key(("on", {"max_gen_toks": 40}))]["steps"] == 10


def test_the_repeats_of_a_request_are_different_draws(folder) -> None:
    warm = {"do_sample": True, "temperature": 2.0, "max_gen_toks": 12}
    model = lm(folder)
    repeated = requests("on", **warm) * 3  # as the harness repeats it: the same object
    texts = model.generate_until(repeated)
    assert len(set(texts)) == 3
    assert lm(folder, batch_size=2).generate_until(repeated) == texts


def test_two_tasks_that_ask_the_same_get_the_answer_of_either_alone(folder) -> None:
    warm = {"do_sample": True, "temperature": 2.0, "max_gen_toks": 12}
    model = lm(folder)
    texts = model.generate_until([*requests("on", **warm), *requests("on", **warm)])
    assert texts == 2 * lm(folder).generate_until(requests("on", **warm))
    assert len(model.responses.by_key) == 1


def test_an_answer_is_what_diffusion_generate_writes_by_hand(soft_folder) -> None:
    model = lm(soft_folder)
    dream, tokenizer = model.checkpoint.model, model.checkpoint.tokenizer
    banned = [dream.config.mask_token_id, *range(len(tokenizer), dream.config.vocab_size)]

    def no_banned(_step, _canvas, logits):
        logits[..., banned] = torch.finfo(logits.dtype).min
        return logits

    ids = torch.tensor([encode(model.checkpoint, PROMPTS[1])])
    sequences = dream.diffusion_generate(
        ids,
        max_new_tokens=24,
        steps=12,
        alg="entropy",
        generation_logits_hook_func=no_banned,
        **soft_mask_to_published(SOFT),
    )
    written = sequences[0, ids.shape[1] :].tolist()
    ends = [i for i, token in enumerate(written) if token in model.checkpoint.end_ids]
    by_hand = tokenizer.decode(written[: ends[0]] if ends else written, skip_special_tokens=True)
    wanted = {"max_gen_toks": 24, "diffusion_steps": 12}
    assert model.generate_until(requests(PROMPTS[1], **wanted)) == [by_hand]
    plain = lm(soft_folder, softmasking=False).generate_until(requests(PROMPTS[1], **wanted))
    assert plain != [by_hand]


def test_a_long_context_of_a_choice_is_cut_and_the_record_says_by_how_much(folder, caplog) -> None:
    model = lm(folder, max_length=32, mc_num=1)
    pair = ("on and on " * 20, "the end")
    model.loglikelihood([Instance("loglikelihood", {}, pair, 0, ("task", 0, 1))])
    assert "1 of 1 prompts do not fit the window of 32 tokens" in caplog.text
    (answer,) = model.responses.by_key.values()
    ids, end = (len(encode(model.checkpoint, text)) for text in (pair[0], pair[1]))
    assert abs(answer["prompt_tokens_cut"] - (ids + end - 32)) <= 2  # a space is the end's


def test_a_long_prompt_is_cut_at_its_left_and_the_record_says_by_how_much(folder, caplog) -> None:
    model = lm(folder, max_length=32)
    long = "on and on " * 20 + "the end"
    ids = encode(model.checkpoint, long)
    text = model.generate_until(requests(long, max_gen_toks=8))[0]
    assert "1 of 1 prompts do not fit" in caplog.text
    answer = model.responses[request_key((long, {"max_gen_toks": 8}))]
    assert answer["prompt_tokens"] == 24
    assert answer["prompt_tokens_cut"] == len(ids) - 24
    kept = model.checkpoint.tokenizer.decode(ids[-24:])
    assert text == model.generate_until(requests(kept, max_gen_toks=8))[0]


def test_an_answer_that_leaves_no_room_for_the_prompt_is_an_error(folder) -> None:
    with pytest.raises(ValueError, match="leave no room for a prompt in a window of 32"):
        lm(folder, max_length=32).generate_until(requests("on", max_gen_toks=32))


def test_an_adapter_alone_brings_base_soft_mask_and_tokenizer(folder, tmp_path) -> None:
    adapter = tmp_path / "adapter"
    write_dora_adapter(adapter, folder)
    write_json(adapter / "transparency_config.json", soft_mask_to_published(SOFT))
    both = lm(folder, adapter=str(adapter))
    alone = lm(adapter)
    wanted = requests(*PROMPTS, max_gen_toks=10)
    assert alone.soft_mask == both.soft_mask == SOFT
    assert alone.checkpoint.name == str(folder)
    assert alone.generate_until(wanted) == both.generate_until(wanted)
    assert alone.generate_until(wanted) != lm(folder).generate_until(wanted)
    template = json.loads((folder / "tokenizer_config.json").read_text())
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"):
        (adapter / name).write_bytes((folder / name).read_bytes())
    changed = template | {"chat_template": "{{ messages[0]['content'] }}!"}
    write_json(adapter / "tokenizer_config.json", changed)
    assert lm(adapter).apply_chat_template([{"role": "user", "content": "A"}]) == "A!"


def test_an_adapter_without_a_base_is_an_error(folder, tmp_path) -> None:
    adapter = tmp_path / "adapter"
    write_dora_adapter(adapter, folder)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    write_json(adapter / "adapter_config.json", settings | {"base_model_name_or_path": None})
    with pytest.raises(ValueError, match="does not name its base model"):
        lm(adapter)


def test_softmasking_false_decodes_plainly_and_the_parameters_can_be_overridden(
    folder, soft_folder
) -> None:
    assert lm(soft_folder, softmasking=False).soft_mask is None
    assert lm(soft_folder, transparency_alg="none").soft_mask is None
    assert lm(soft_folder, mixinputs_k=3).soft_mask.k == 3
    assert lm(soft_folder, mixinputs_k=3).soft_mask.scale == SOFT.scale
    assert lm(folder, transparency_scale=0.5).soft_mask.scale == 0.5
    assert lm(folder).soft_mask is None
    arc = FEEDBACK_PRESETS["spherical"]
    assert lm(folder, feedback="spherical").soft_mask == arc
    changed = lm(soft_folder, feedback="spherical", mixinputs_k=3).soft_mask
    assert changed == dataclasses.replace(arc, k=3)
    assert lm(soft_folder, feedback="published").soft_mask.scale == SOFT.scale
    assert lm(soft_folder, feedback="off").soft_mask is None


@pytest.mark.parametrize(
    "asked", [{"softmasking": True}, {"mixinputs_k": 3}, {"feedback": "published"}]
)
def test_soft_masking_without_parameters_is_an_error_and_no_silent_plain_run(folder, asked) -> None:
    with pytest.raises(ValueError, match=r"no transparency_config\.json"):
        lm(folder, **asked)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mixinput_k": 3}, "did you mean 'mixinputs_k'"),
        ({"temperature": -1.0}, "temperature must be 0 or lie"),
        ({"softmasking": False, "mixinputs_k": 3}, "contradict each other"),
        ({"feedback": "off", "mixinputs_k": 3}, "contradict each other"),
        ({"feedback": "round"}, "feedback must be one of published"),
        ({"nfe": 0.5, "diffusion_steps": 3}, "diffusion_steps or nfe, not both"),
        ({"batch_size": "all"}, "batch_size must be a whole number or auto, not 'all'"),
        ({"batch_size": "auto:x"}, "batch_size must be a whole number or auto"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"mixinputs_k": 0}, "k must be at least 1"),
        ({"transparency_alg": "mixinputs"}, "transparency_alg must be one of"),
    ],
)
def test_a_bad_model_argument_is_one_sentence(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        model_args(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"until": [""]}, "none of them empty"),
        ({"until": 3}, "until must be a text or a list"),
        ({"until": ["a", None]}, "until must be a text or a list"),
        ({"num_beams": 4}, "unknown setting 'num_beams'"),
        ({"max_gen_toks": 0}, "max_gen_toks must be a whole number above 0"),
        ({"max_gen_toks": 1.5}, "max_gen_toks must be a whole number above 0"),
        ({"temprature": 0.5}, "did you mean 'temperature'"),
        ({"do_sample": "yes"}, "do_sample must be true or false, not 'yes'"),
        ({"do_sample": 2}, "do_sample must be true or false, not 2"),
    ],
)
def test_a_bad_generation_argument_is_one_sentence(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        task_args(values)


@pytest.mark.parametrize(
    ("given", "temperature"), [(0, 0.0), (False, 0.0), (1, 1.0), (True, 1.0), (None, None)]
)
def test_whether_to_sample_may_be_said_by_numbers(given, temperature) -> None:
    assert task_args({"do_sample": given}).sampling.get("temperature") == temperature


def test_of_several_names_of_a_setting_the_last_counts_as_the_command_line_comes_last() -> None:
    assert task_args({"max_gen_toks": 1024, "max_new_tokens": 64}).new_tokens == 64
    assert task_args({"max_new_tokens": 64, "max_gen_toks": 1024}).new_tokens == 1024
    assert task_args({"diffusion_steps": 9, "steps": 3}).sampling["steps"] == 3


def test_an_empty_document_has_no_nats_in_automatic_batches_too(folder) -> None:
    empty = [Instance("loglikelihood_rolling", {}, ("",), 0, ("task", 0, 1))]
    assert lm(folder, batch_size="auto").loglikelihood_rolling(empty) == [0.0]


def test_the_text_is_cut_before_the_first_of_the_stop_strings() -> None:
    assert cut("one two three", ("three", "two")) == "one "
    assert cut("one two", ()) == "one two"
    assert cut("one", ("two",)) == "one"


def test_a_chat_ends_with_the_prefix_of_the_answer(folder) -> None:
    model = lm(folder)
    chat = [{"role": "user", "content": "Write it."}]
    opened = model.apply_chat_template(chat)
    assert opened.endswith("<|im_start|>assistant\n")
    prefix = "Here it is:\n```python\n"
    answer = [*chat, {"role": "assistant", "content": prefix}]
    assert model.apply_chat_template(answer, add_generation_prompt=False) == opened + prefix


def test_a_model_without_chat_template_says_so(tmp_path) -> None:
    model = lm(write_dream_folder(tmp_path / "m"))
    with pytest.raises(ValueError, match="has no chat template"):
        model.apply_chat_template([{"role": "user", "content": "A"}])


def test_the_mask_tokens_name_in_a_prompt_is_text(folder) -> None:
    model = lm(folder)
    model.generate_until(requests("say <|mask|> now", max_gen_toks=4))
    assert model.checkpoint.model.config.mask_token_id not in model.tok_encode("say <|mask|> now")


def test_bos_is_prepended_on_request_alone(folder) -> None:
    ids = lm(folder).tok_encode("on")
    bos = lm(folder).tokenizer.bos_token_id
    assert lm(folder, add_bos_token=True).tok_encode("on") == [bos, *ids]


def test_a_chat_begins_as_in_generate_where_raw_prompts_of_its_family_begin_with_bos(
    tmp_path,
) -> None:
    path = write_dream_folder(tmp_path / "m", chat=True)
    config = json.loads((path / "config.json").read_text())
    write_json(path / "config.json", config | {"family": "opendcoder"})
    model = lm(path)
    bos = model.tokenizer.bos_token_id
    assert model.tok_encode("on")[0] == bos
    chat = [{"role": "user", "content": "on"}]
    (prompt,) = (model._row(model.apply_chat_template(chat), {"max_gen_toks": 4}, 0).ids,)
    assert list(prompt) == encode_chat(model.checkpoint, chat)


@pytest.mark.parametrize("asked", [{}, {"add_bos_token": True}])
def test_a_prompt_that_begins_with_bos_gets_no_second_one(tmp_path, asked) -> None:
    path = write_dream_folder(tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    write_json(path / "config.json", config | {"family": "opendcoder"})
    model = lm(path, **asked)
    assert model.tok_encode(model.tokenizer.bos_token + "on") == model.tok_encode("on")


def test_batches_hold_rows_decoded_alike_and_do_not_depend_on_what_is_known(folder) -> None:
    model = lm(folder)
    rows = [model._row("on " * n, {"max_gen_toks": 8 + n % 2}, 0) for n in range(1, 12)]
    batches = make_batches(rows, 3)
    assert sorted(row.key for batch in batches for row in batch) == sorted(r.key for r in rows)
    assert all(len({row.task.new_tokens for row in batch}) == 1 for batch in batches)
    assert make_batches(reversed(rows), 3) == batches


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_p": 0.9}])
def test_answers_are_the_same_one_by_one_by_sevens_and_in_automatic_batches(
    soft_folder, settings
) -> None:
    wanted = [*requests(*PROMPTS, max_gen_toks=6), *requests(*PROMPTS, max_gen_toks=9)]
    found = [
        lm(soft_folder, batch_size=size, **settings).generate_until(wanted)
        for size in (1, 7, "auto")
    ]
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) > len(PROMPTS)


def has_left(monkeypatch, megabytes: float) -> None:
    left = int(megabytes * 2**20), "the container"
    monkeypatch.setattr("softmask.evaluation.auto_batch.memory_left", lambda _device: left)


def test_an_automatic_batch_has_as_many_rows_as_the_memory_holds(folder, monkeypatch) -> None:
    monkeypatch.setattr("softmask.evaluation.auto_batch.PAYING", 10**6)
    has_left(monkeypatch, 20)
    model = lm(folder, batch_size="auto:4")
    assert model.args.batch_size == "auto"
    rows = [model._row("on " * n, {"max_gen_toks": 64}, 0) for n in [*range(1, 61)] * 3]
    auto = model.auto_batch()
    batches = make_batches(rows, auto.of_rows(None))
    assert sum(map(len, batches)) == len(rows)
    footprint = Footprint.of(model.checkpoint.model, cached=False, k=0)
    for batch in batches[:-1]:
        longest = batch[0].positions
        assert footprint.total(len(batch) * longest) <= auto.memory
        assert footprint.total((len(batch) + 1) * longest) > auto.memory
    assert set(auto.record()["limited_by"]) == {"memory of the container", "no more rows"}
    # What is drawn needs logits of every mask, and what is guided a second branch.
    drawn = dataclasses.replace(rows[0], sampling=SamplingConfig(temperature=1.0))
    guided = dataclasses.replace(rows[0], sampling=SamplingConfig(guidance=1.0))
    sizes = [auto.of_rows(None)(row, 1000) for row in (rows[0], drawn, guided)]
    assert sizes[0] > sizes[1] > 1
    assert sizes[2] == sizes[0] // 2


def test_an_automatic_batch_stops_where_more_rows_do_not_pay_or_are_not_wanted(folder) -> None:
    model = lm(folder, batch_size="auto", max_batch_size=20)
    auto = model.auto_batch()
    sizes = {}
    for tokens in (8, 60, 100):
        row = model._row("on", {"max_gen_toks": tokens}, 0)
        sizes[tokens] = auto.of_rows(None)(row, 1000)
        assert sizes[tokens] == min(20, math.ceil(PAYING / row.positions))
    blocks = {"max_gen_toks": 100, "cache": "dual", "block_length": 50, "steps": 100}
    # Of a text in blocks with a cache a step computes one block.
    assert sizes[100] < auto.of_rows(None)(model._row("on", blocks, 0), 1000) <= 20
    reasons = auto.record()["limited_by"]
    assert set(reasons) == {"max_batch_size", f"more than {PAYING} positions do not pay on a CPU"}


def test_an_automatic_batch_leaves_work_for_every_process(folder) -> None:
    model = lm(folder, batch_size="auto")
    rows = [model._row(f"on {i}", {"max_gen_toks": 8}, 0) for i in range(9)]
    batches = make_batches(rows, model.auto_batch().of_rows(None), processes=4)
    assert [len(batch) for batch in batches] == [3, 3, 3]


def test_a_batch_too_large_for_the_memory_is_answered_in_halves(
    folder, monkeypatch, caplog
) -> None:
    wanted = requests(*PROMPTS, max_gen_toks=6)
    whole = lm(folder, batch_size=4).generate_until(wanted)
    answer, sizes = SoftMaskLM._generate, []

    def fails(model, batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("too large")
        return answer(model, batch)

    monkeypatch.setattr(SoftMaskLM, "_generate", fails)
    model = lm(folder, batch_size=4)
    assert model.generate_until(wanted) == whole
    assert sizes == [4, 2, 2]
    assert model.batching() == {"out_of_memory": 1}
    assert "out of memory: 4 rows" in caplog.text
    # What was too large once is not tried again.
    assert model.generate_until(requests(*PROMPTS, max_gen_toks=6, until=["x"])) != []
    assert sizes[3:] == [2, 2]


def test_one_row_too_large_for_the_memory_is_an_error(folder, monkeypatch) -> None:
    def fails(model, batch):
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(SoftMaskLM, "_generate", fails)
    with pytest.raises(torch.OutOfMemoryError, match="too large"):
        lm(folder, batch_size=4).generate_until(requests(*PROMPTS, max_gen_toks=6))


def test_known_answers_are_not_generated_again(folder, tmp_path) -> None:
    model = lm(folder, batch_size=2)
    wanted = requests(*PROMPTS, max_gen_toks=6)
    first = model.using(model.args, Responses(tmp_path / "run"))
    texts = first.generate_until(wanted)
    written = (tmp_path / "run" / "responses.0.jsonl").read_bytes()
    # The kill came while the last line was being written: its batch is done again.
    (tmp_path / "run" / "responses.0.jsonl").write_bytes(written[:-10])
    again = model.using(model.args, Responses(tmp_path / "run"))
    assert len(again.responses.by_key) == len(PROMPTS) - 1
    assert again.generate_until(wanted) == texts
    lines = (tmp_path / "run" / "responses.0.jsonl").read_text().splitlines()
    assert len(lines) == len(PROMPTS) - 1 + 2
    third = model.using(model.args, Responses(tmp_path / "run"))
    third.checkpoint = None  # nothing is asked of the model any more
    third.responses.add = None
    third._row = model._row
    assert third.generate_until(wanted) == texts


def run_task(model: SoftMaskLM, task: dict, **settings) -> dict:
    """The harness on one task of our own; its thousands of others take seconds to index."""
    manager = TaskManager(include_defaults=False)
    return simple_evaluate(
        model=model, tasks=[task], task_manager=manager, bootstrap_iters=0, **settings
    )


def test_the_harness_own_cache_spares_the_second_run(folder, tmp_path) -> None:
    task = write_choice_task(tmp_path, generate=True)
    cache = str(tmp_path / "cache")
    model = lm(folder, batch_size=2)
    first = run_task(model, task, use_cache=cache)
    spare = lm(folder, batch_size=2)
    second = run_task(spare, task, use_cache=cache)
    assert first["samples"] == second["samples"]
    assert len(model.responses.by_key) == 3
    assert len(spare.responses.by_key) == 0


def test_the_harness_own_cache_has_each_batch_when_it_is_answered(folder, tmp_path) -> None:
    cache = str(tmp_path / "cache.db")
    wanted = requests(*PROMPTS, max_gen_toks=6)
    stopped = lm(folder, batch_size=2)
    answer, calls = stopped._generate, []

    def once(batch):
        calls.append(batch)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(batch)

    stopped._generate = once
    with pytest.raises(KeyboardInterrupt):
        CachingLM(stopped, cache).generate_until(wanted)
    spare = lm(folder, batch_size=2)
    texts = CachingLM(spare, cache).generate_until(wanted)
    assert texts == lm(folder, batch_size=2).generate_until(wanted)
    assert len(spare.responses.by_key) == 2


def write_choice_task(tmp_path, *, generate: bool = False) -> dict:
    rows = [
        {"q": "the", "choices": [" on", " the other"], "answer": 0},
        {"q": "on and", "choices": [" on", " then"], "answer": 1},
        {"q": "then", "choices": [" nothing", " on"], "answer": 1},
    ]
    path = tmp_path / "rows.json"
    write_json(path, rows)
    task = {
        "task": "tiny_choice",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(path)},
            "cache_dir": str(tmp_path / "datasets"),
        },
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "num_fewshot": 0,
    }
    if generate:
        metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
        return task | {
            "output_type": "generate_until",
            "doc_to_target": "{{choices[answer]}}",
            "generation_kwargs": {"max_gen_toks": 4, "until": ["\n"]},
            "metric_list": [metric],
        }
    return task | {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
    }


def test_multiple_choice_takes_the_choice_that_is_most_likely(soft_folder, tmp_path) -> None:
    task = write_choice_task(tmp_path)
    plain = lm(soft_folder, softmasking=False, mc_num=8)
    results = run_task(plain, task)
    for sample in results["samples"]["tiny_choice"]:
        scores = [response[0][0] for response in sample["resps"]]
        assert all(math.isfinite(score) and score < 0 for score in scores)
        assert sample["acc"] == (scores.index(max(scores)) == sample["target"])
    soft = lm(soft_folder, mc_num=8)
    run_task(soft, task)
    spent = [sum(a["forwards"] for a in m.responses.by_key.values()) for m in (plain, soft)]
    assert spent[1] == 2 * spent[0]
    assert all(a["error"] >= 0 for a in soft.responses.by_key.values())


def test_a_choice_takes_one_forward_where_all_of_it_is_read_in_one_step(
    folder, tmp_path, monkeypatch
) -> None:
    task, forward, shapes = write_choice_task(tmp_path), DreamModel.forward, []

    def seen(model, input_ids, **inputs):
        shapes.append(len(input_ids))
        return forward(model, input_ids, **inputs)

    monkeypatch.setattr(DreamModel, "forward", seen)
    model = lm(folder, estimator="one_step", batch_size="auto")
    results = run_task(model, task)
    assert shapes == [6]  # three questions of two choices, greedy and all, in one batch
    assert {a["forwards"] for a in model.responses.by_key.values()} == {1}
    assert {a["error"] for a in model.responses.by_key.values()} == {0.0}
    for size in (1, 4):
        other = run_task(lm(folder, estimator="one_step", mc_batch_size=size), task)
        for one, same in zip(
            results["samples"]["tiny_choice"], other["samples"]["tiny_choice"], strict=True
        ):
            assert one["acc"] == same["acc"]
            for [(score, greedy)], [(again, too)] in zip(one["resps"], same["resps"], strict=True):
                assert score == pytest.approx(again, abs=1e-4)
                assert greedy == too


def test_one_sample_is_a_group_of_lladas_masks(folder) -> None:
    pair = Instance("loglikelihood", {}, ("on", " on and on"), 0, ("t", 0, 1))
    model = lm(folder, estimator="llada", mc_num=1)  # as the suite has MMLU
    ((score, _),) = model.loglikelihood([pair])
    assert math.isfinite(score)
    assert [answer["forwards"] for answer in model.responses.by_key.values()] == [1]


def test_the_choices_of_a_document_share_their_random_numbers(folder, monkeypatch) -> None:
    asked = []

    def scored(_model, pairs, *_args, questions, **_):
        asked.append(questions)
        return [(Estimate(1.0, 0.0, len(ids), 1), False) for _, ids in pairs]

    monkeypatch.setattr("softmask.evaluation.harness_texts.estimates_and_matches", scored)
    # As in Winogrande: the choices stand in the context, what is scored is the same.
    pairs = [("the one", " on"), ("the other", " on"), ("then", " on")]
    documents = (0, 0, 1)
    lm(folder).loglikelihood(
        [
            Instance("loglikelihood", {}, pair, i, ("task", document, 1))
            for i, (pair, document) in enumerate(zip(pairs, documents, strict=True))
        ]
    )
    ((first, second, third),) = asked
    assert first == second != third


def test_a_pair_that_two_tasks_share_is_scored_in_each_as_in_that_task_alone(folder) -> None:
    def asked(*tasks: str) -> list[float]:
        pair = ("the one", " on and on, the other one")
        pairs = [Instance("loglikelihood", {}, pair, 0, (task, 0, 1)) for task in tasks]
        return [score for score, _ in lm(folder, mc_num=3).loglikelihood(pairs)]

    both = asked("one", "other")
    assert both == [*asked("one"), *asked("other")]
    assert both[0] != both[1]


def test_whole_texts_are_read_under_masks_of_their_own_whatever_else_is_asked(
    folder, monkeypatch
) -> None:
    read: list[torch.Tensor] = []
    kept = masked_rows.read_rows

    def reading(model, batch, *rest):
        read.extend(row.masked_L for row in batch)
        return kept(model, batch, *rest)

    monkeypatch.setattr("softmask.decoding.likelihood.read_rows", reading)

    def masks_of(*texts: str) -> torch.Tensor:
        read.clear()
        lm(folder, mc_num=8).loglikelihood_rolling(
            [
                Instance("loglikelihood_rolling", {}, (text,), 0, ("t", i, 1))
                for i, text in enumerate(texts)
            ]
        )
        return torch.stack(read)

    one, other = "the cat went on", "the dog went on"  # of as many tokens
    both = masks_of(one, other)
    alone = torch.cat([masks_of(one), masks_of(other)])
    assert both.tolist() == alone.tolist()
    half = len(both) // 2
    assert both[:half].tolist() != both[half:].tolist()


def test_a_context_is_cut_at_its_left_to_score_a_continuation(folder) -> None:
    model = lm(folder, max_length=16, mc_num=4)
    long = "on and on " * 10 + "the"
    ((score, _),) = model.loglikelihood(
        [Instance("loglikelihood", {}, (long, " then"), 0, ("t", 0, 1))]
    )
    assert math.isfinite(score)
    with pytest.raises(ValueError, match="must have some, and fit the window"):
        model.loglikelihood([Instance("loglikelihood", {}, ("on", " then" * 30), 0, ("t", 0, 1))])


def test_whole_texts_have_a_bound_that_falls_with_their_length(folder) -> None:
    model = lm(folder, mc_num=4)
    texts = ("on and on", "on and on and then there was nothing")
    short, long = model.loglikelihood_rolling(
        [
            Instance("loglikelihood_rolling", {}, (text,), 0, ("t", i, 1))
            for i, text in enumerate(texts)
        ]
    )
    assert long < short < 0
