"""Rules of decoding that anyone can add: what a step commits, what is fed back, where a text ends.

    @commit_rule("patient", returns="rows", state={"token": -1, "since": 0})
    def patient(rows, *, patience: int = 2):
        '''Commits a token that has led for some steps.'''
        since_N = (rows.state["since"] + 1) * (rows.tokens_N == rows.state["token"])
        rows.state.update(token=rows.tokens_N, since=since_N)
        return since_N >= patience

A rule is a pure function of what a forward said of masked positions (`rule_inputs.py`), of its
options (keyword parameters with a type) and of the state that it keeps for each position. It is
known by its name in Python, on the command line, in files and over HTTP. Names come from the
decorators, of a program or of the entry points `softmask.rules` of installed packages; nothing is
ever imported because of a name. The shipped rules use this door too (`shipped_rules.py`). Imports
no torch.
Shape suffixes: N masked positions, K leading tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import inspect
import json
import os
import re
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from .settings import (
    class_of_parameters,
    from_mapping,
    needed_fields,
    require,
    settable_hints,
    shown,
)

Kind = Literal["commit", "feedback", "stopping"]
KINDS: tuple[Kind, ...] = ("commit", "feedback", "stopping")
Returns = Literal["scores", "rows", "chances"]
# The setting that names a rule of each kind.
SETTINGS: dict[str, str] = {"commit": "alg", "feedback": "soft-mask mode", "stopping": "stop_rule"}
GROUP = "softmask.rules"
NAME = re.compile(r"[A-Za-z_][\w.-]*")


class Options(dict[str, Any]):
    """A rule's options as they were given; equal ones hash alike, as settings must."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True, default=repr))


@dataclass(frozen=True, eq=False)
class Rule:
    """A registered rule: its function, and what was declared with it. See the decorators."""

    kind: Kind
    name: str
    function: Callable[..., Any]
    help: str
    options: type
    returns: Returns = "scores"
    order: str = "entropy"
    top: int = 2
    batched: bool = False
    dense: bool = False
    streamed: bool = False
    draws: bool = False
    state: Mapping[str, bool | int | float] = field(default_factory=dict)
    frontier: Sequence[Mapping[str, Any]] = ({},)
    is_shipped: bool = False

    @property
    def reads_logits(self) -> bool:
        """Whether it looks at all logits itself, so that they have to be there."""
        return self.dense and not self.streamed

    @property
    def is_setting(self) -> bool:
        """Whether settings of its options' names switch it on, and not its own name."""
        return self.is_shipped and self.returns == "rows"

    def __str__(self) -> str:
        return f"the {self.kind} rule {self.name}"

    def __reduce__(self) -> tuple[Any, ...]:
        """What a copy or a pickle of it is: the rule of this name, where its module is known."""
        return _from_module, (self.function.__module__, self.kind, self.name)

    def __call__(self, rows: Any, **options: Any) -> Any:
        """The function itself."""
        return self.function(rows, **options)

    def parse(self, given: Mapping[str, Any], where: str) -> Options:
        """Options that were given, checked and converted.

        Raises:
            ValueError: an unknown option, one of the wrong type, or one that is refused.
        """
        known = dataclasses.fields(self.options)
        require(bool(known) or not given, f"{where}: the {self.kind} rule {self.name} takes none")
        parsed: Any = from_mapping(self.options, dict(given), f"{where} of {self.name}")
        return Options({name: getattr(parsed, name) for name in given})


class Chosen(NamedTuple):
    """A rule and the options with which it is used."""

    rule: Rule
    options: Mapping[str, Any]

    def run(self, rows: Any) -> Any:
        """What the rule says.

        Raises:
            ValueError: a rule that is not shipped failed; the sentence names it and the line.
        """
        options = vars(self.rule.options(**self.options))
        if self.rule.is_shipped:
            return self.rule.function(rows, **options)
        try:
            return self.rule.function(rows, **options)
        except Exception as error:  # the code of somebody else, who needs to know which it was
            if is_out_of_memory(error):
                raise
            raise ValueError(f"{self.rule} failed ({_cause(error, self.rule)})") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there is too little memory, which is no mistake in a rule.

    torch's error on a GPU is a class of its own; on a CPU it is known by its words alone.
    """
    names = [cls.__name__ for cls in type(error).__mro__]
    if {"MemoryError", "OutOfMemoryError"} & {*names}:
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _cause(error: Exception, rule: Rule) -> str:
    """An error in words, with the last line of the rule's own file that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == rule.function.__code__.co_filename]
    last = (own or frames)[-1]
    said = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return f"{said}, {os.path.basename(last.filename)} line {last.lineno}"


_rules: dict[str, dict[str, Rule]] = {kind: {} for kind in SETTINGS}


def commit_rule(
    name: str,
    *,
    returns: Returns = "scores",
    order: str = "entropy",
    top: int = 2,
    batched: bool = False,
    draws: bool = False,
    state: Mapping[str, bool | int | float] | None = None,
    options: type | None = None,
    frontier: Sequence[Mapping[str, Any]] = ({},),
) -> Callable[[Callable[..., Any]], Rule]:
    """Registers a function of `MaskedRows` as the commit rule of this name (the setting `alg`).

    Args:
        returns: what the function returns of N positions. "scores": numbers; the schedule says how
            many positions a step commits, and those with the largest go first. "rows": bool, the
            positions that are committed, beside at least one a step and as many as it takes to be
            done after `steps`. "chances": numbers in [0, 1]; each position commits by a coin of
            its own, before its token is drawn (so `tokens_N` is the likeliest one).
        order: with "rows", the rule of scores that orders the positions of the least number; its
            options have their defaults.
        top: leading tokens to read.
        batched: the function is right for positions of several texts at once, whose results do
            not depend on each other. Without, it is called for each text alone.
        draws: the function reads `uniform_N`, so that what it commits follows from the seed.
        state: what is kept at each position, by name, with the value before the first look.
        options: a frozen dataclass of its options, where their ranges are to be checked too;
            default: the function's keyword parameters.
        frontier: the options with which `softmask bench frontier` tries it.

    Raises:
        ValueError: the name is taken or no name, or an option has no type or one that cannot be
            set.
    """
    values = {"returns": returns, "order": order, "top": top, "batched": batched, "draws": draws}
    return _registering("commit", name, options, state=state, frontier=frontier, **values)


def feedback_rule(
    name: str,
    *,
    top: int = 2,
    batched: bool = False,
    dense: bool = False,
    streamed: bool = False,
    state: Mapping[str, bool | int | float] | None = None,
    options: type | None = None,
) -> Callable[[Callable[..., Any]], Rule]:
    """Registers a function of `MaskedRows` as the feedback rule of this name (soft-mask `mode`).

    It returns (N,) how confident it is, in [0, 1]: lambda is scale * r(t) times that. Or a pair of
    it and shares: (N, K), what of the leading tokens is mixed in (default: the softmax of the k
    leading logits); with `dense` (N, V), of the whole vocabulary. With `streamed` all tokens are
    mixed in as a softmax at the temperature weighs them, of which `entropy_N` is the entropy: the
    rule returns how confident it is alone, and no logits are kept for it. The other arguments are
    those of `commit_rule`. Training and likelihoods take batched rules without state alone.

    Raises:
        ValueError: the name is taken or no name, or an option has no type or one that cannot be
            set.
    """
    values = {"top": top, "batched": batched, "dense": dense or streamed, "streamed": streamed}
    return _registering("feedback", name, options, state=state, **values)


def stopping_rule(
    name: str, *, options: type | None = None
) -> Callable[[Callable[..., Any]], Rule]:
    """Registers a function of `TextSoFar` as the stopping rule of this name (`stop_rule`).

    After each step it returns the column from which on masks are given up (they become the end
    token), or None. It may keep plain values of the text in `text.state`.

    Raises:
        ValueError: the name is taken or no name, or an option has no type or one that cannot be
            set.
    """
    return _registering("stopping", name, options)


def _registering(
    kind: Kind, name: str, options: type | None, *, state: Any = None, **values: Any
) -> Callable[[Callable[..., Any]], Rule]:
    require(
        not callable(name),
        f'a {kind} rule needs a name in parentheses: write @{kind}_rule("NAME")',
    )
    require(
        isinstance(name, str) and bool(NAME.fullmatch(name)),
        f"{name!r} is no name of a rule: begin with a letter, then letters, digits, _ - and .",
    )
    _check_declared(f"the {kind} rule {name}", state, values)
    if options is not None:
        require(
            isinstance(options, type) and dataclasses.is_dataclass(options),
            f"the {kind} rule {name}: options must be a dataclass, not {shown(options)}",
        )
        settable_hints(f"the {kind} rule {name}", options)

    def register(function: Callable[..., Any]) -> Rule:
        _check_function(f"the {kind} rule {name}", function)
        help = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
        shipped = function.__module__.rpartition(".")[0] == __package__
        rule = Rule(
            kind,
            name,
            function,
            help.rstrip("."),
            options or class_of_parameters(f"the {kind} rule {name}", function),
            state=dict(state or {}),
            is_shipped=shipped,
            **values,
        )
        known = _rules[kind].get(name)
        # A cell of a notebook that is run again defines the same function again.
        again = known is not None and _place(known.function) == _place(function)
        require(known is None or again, f"there is a {kind} rule {name} already: name it otherwise")
        _rules[kind][name] = rule
        return rule

    return register


def _check_declared(rule: str, state: Any, values: Mapping[str, Any]) -> None:
    """Raises ValueError unless what a decorator was given is of the kind that it must be."""
    returns, top = values.get("returns", "scores"), values.get("top", 2)
    known = typing.get_args(Returns)
    require(returns in known, f"{rule}: returns must be one of {', '.join(known)}, not {returns!r}")
    is_count = isinstance(top, int) and not isinstance(top, bool) and top >= 1
    require(is_count, f"{rule}: top must be an int of at least 1, not {top!r}")
    tried = values.get("frontier", ())
    require(
        isinstance(tried, Sequence) and all(isinstance(one, Mapping) for one in tried),
        f"{rule}: frontier must be a list of mappings of options, not {shown(tried)}",
    )
    require(
        state is None or isinstance(state, Mapping),
        f"{rule}: state must be a mapping of names to first values, not {shown(state)}",
    )
    for key, value in (state or {}).items():
        require(isinstance(key, str), f"{rule}: a name in state must be a text, not {shown(key)}")
        require(
            isinstance(value, bool | int | float),
            f"{rule}: state {key} must begin as a bool, an int or a float, not {shown(value)}",
        )


def _check_function(rule: str, function: Any) -> None:
    """Raises ValueError unless it is a function that takes what a rule sees."""
    require(inspect.isfunction(function), f"{rule} must decorate a function, not {shown(function)}")
    first = next(iter(inspect.signature(function).parameters.values()), None)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    require(
        first is not None and first.kind in positional,
        f"{rule}: {function.__name__} must take what the rule sees as its first parameter",
    )


def _place(function: Callable[..., Any]) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def find(kind: Kind, name: Any) -> Rule:
    """The rule of this name; a Rule is itself.

    Raises:
        ValueError: there is none of this kind, or this is no name.
    """
    if isinstance(name, Rule):
        require(
            name.kind == kind, f"{SETTINGS[kind]} must be a {kind} rule, and {name.name} {_a(name)}"
        )
        return name
    require(
        isinstance(name, str), f"{SETTINGS[kind]} must be the name of a rule, not {shown(name)}"
    )
    known = _rules[kind]
    if name not in known:
        load_installed()
    if name not in known:
        listed = ", ".join(names(kind))
        other = next((rules[name] for rules in _rules.values() if name in rules), None)
        hint = "" if other is None else f", which {_a(other)}"
        if other is None and shown(name) == repr(name):  # what is too long to show names no rule
            hint = (
                ": a rule of your own is known once its module is imported, on a command line by "
                "--rules MODULE or as MODULE:NAME"
            )
        raise ValueError(f"{SETTINGS[kind]} must be one of {listed}, not {shown(name)}{hint}")
    return known[name]


def order_of(rule: Rule) -> Rule:
    """The rule by which one that returns rows has the positions of the least number ordered.

    Raises:
        ValueError: `order` names none that can.
    """
    wanted = "order must be a commit rule that returns scores and needs no options"
    try:
        order = find("commit", rule.order)
    except ValueError as error:
        raise ValueError(f"{rule}: {wanted}, not {shown(rule.order)}") from error
    good = order.returns == "scores" and not needed_fields(order.options)
    require(good, f"{rule}: {wanted}, not {order.name}")
    return order


def _a(rule: Rule) -> str:
    """Of which kind a rule is, and the setting that takes it."""
    return f"is a {rule.kind} rule, for {SETTINGS[rule.kind]}"


def _from_module(module: str, kind: Kind, name: str) -> Rule:
    """The rule of this name, which the module registers."""
    importlib.import_module(module)
    return find(kind, name)


def names(kind: Kind) -> list[str]:
    """Names that the setting of this kind can have, the shipped ones first."""
    load_installed()
    return [name for name, rule in _rules[kind].items() if not rule.is_setting]


def added(kind: Kind) -> list[Rule]:
    """The rules that are not shipped."""
    load_installed()
    return [rule for rule in _rules[kind].values() if not rule.is_shipped]


def every() -> list[Rule]:
    """All rules, kind by kind."""
    load_installed()
    return [rule for kind in KINDS for rule in _rules[kind].values()]


def by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which each rule stands as its name."""
    return {key: value.name if isinstance(value, Rule) else value for key, value in values.items()}


def import_rule(text: str) -> Rule:
    """The rule that `package.module:name` names. For command lines, never for requests.

    Raises:
        ValueError: there is no such module, or no rule in it.
    """
    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"{text}: there is no module {error.name}") from error
    require(isinstance(found, Rule), f"{text}: {name} in {module} is no rule: decorate it as one")
    assert isinstance(found, Rule)
    _rules[found.kind].setdefault(found.name, found)
    return found


_is_loaded = False


def load_installed() -> None:
    """Imports the modules of the entry points `softmask.rules`, whose decorators register rules.

    Raises:
        ValueError: an installed package's entry point leads nowhere.
    """
    global _is_loaded
    if _is_loaded:
        return
    _is_loaded = True
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            point.load()
        except (ImportError, AttributeError) as error:
            package = "a package" if point.dist is None else point.dist.name
            raise ValueError(
                f"the rule {point.name} of {package} cannot be loaded ({error}): repair or "
                "uninstall it"
            ) from error
