"""softmask eval --templates: a task put to a model in several ways, and what the choice decides.

A template is a chat template or none, with a system message or without. The evaluation under each
is one in a folder of its own, which a run that is repeated finds finished. So is each cell of a
suite: once under every template.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..config import from_mapping, require, setting
from .config import EvalConfig, ModelArgs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .harness import SoftMaskLM
    from .spread import Spread

# The value of `chat` that stands for the tokenizer's own chat template; all templates that ship.
OWN, ALL = "own", "all"
YAML, JINJA = (".yaml", ".yml"), (".jinja", ".j2")
# A template's folder has its name.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
# What each template has to bring before the model, to be one.
PROBE = "Which number comes after 41?"


@dataclass(frozen=True)
class Template:
    """One way of putting a task to a model."""

    name: str = setting("", "its name in tables, and its folder")
    chat: str | None = setting(None, "own: the tokenizer's; else Jinja over messages; null: none")
    system: str | None = setting(None, "a system message")
    until: tuple[str, ...] = setting((), "stop strings beside the task's own")

    def __post_init__(self) -> None:
        require(
            NAME.fullmatch(self.name) is not None,
            f"a template's name has letters, digits and _ . + -, not {self.name!r}",
        )
        require(all(self.until), "until has an empty stop string")

    @property
    def jinja(self) -> str | None:
        """Jinja in place of the tokenizer's own chat template."""
        return None if self.chat == OWN else self.chat

    def of(self, config: EvalConfig) -> EvalConfig:
        """An evaluation under this template, whose system message, if any, wins over its own."""
        return dataclasses.replace(
            config,
            template=self.name,
            apply_chat_template=self.chat is not None,
            chat_template=self.jinja,
            system_instruction=self.system or config.system_instruction,
            until=self.until,
        )


def _read(path: Path) -> dict[str, Template]:
    """The templates of a YAML file: a mapping of names."""
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML ({' '.join(str(error).split())})") from error
    require(isinstance(held, dict) and bool(held), f"{path} must be a mapping of templates")
    found = {}
    for name, values in held.items():
        where = f"{path.name}: {name}"
        require(isinstance(name, str), f"{where}: a template's name is a text")
        require(isinstance(values, dict), f"{where}: a template is a mapping: chat, system, until")
        require("name" not in values, f"{where}: a template's name stands in front of it")
        found[name] = from_mapping(Template, {"name": name, **values}, where)
    return found


SHIPPED = _read(Path(__file__).with_suffix(".yaml"))


def read_templates(words: str) -> list[Template]:
    """Templates by name or file, with commas between them.

    Args:
        words: names of `SHIPPED`, or "all" of them; files of YAML (each a mapping of names), or of
            Jinja alone (named as the file is).

    Raises:
        ValueError: no such name or file, one that cannot be read, two of one name, or fewer than
            two.
    """
    found: list[Template] = []
    for word in map(str.strip, words.split(",")):
        path = Path(word)
        if word == ALL:
            found += SHIPPED.values()
        elif word in SHIPPED:
            found.append(SHIPPED[word])
        elif path.suffix not in (*YAML, *JINJA):
            raise ValueError(
                f"there is no template {word!r}: name some of {', '.join(SHIPPED)}, or {ALL}, or "
                f"files ({', '.join((*YAML, *JINJA))})"
            )
        elif not path.is_file():
            raise ValueError(f"there is no file {word} with a template")
        elif path.suffix in YAML:
            found += _read(path).values()
        else:
            values = {"name": path.stem, "chat": path.read_text(encoding="utf-8")}
            found.append(from_mapping(Template, values, word))
    names = [template.name for template in found]
    double = sorted({name for name in names if names.count(name) > 1})
    require(not double, f"two templates have the name {', '.join(double)}: give each its own")
    require(len(found) > 1, f"{words} is one template: a spread needs at least two")
    from ..decoding.chat_template import check_template

    for template in found:
        if template.jinja is not None:
            try:
                check_template(template.jinja)
            except ValueError as error:
                raise ValueError(f"template {template.name}: {error}") from error
    return found


def check_prompts(
    templates: Sequence[Template], tokenizer: PreTrainedTokenizerBase, model: str
) -> None:
    """Looks at what each template makes of a prompt, before anything is evaluated under it.

    Args:
        model: its name, for people.

    Raises:
        ValueError: the model has no chat template of its own where one is asked for, a template
            fails or leaves something out, or two make the same of a prompt.
    """
    lacking = [t.name for t in templates if t.chat == OWN and not tokenizer.chat_template]
    require(
        not lacking,
        f"{model} has no chat template: leave out {', '.join(lacking)}, or take an Instruct model",
    )
    made: dict[str, str] = {}
    for template in templates:
        text = _prompt(template, tokenizer)
        for what, part in (("prompt", PROBE), ("system message", template.system)):
            require(
                part is None or part.strip() in text,
                f"template {template.name} leaves out the {what}: mend it, or leave it out",
            )
        other = made.setdefault(text, template.name)
        require(
            other == template.name,
            f"templates {other} and {template.name} make the same prompts for {model}: leave out "
            "one of them",
        )


def _prompt(template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the model reads of the probe."""
    from ..decoding.chat_template import render_chat

    system = [] if template.system is None else [("system", template.system)]
    if template.chat is None:
        return "\n".join(text for _, text in (*system, ("user", PROBE)))
    messages: list[dict[str, Any]] = [
        {"role": role, "content": text} for role, text in (*system, ("user", PROBE))
    ]
    try:
        return render_chat(tokenizer, messages, template=template.jinja, add_generation_prompt=True)
    except ValueError as error:
        raise ValueError(f"template {template.name}: {error}") from error


def evaluate_under(
    templates: Sequence[Template],
    lm: SoftMaskLM,
    args: ModelArgs,
    config: EvalConfig,
    folder: Path,
    *,
    command: Sequence[str] = (),
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> list[Spread]:
    """An evaluation under each template, in a folder of its name, and the scores' spread beside.

    Args:
        folder: holds the folders of the templates, and `spread.RESULT`.
        command, overwrite, report: as of `evaluate`.

    Returns:
        The spread of every score on the first process, which has them; nothing on others.

    Raises:
        ValueError: as of `evaluate`, or the folder is itself that of an evaluation.
    """
    from . import record, spread
    from .evaluate import evaluate

    require(
        not record.has_begun(folder),
        f"{folder} holds an evaluation without --templates: name another folder with --out",
    )
    first = lm.ranks.index == 0
    if overwrite and first:
        (folder / spread.RESULT).unlink(missing_ok=True)  # of evaluations that are deleted next
    for number, template in enumerate(templates, 1):
        report(f"template {number}/{len(templates)}  {template.name}")
        evaluate(
            *(lm, args, template.of(config), folder / template.name),
            command=command,
            overwrite=overwrite,
            report=report,
        )
    if not first:
        return []
    found = spread.spreads_of({template.name: folder / template.name for template in templates})
    spread.write(folder, found)
    return found
