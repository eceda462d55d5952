"""Which family a model is of: by its architecture, by its model_type, or because a user says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..settings import shown
from .a2d import A2D_LLAMA, A2D_QWEN2, A2D_QWEN3
from .bd3lm import BD3LM_QWEN2, BD3LM_QWEN3
from .distilled import D3LLM_DREAM, D3LLM_LLADA, DIFFUCODER, DPARALLEL_DREAM, DPARALLEL_LLADA
from .dream import DREAM
from .dreamon import DREAMON
from .dreamreasoner import DREAM_REASONER
from .family import Family
from .fastdllm2 import FAST_DLLM_2
from .illada import ILLADA
from .llada import LLADA
from .llada2 import LLADA2
from .lladamoe import LLADA_MOE
from .opendcoder import OPEN_DCODER
from .sdar import SDAR

_ALL = (
    *(DREAM, DREAMON, DIFFUCODER, DPARALLEL_DREAM, D3LLM_DREAM),
    *(LLADA, DPARALLEL_LLADA, D3LLM_LLADA, ILLADA, LLADA_MOE),
    *(A2D_QWEN3, A2D_QWEN2, A2D_LLAMA, OPEN_DCODER),
    # Block-causal.
    *(SDAR, FAST_DLLM_2, DREAM_REASONER, BD3LM_QWEN3, BD3LM_QWEN2, LLADA2),
)
FAMILIES = {family.name: family for family in _ALL}
_BY_HUB_ID = {name.lower(): family.name for family in _ALL for name in family.hub}
# The key of config.json by which a folder in our own layout says its family.
FAMILY_KEY = "family"


def by_name(name: str) -> Family:
    """Raises ValueError for a name that is none."""
    if name not in FAMILIES:
        raise ValueError(f"there is no family {shown(name)}: give one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def named(name: object, chosen: str | None = None) -> Family | None:
    """The family that a user says, or by whose id a Hub repository is known; None: neither.

    Raises:
        ValueError: the user names one that there is not.
    """
    known = chosen or _BY_HUB_ID.get(str(name).lower())
    return None if known is None else by_name(known)


def is_own_layout(values: Mapping[str, Any]) -> bool:
    """Whether a config.json was written by softmask: in our names, whatever the family."""
    return values.get(FAMILY_KEY) is not None


def as_family(values: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Settings in our names, of a model that is of this family, whatever they say.

    What the family that they name has otherwise becomes what this one has.
    """
    found = FAMILIES.get(str(values.get(FAMILY_KEY)), family)
    theirs, wanted = found.network, family.network
    changed = {key for key in {*theirs, *wanted} if theirs.get(key) != wanted.get(key)}
    kept = {key: value for key, value in values.items() if key not in changed}
    return kept | {k: wanted[k] for k in changed & wanted.keys()} | {FAMILY_KEY: family.name}


def recognise(values: Mapping[str, Any]) -> Family | None:
    """The family of a config.json; None: it is of none, or of one that a user has to name.

    An architecture decides where there is one: several families share a model_type.
    """
    name = values.get(FAMILY_KEY)
    if isinstance(name, str):
        return FAMILIES.get(name)
    given = values.get("architectures")
    kinds = FAMILIES.values()
    if given is None:
        kind = values.get("model_type")
        found = [f for f in kinds if not f.explicit and kind in f.model_types]
    else:
        names = given if isinstance(given, list) else [given]
        found = [f for f in kinds if not f.explicit and any(a in names for a in f.architectures)]
    marked = [family for family in found if family.mark is not None and family.mark in values]
    found = marked or [family for family in found if family.mark is None]
    return found[0] if found else None


def family_of(values: Mapping[str, Any], name: str, chosen: Family | None = None) -> Family:
    """The family of a config.json.

    Args:
        name: of the folder or repository, for errors.
        chosen: what it is known to be, see `named`.

    Raises:
        ValueError: it is of no known family, or not of the chosen one.
    """
    found = recognise(values)
    if chosen is not None:
        given = values.get("architectures") or list(chosen.architectures)
        if is_own_layout(values) and found is not None:  # the architecture named there is ours
            given = list(found.architectures)
        fits = any(name in given for name in chosen.architectures)
        if found is not None and found is not chosen and not fits:
            raise ValueError(f"{name} holds a {found.title} model, not {chosen.title}")
        return chosen
    if found is not None:
        return found
    what = values.get("architectures") or values.get("model_type")
    what = what[0] if isinstance(what, list) and what else what
    known = ", ".join(family.title for family in FAMILIES.values() if not family.explicit)
    named = ", ".join(family.name for family in FAMILIES.values() if family.explicit)
    raise ValueError(
        f"{name} holds a model of the family {shown(what)}: softmask loads {known}, and with "
        f"--family {named}"
    )
