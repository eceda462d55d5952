"""Recipes: YAML files that decide a training run, in `recipes/` or anywhere else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..config import from_mapping
from .config import Recipe


class _Loader(yaml.SafeLoader):
    """YAML 1.1, which PyYAML reads, takes 2e-5 for a string; this takes it for a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf)$|\.(nan|NaN)$"),
    list("-+0123456789."),
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # Also a date that is none, an endless number, and lists in lists without end.
        first = str(error).replace("\n", " ")
        raise ValueError(f"{where}: not valid YAML ({first})") from error


def recipe_names() -> list[str]:
    """Names of the bundled recipes."""
    folder = resources.files(__package__) / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name[-5:] == ".yaml")


def read_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe by name or path, with overrides such as `train.learning_rate=2e-5`.

    `train.stages.0.steps=10` reaches into a list.

    Raises:
        ValueError: no such recipe, bad YAML, or a setting that is unknown or out of range.
    """
    path = Path(name)
    bundled = resources.files(__package__) / "recipes" / f"{name}.yaml"
    if path.suffix in (".yaml", ".yml", ".json"):
        if not path.is_file():
            raise ValueError(f"there is no recipe file {path}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text in UTF-8 ({error}): save it as that") from error
    elif name in recipe_names():
        text = bundled.read_text(encoding="utf-8")
    else:
        raise ValueError(f"there is no recipe {name!r}: give {', '.join(recipe_names())} or a file")
    values = _parse(text, name)
    if not isinstance(values, dict):
        raise ValueError(f"{name}: a recipe is a mapping of settings")
    for each in overrides:
        _override(values, each)
    return Recipe.of(values, name)


def override(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe with `key=value` settings changed, as for `read_recipe`."""
    values = recipe.as_mapping()
    for each in overrides:
        _override(values, each)
    return from_mapping(Recipe, values, recipe.name)


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"--set takes key=value, not {override!r}")
    *parents, last = key.split(".")
    place: Any = values
    for part in parents:
        if isinstance(place, list):
            place = place[_index(part, place, key)]
        else:
            # null has no settings yet: --set adapter.r=8 on a recipe without adapter.
            place[part] = {} if place.get(part) is None else place[part]
            place = place[part]
        if not isinstance(place, dict | list):
            raise ValueError(f"--set {key}: {part} holds no settings")
    value = _parse(text, f"--set {key}")
    if isinstance(place, list):
        place[_index(last, place, key)] = value
    else:
        place[last] = value


def _index(part: str, place: list[Any], key: str) -> int:
    if not part.isdecimal() or int(part) >= len(place):
        raise ValueError(f"--set {key}: {part!r} is no index below {len(place)}")
    return int(part)
