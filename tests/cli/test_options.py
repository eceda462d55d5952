"""One knob has one name in every command; published and older names are accepted and hidden."""

from __future__ import annotations

import importlib
import itertools

import pytest

from softmask.cli.eval_options import read_model_args
from softmask.cli.main import COMMANDS, SUBCOMMANDS, find_command
from softmask.cli.options import FIRST
from softmask.evaluation.config import model_args

# Command, our words, other words for the same.
SAME = [
    ("generate", "--steps 3 --soft-mask-k 2", "--diffusion-steps 3 --mixinputs-k 2"),
    ("chat", "--soft-mask-scale .5", "--transparency-scale .5"),
    ("generate", "--soft-mask-offset -1", "--transparency-centre -1"),
    ("eval", "--tasks t --steps 4", "--tasks t --diffusion-steps 4"),
    ("eval", "--tasks t --soft-mask-mixture additive", "--tasks t --mixture additive"),
    ("generate", "--soft-mask-weight entropy", "--mixture-weight entropy"),
    ("eval ppl", "--data d --soft-mask-k 2", "--data d --mixinputs-k 2"),
    ("bench", "--soft-mask-k 5 --max-new-tokens 9", "--k 5 --new-tokens 9"),
]


def words_of_commands() -> list[list[str]]:
    below = [[name, sub] for name, subs in SUBCOMMANDS.items() for sub in subs]
    return [[name] for name in COMMANDS if name != "lm_eval"] + below


@pytest.mark.parametrize(("command", "own", "other"), SAME)
def test_published_and_older_names_mean_the_same_and_are_not_shown(command, own, other) -> None:
    module, _ = find_command(command.split())
    parser = module.make_parser()
    assert parser.parse_args(own.split()) == parser.parse_args(other.split())
    shown = parser.format_help()
    names = [word for word in own.split() if word.startswith("--")]
    others = [word for word in other.split() if word.startswith("--") and word not in names]
    assert all(name in shown for name in names)
    assert not any(f"{name} " in shown or f"{name}\n" in shown for name in others)


@pytest.mark.parametrize("words", words_of_commands(), ids=" ".join)
def test_every_command_names_itself_and_shows_no_published_name(words) -> None:
    module, rest = find_command(words)
    assert rest == []
    parser = module.make_parser()
    assert parser.prog == " ".join(["softmask", *words])
    shown = parser.format_help()
    for name in ("transparency", "mixinputs", "mixture-temp", "diffusion-steps", "binary"):
        assert f"--{name}" not in shown
    said = [action.help for action in parser._actions if action.help is not None]
    assert not [help for help in said if help.count("(default:") > 1]


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("words", words_of_commands(), ids=" ".join)
def test_help_fits_the_terminal_and_breaks_no_word(words, columns, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = find_command(words)[0].make_parser().format_help()
    text = shown[shown.index("\n\n") :]
    long = [line for line in text.splitlines() if len(line) > columns and " " in line.strip()]
    assert not long
    # A command of the description can be copied: broken lines end in a backslash.
    for line, after in itertools.pairwise(text.splitlines()):
        if after.startswith("        --") and line.startswith("    softmask"):
            assert line.endswith(" \\")


def test_eval_takes_our_modes_and_the_harness_takes_our_names() -> None:
    parser = importlib.import_module("softmask.cli.evaluate").make_parser()
    words = "--tasks t --soft-mask-mode temperature --soft-mask-scale .5 --steps 4"
    args = read_model_args(parser.parse_args(words.split()))
    published = {"transparency_alg": "mixinputs_with_temp", "transparency_scale": 0.5}
    assert args == model_args(published | {"diffusion_steps": 4})
    own = {"soft_mask_mode": "temperature", "soft_mask_scale": 0.5, "steps": 4}
    assert args == model_args(own)


def test_a_setting_under_both_of_its_names_is_refused() -> None:
    with pytest.raises(ValueError, match="give steps or diffusion_steps, not both"):
        model_args({"steps": 4, "diffusion_steps": 5})


@pytest.mark.parametrize("command", FIRST)
def test_help_shows_a_dozen_options_and_help_all_the_others_by_group(command, capsys) -> None:
    module, _ = find_command(command.split())
    parser, names = module.make_parser(), FIRST[command].split()
    known = {name for action in parser._actions for name in (action.dest, *action.option_strings)}
    assert set(names) <= known
    assert 8 <= len(names) <= 12
    outputs = []
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            parser.parse_args([option])
        outputs.append(capsys.readouterr().out)
    short, whole = outputs
    assert all(f"{name}" in short for name in names)
    assert f"`softmask {command} --help-all` lists all" in " ".join(short.split())
    assert whole == parser.format_help()
    assert len(short.splitlines()) < 48 < len(whole.splitlines())


def test_commands_of_few_options_have_one_help(capsys) -> None:
    parser = find_command(["export"])[0].make_parser()
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert capsys.readouterr().out == parser.format_help()
