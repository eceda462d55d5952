"""One evaluation in a folder: recorded, gone on with after a kill, shared by two processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation_files import SOFT
from kills import run_until_killed
from lm_eval.__main__ import HarnessCLI
from processes import ENVIRONMENT, python, ranks
from tiny import write_json

from softmask.cli.lm_eval import complete
from softmask.cli.main import main
from softmask.config import soft_mask_to_published
from softmask.evaluation import definitions, evaluate
from softmask.evaluation.responses import Responses, request_key
from softmask.evaluation.tasks import FOLDER
from softmask.hub.load import choose_device


def command(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    return [
        *("eval", "--tasks", "countdown_cd3_plain,sudoku_4x4_8_plain", "--model", str(model)),
        *("--data-dir", str(data), "--out", str(out), "--batch-size", "2", "--device", "cpu"),
        *("--temperature", "0.5"),
        *more,
    ]


def result(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def samples(folder: Path) -> list[dict]:
    """What was asked and answered, in the order of tasks and documents."""
    lines = [
        json.loads(line)
        for path in sorted(folder.glob("samples_*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return sorted(lines, key=lambda sample: (sample["arguments"][0][0], sample["doc_id"]))


@pytest.fixture(scope="module")
def finished(model, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    assert main(command(model, data, out)) == 0
    return out


def test_the_record_says_what_ran_on_what(finished, model) -> None:
    run = json.loads((finished / "run.json").read_text())
    assert run["command"][:3] == ["softmask", "eval", "--tasks"]
    assert run["soft_mask"] == soft_mask_to_published(SOFT)
    assert run["model"]["name"] == str(model)
    assert len(run["model"]["fingerprint"]) == 64
    assert run["adapter"] is None
    assert run["model_args"]["temperature"] == 0.5
    assert {"torch", "transformers", "lm-eval"} <= {n.replace("_", "-") for n in run["packages"]}
    assert run["environment"]["torch"]
    assert "commit" in run
    assert run["batching"] == {"out_of_memory": 0}
    answers = [json.loads(x) for x in (finished / "responses.0.jsonl").read_text().splitlines()]
    assert run["forwards"] == sum(answer["forwards"] for answer in answers) > 0


def test_every_sample_is_kept_with_its_prompt_answer_score_and_forwards(finished) -> None:
    found = samples(finished)
    assert len(found) == 10
    for sample in found:
        assert sample["arguments"][0][0].endswith("Solution\n")
        assert isinstance(sample["resps"][0][0], str)
        assert sample["solved"] in (0.0, 1.0)
        assert 0 < sample["forwards"][0] <= 48
    rows = result(finished)["summary"]
    assert [(row["task"], row["metric"], row["n"]) for row in rows] == [
        ("countdown_cd3_plain", "solved", 5),
        ("sudoku_4x4_8_plain", "solved", 5),
    ]
    assert all(0 < row["forwards"] <= 48 for row in rows)


def test_a_finished_evaluation_is_shown_and_not_run_again(
    finished, model, data, capsys, monkeypatch
) -> None:
    before = (finished / "results.json").read_bytes()
    monkeypatch.setattr("softmask.evaluation.harness.SoftMaskLM._generate", None)
    assert main(command(model, data, finished)) == 0
    printed = capsys.readouterr()
    assert "is finished already" in printed.err
    assert "countdown_cd3_plain" in printed.out
    assert (finished / "results.json").read_bytes() == before


def test_an_evaluation_from_before_a_setting_existed_ran_its_default(
    finished, model, data, tmp_path, capsys
) -> None:
    old = tmp_path / "old"
    shutil.copytree(finished, old)
    held = json.loads((old / "run.json").read_text())
    for setting in ("template", "chat_template", "until"):
        del held["evaluation"][setting]
    write_json(old / "run.json", held)
    assert main(command(model, data, old)) == 0
    assert "is finished already" in capsys.readouterr().err


def test_another_evaluation_in_the_folder_is_refused_and_nothing_is_lost(
    finished, model, data, capsys
) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    assert main(command(model, data, finished, "--mixinputs-k", "3")) == 2
    error = capsys.readouterr().err
    assert "holds an evaluation with another soft_mask" in error
    assert error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


@pytest.mark.parametrize("what", ["tokenizer", "data_files", "task_files"])
def test_files_that_changed_since_make_another_evaluation(
    finished, model, data, tmp_path, capsys, what
) -> None:
    own, files, tasks = (tmp_path / name for name in ("model", "data", "tasks"))
    for source, copy in ((model, own), (data, files)):
        shutil.copytree(source, copy)
    tasks.mkdir()
    (tasks / "mine.yaml").write_text("task: mine\n")
    words = command(own, files, tmp_path / "run", "--include-path", str(tasks), "--limit", "1")
    assert main(words) == 0
    change = {
        "tokenizer": own / "tokenizer_config.json",
        "data_files": next(files.rglob("cd3_test.jsonl")),
        "task_files": tasks / "mine.yaml",
    }[what]
    text = change.read_text()
    change.write_text(f"{text}\n")
    assert main(words) == 2
    assert f"holds an evaluation with another {what}" in capsys.readouterr().err
    change.write_text(text)
    # What Python or another run writes there makes no other one.
    for name in ("__pycache__/utils.pyc", "evals/a/results.json", ".git/hooks.py"):
        (tasks / name).parent.mkdir(parents=True)
        (tasks / name).write_text("")
    assert main(words) == 0
    assert "is finished already" in capsys.readouterr().err
    # A record of before says nothing of files.
    held = json.loads((tmp_path / "run" / "run.json").read_text())
    write_json(tmp_path / "run" / "run.json", {k: v for k, v in held.items() if k != what})
    assert main(words) == 0
    assert "is finished already" in capsys.readouterr().err


def test_a_killed_evaluation_goes_on_behind_its_finished_answers(
    finished, model, data, tmp_path
) -> None:
    out = tmp_path / "run"
    responses = out / "responses.0.jsonl"
    run_until_killed(command(model, data, out), responses, "\n", times=2)
    known = responses.read_bytes()
    assert known.count(b"\n") < 10
    assert not (out / "results.json").exists()
    assert main(command(model, data, out)) == 0
    assert responses.read_bytes().startswith(known[: known.rfind(b"\n") + 1])
    assert samples(out) == samples(finished)
    run = json.loads((out / "run.json").read_text())
    assert run["answers_from_before"] >= 2
    (before,) = run["starts_before"]
    assert before["started"] <= run["started"]
    assert before["commit"] == run["commit"]


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("forked", marks=pytest.mark.long),
        pytest.param("launched", marks=pytest.mark.slow),
    ],
)
def test_two_processes_find_what_one_finds(finished, model, data, tmp_path, way) -> None:
    out, size = tmp_path / "run", "auto" if way == "forked" else "2"
    if way == "forked":
        done = ranks("-m", "softmask", *command(model, data, out, "--batch-size", size))
    else:
        done = [launched(command(model, data, out))]
    assert [one.returncode for one in done] == [0] * len(done), done
    assert samples(out) == samples(finished)
    assert result(out)["summary"] == result(finished)["summary"]
    run = json.loads((out / "run.json").read_text())
    assert run["processes"] == 2
    if size == "auto":  # a batch of each task for each process
        assert run["batching"]["rows"] == [2, 3]
        assert run["batching"]["limited_by"] == {"no more rows": 4}
    # Five samples of each task do not divide; nobody has done another's work.
    shares = [path.read_text().splitlines() for path in sorted(out.glob("responses.*.jsonl"))]
    assert sorted(len(share) for share in shares) in ([4, 6], [5, 5])
    assert len({json.loads(line)["key"] for share in shares for line in share}) == 10
    assert "".join(one.stdout for one in done).count("countdown_cd3_plain") == 1


def launched(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Two processes, as accelerate starts them."""
    launcher = Path(sys.executable).parent / "accelerate"
    launch = [
        *(str(launcher), "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        *("-m", "softmask"),
    ]
    return subprocess.run(
        [*launch, *words],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def only_ours(monkeypatch) -> None:
    """Without the harness' own 14,000 definitions, which take nine seconds to read."""
    read = definitions._read_definitions

    def ours(paths: tuple[str, ...], _upstream: bool) -> object:
        return read(paths, False)

    monkeypatch.setattr(definitions, "_read_definitions", ours)


@pytest.mark.slow
def test_the_nearest_of_all_names_is_told(tmp_path, capsys) -> None:
    words = ["--tasks", "countdown_cd3_plian", "--model", str(tmp_path / "none")]
    assert main(["eval", *words]) == 2
    assert "did you mean countdown_cd3_plain" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "countdown_cd3_plian"], "did you mean countdown_cd3_plain"),
        (["--tasks", "countdown_cd3_plain, mbpp_pluss"], "there is no task 'mbpp_pluss'"),
        (
            ["--tasks", "countdown_cd3_plain", "--temperature", "-1"],
            "temperature must be 0 or lie",
        ),
        (["--tasks", "countdown_cd3_plain", "--limit", "0"], "limit must be >= 1"),
        (["--tasks", "math500", "--num-fewshot", "4"], "put without examples"),
        (["--tasks", "countdown_cd3_plain", "--gen-kwargs", "until"], "NAME=VALUE"),
        (["--tasks", "countdown_cd3_plain", "--gen-kwargs", "beams=3"], "unknown setting 'beams'"),
        (["--tasks", "countdown_cd3_plain", "--include-path", "/no/where"], "no folder /no/where"),
        (["--tasks", "countdown_cd3_plain", "--data-dir", "/no/where"], "file cd3_test.jsonl"),
        (["--tasks", "countdown_cd3_plain", "--model-args", "pretained=x"], "'pretrained'"),
        (["--tasks", "countdown_cd3_plain", "--max-new-tokens", "1024"], "leave no room"),
    ],
)
def test_bad_input_is_one_sentence(
    model, data, tmp_path, words, message, capsys, only_ours
) -> None:
    place = ["--model", str(model), "--data-dir", str(data), "--out", str(tmp_path / "run")]
    assert main(["eval", *place, *words, "--device", "cpu"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("softmask: error: ")
    assert message in error


def test_tasks_are_checked_before_a_model_is_loaded_and_without_noise(
    tmp_path, capfd, only_ours
) -> None:
    place = ["--model", str(tmp_path / "none")]
    assert main(["eval", "--tasks", "countdown_cd3_plian", *place]) == 2
    out, here = capfd.readouterr()
    # What libraries say when they are imported would come in another process alone.
    words = ["eval", "--tasks", "gsm8k_cot", "--data-dir", str(tmp_path), *place]
    done = subprocess.run(
        [*python(), "-m", "softmask", *words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 2
    assert (out, done.stdout) == ("", "")
    for error, message in (
        (here, "`softmask lm_eval ls tasks` lists all"),
        (done.stderr, "gsm8k_test.jsonl"),
    ):
        assert message in error
        assert error.count("\n") == 1


def test_the_summary_says_which_scores_are_shares() -> None:
    # Bits a byte are of sums over all texts, counts no shares; -1 is of another length.
    scores = {"right": (1, 0), "count": (0, 3), "bits_per_byte": ((-1.2, 9), (-3, 9))}
    samples = [
        {"filter": "none", "arguments": [], "resps": []}
        | {name: values[place] for name, values in (scores | {"4096": (0.5, -1.0)}).items()}
        for place in (0, 1)
    ]
    lengths = ("4096,none", "8192,none")
    values = dict.fromkeys(("right,none", "count,none", "bits_per_byte,none", *lengths), 0.5)
    for sample in samples:
        sample["8192"] = -1.0
    rows = evaluate.summarise({"results": {"t": values}, "samples": {"t": samples}}, Responses())
    assert {row["metric"]: row["share"] for row in rows} == {
        **{"right": True, "count": False},
        **{"bits_per_byte": False, "4096": True},
    }
    assert {row["metric"]: row["n"] for row in rows}["4096"] == 1


def test_a_groups_forwards_are_of_all_members_whatever_their_filters_are() -> None:
    answers, by_task = Responses(), {}
    for task, name, forwards in (("a", "none", 10), ("b", "strict", 100)):
        one = {"filter": name, "arguments": [(task, {})], "resps": [[""]], "score": 1.0}
        by_task[task] = [one, one | {"filter": "zz"}]
        key = request_key((task, {}))
        answers.by_key[key] = {"forwards": forwards, "tokens": 5, "text": ""}
    results = {"results": {"g": {"score,none": 1.0}}, "samples": by_task}
    [row] = evaluate.summarise(results | {"group_subtasks": {"g": ["a", "b"]}}, answers)
    assert (row["forwards"], row["tokens_per_forward"]) == (55.0, round(10 / 110, 4))


def test_a_task_that_runs_programs_asks_for_permission(model, data, tmp_path, capsys) -> None:
    words = ["--tasks", "humaneval_instruct", "--model", str(model), "--out", str(tmp_path / "r")]
    assert main(["eval", *words, "--device", "cpu"]) == 2
    assert "--confirm-run-unsafe-code" in capsys.readouterr().err


def test_data_that_cannot_be_fetched_is_one_sentence(model, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    words = ["--tasks", "gsm8k_cot", "--model", str(model), "--out", str(tmp_path / "r")]
    assert main(["eval", *words, "--device", "cpu"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "data of gsm8k_cot cannot be had from the Hub (no route)" in error
    assert "--data-dir" in error


def unreachable(*_args, **_kwargs) -> None:
    raise ConnectionError("no route")


def test_a_record_goes_where_its_name_says(model, data, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--tasks", "countdown_cd3_plain", "--model", str(model), "--data-dir", str(data)]
    words += ["--device", "cpu", "--limit", "1", "--max-new-tokens", "4"]
    assert main(["eval", *words]) == 0
    assert "not a git repository" not in capfd.readouterr().err
    assert main(["eval", *words, "--no-soft-mask"]) == 0
    assert sorted(path.name for path in (tmp_path / "evals").iterdir()) == [
        "m-countdown_cd3_plain",
        "m-countdown_cd3_plain-plain",
    ]


@pytest.mark.parametrize(
    ("words", "include_path", "device"),
    [
        (["--model", "dummy"], [str(FOLDER)], None),
        (["--include_path=DIR", "--device", "cuda:1"], [str(FOLDER), "DIR"], "cuda:1"),
        (["--include_path", "DIR", "--device=cpu"], [str(FOLDER), "DIR"], "cpu"),
        (["--config", "FILE"], [str(FOLDER), "theirs"], None),
        (["--config", "FILE", "--include_path=DIR"], [str(FOLDER), "DIR"], None),
    ],
)
def test_the_harness_command_line_has_our_tasks_and_a_device_that_is_there(
    words, include_path, device, tmp_path, monkeypatch
) -> None:
    (tmp_path / "FILE").write_text("include_path: theirs\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lm_eval", "run", *words, "--tasks", "x"])
    parsed = complete(HarnessCLI().parse_args())
    assert parsed.include_path == include_path
    assert parsed.device == (device or choose_device(None).type)


def test_the_harness_own_command_line_knows_the_model(model, data, tmp_path) -> None:
    rows = [{"q": "on and", "a": "on"}, {"q": "then", "a": "the"}]
    write_json(tmp_path / "rows.json", rows)
    (tmp_path / "tiny.yaml").write_text(
        f"""\
task: tiny_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.json"}}}, cache_dir: {tmp_path / "c"}}}
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
output_type: generate_until
generation_kwargs: {{max_gen_toks: 6, until: []}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
    )
    # Where the harness looks for its own 14,000 definitions, which take six seconds to read.
    no_defaults = (
        "import sys, lm_eval.tasks.manager as manager\n"
        f"manager.__file__ = {str(tmp_path / 'no-tasks' / 'manager.py')!r}\n"
        "from softmask.cli.main import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run(
        [
            *(*python(), "-c", no_defaults, "lm_eval", "run", "--model", "softmask"),
            "--model_args",
            f"pretrained={model},softmasking=True,max_new_tokens=8,diffusion_steps=4,"
            "temperature=0.1,top_p=0.9,alg=entropy,mixinputs_k=3",
            *("--tasks", "tiny_words", "--batch_size", "auto", "--apply_chat_template"),
            *(f"--include_path={tmp_path}", "--output_path", str(tmp_path / "out")),
            "--log_samples",
        ],
        capture_output=True,
        text=True,
        timeout=600,
        env=ENVIRONMENT | {"PYTHONWARNINGS": "default"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "tiny_words" in done.stdout
    written = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())
    assert written["config"]["soft_mask"]["mixinputs_k"] == 3
    assert written["config"]["soft_mask"]["transparency_scale"] == SOFT.scale
