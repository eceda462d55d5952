"""Tasks and rules of one's own: what they read is in the record, and groups may mix them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from softmask import rules
from softmask.cli.main import main
from softmask.evaluation.config import EvalConfig
from softmask.evaluation.definitions import check_generates, check_tasks

ARITHMETIC = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task on a file that lies elsewhere."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "sums.jsonl"
    file.write_text(json.dumps({"q": "1+1=", "a": "2"}) + "\n")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "own.yaml").write_text(ARITHMETIC.format(name="own_sums", file=file))
    return folder


def words(own: Path, model: Path, *more: str) -> list[str]:
    out = own.parent / "run"
    return [
        *("eval", "--tasks", "own_sums", "--include-path", str(own), "--model", str(model)),
        *("--device", "cpu", "--out", str(out), *more),
    ]


def test_data_of_a_task_of_ones_own_that_changed_makes_another_evaluation(
    own, model, capsys
) -> None:
    # Fewer tokens than the task's own: the command line's name for them need not be the task's.
    asked = words(own, model, "--gen-kwargs", "max_new_tokens=3")
    assert main(asked) == 0
    sample = json.loads((own.parent / "run" / "samples_own_sums.jsonl").read_text())
    assert sample["tokens"] == [3]
    assert main(asked) == 0
    assert "is finished already" in capsys.readouterr().err
    (own.parent / "sums.jsonl").write_text(json.dumps({"q": "2+2=", "a": "4"}) + "\n")
    assert main(asked) == 2
    assert "holds an evaluation with another data_files" in capsys.readouterr().err


def test_a_rule_of_ones_own_that_changed_makes_another_evaluation(
    own, model, capsys, monkeypatch
) -> None:
    monkeypatch.syspath_prepend(own.parent)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    name = "commits_of_test_own_tasks"
    module = own.parent / f"{name}.py"
    code = "import softmask\n@softmask.commit_rule({name!r})\ndef rule(rows):\n    return "
    code += "{sign}rows.probability_N\n"
    asked = words(own, model, "--alg", f"{name}:rule", "--max-new-tokens", "3")
    try:
        module.write_text(code.format(name=name, sign=""))
        assert main(asked) == 0
        module.write_text(code.format(name=name, sign="-"))
        importlib.invalidate_caches()
        assert main(asked) == 2
    finally:
        rules._rules["commit"].pop(name, None)
    assert "holds an evaluation with another rule_files" in capsys.readouterr().err


def test_a_task_on_files_of_its_own_runs_beside_those_of_a_folder(own, model, data) -> None:
    asked = words(own, model, "--data-dir", str(data), "--limit", "1", "--max-new-tokens", "3")
    asked[2] = "own_sums,countdown_cd3_plain"
    assert main(asked) == 0
    assert (own.parent / "run" / "samples_own_sums.jsonl").is_file()


def test_a_task_that_needs_the_hub_is_refused_before_a_model_is_loaded(own, data, capsys) -> None:
    (own / "hub.yaml").write_text("task: of_hub\ndataset_path: some/where\n")
    asked = words(own, Path("nowhere"), "--data-dir", str(data))
    asked[2] = "of_hub"
    assert main(asked) == 2
    assert "The task of_hub has no file layout" in capsys.readouterr().err


@pytest.mark.long  # reads the harness' 14,000 definitions
def test_a_group_of_ones_own_may_hold_a_task_of_upstream(own) -> None:
    (own / "group.yaml").write_text("group: own_group\ntask: [arc_easy, own_sums]\n")
    manager = check_tasks(EvalConfig(tasks=("own_group",), include_path=str(own)))
    assert "arc_easy" in manager.task_index


def test_a_tag_stands_for_its_tasks(own) -> None:
    (own / "choose.yaml").write_text(
        "task: own_choice\ntag: own_tag\ndataset_path: x\noutput_type: multiple_choice\n"
    )
    with pytest.raises(ValueError, match="own_choice scores given texts"):
        check_generates(EvalConfig(tasks=("own_tag",), include_path=str(own)))


def test_a_name_that_is_no_file_name_is_refused_before_anything_is_written(own, capsys) -> None:
    (own / "slash.yaml").write_text("task: own/sums\ndataset_path: x\n")
    asked = words(own, Path("nowhere"))
    asked[2] = "own/sums"
    assert main(asked) == 2
    assert "name it without /" in capsys.readouterr().err
