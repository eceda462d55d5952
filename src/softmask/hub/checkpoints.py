"""find(): where a checkpoint lies, a folder, GGUF file or Hub id, with its files read and checked.

Whatever is wrong with a folder is one sentence that says what to do. Weights are checked by their
heads alone; `hub.load` reads them.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import logging as transformers_logging

from ..config import (
    BUNDLED,
    SOFT_MASK_FILE,
    SoftMaskConfig,
    read_soft_mask_file,
    require,
    soft_mask_from_published,
)
from ..families import gguf as facts
from ..families.family import HEAD, TABLE, Family
from ..families.links import Link, links_of, same_names, their_shapes
from ..families.registry import by_name, is_own_layout, named, recognise
from ..files import expand_home
from ..models import DreamConfig, DreamModel
from ..models.checkpoint import Source
from ..soft_mask import check_k
from .config_file import NetworkFile, adapted, config_from_file, network_of
from .cut_weights import reading
from .download import fetch
from .folder import (
    ADAPTER_FILE,
    CONFIG_FILE,
    HUB_FILES,
    HUB_ID,
    NETWORK_FILE,
    base_of,
    is_adapter,
    read_mapping,
    refuse_unfinished,
    tensor_names,
    weight_files,
)
from .four_bits import is_stored_in_4_bits, read_four_bits
from .gguf_config import config_of
from .gguf_file import family_of_gguf, gguf_path, read_head
from .gguf_tokenizer import read_gguf_tokenizer
from .gguf_weights import check_tensors, dtype_of, read_tensor
from .tokenizer_files import has_tokenizer, read_tokenizer

# As safetensors names them.
FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def find(
    name: str | Path | None = None,
    adapter: str | Path | None = None,
    *,
    revision: str | None = None,
    family: str | None = None,
    local_only: bool = False,
) -> Source:
    """Finds a checkpoint and checks its files; arguments as for `load`.

    Args:
        name: also the folder or Hub id of an adapter alone: its base is taken.
        local_only: take Hub repositories from this machine's cache, without a request.

    Raises:
        ValueError: one sentence on what is wrong with the folder, the adapter or an argument.
    """
    adapter_folder = None if adapter is None else _folder(adapter, None, local_only)
    if adapter_folder is not None and adapter_folder.is_file():
        raise ValueError(f"{adapter_folder} is a model, no adapter: give it as --model")
    folder = None if name is None else _model_folder(name, revision, local_only)
    if folder is not None and adapter is None and is_adapter(folder):
        folder, adapter_folder = None, folder
    # Of a model that is named, it has been used.
    base_revision = revision if name is None else None
    if folder is None and adapter_folder is not None:
        name, own_revision = base_of(adapter_folder)
        base_revision = base_revision or own_revision
        if name is None:
            raise ValueError(f"{adapter_folder} does not name its base model: give it as --model")
    if folder is None:
        folder = _model_folder(name or BUNDLED, base_revision, local_only)
    if folder.is_file():
        return _find_gguf(str(name), folder, adapter_folder, family)
    if (folder / ADAPTER_FILE).is_file() and not is_adapter(folder):
        # transformers would put the adapter into the model's layers by itself, unchecked.
        raise ValueError(
            f"{folder} holds a model and an adapter: move one of them to a folder of its own"
        )
    for place in (folder, adapter_folder):
        if place is not None:
            _check_files(place)
    network = network_of(adapter_folder)
    config = adapted(read_config(folder, _chosen(name, family, network)), network)
    tokenizer = read_tokenizer(tokenizer_folder(folder, adapter_folder), config)
    weights = weight_files(folder)
    links = _weight_links(folder, config, weights)
    config.tie_word_embeddings = config.tie_word_embeddings and not _has_own_head(weights, links)
    soft_mask = _read_soft_mask(folder, adapter_folder, config)
    if soft_mask is not None:
        check_k(soft_mask.k, config.vocab_size)
    return Source(
        str(name or BUNDLED), folder, adapter_folder, config, tokenizer, weights, links, soft_mask
    )


def _chosen(name: str | Path | None, family: str | None, network: NetworkFile) -> Family | None:
    """The family that a user says, a Hub id is known by, or the adapter was trained on."""
    known = named(name, family)
    return by_name(network.family) if known is None and network.family is not None else known


def family_named(name: str | Path, family: str | None = None) -> Family | None:
    """The family of a model; None: its files do not say, and nor does the user.

    Raises:
        ValueError: there is no such family or model, or its config.json is damaged.
    """
    folder = _model_folder(name, None, local_only=False)
    if folder.is_file():
        return family_of_gguf(read_head(folder), named(name, family))
    return named(name, family) or recognise(read_mapping(folder / CONFIG_FILE))


def _find_gguf(name: str, path: Path, adapter: Path | None, family: str | None) -> Source:
    """As `find`, of a model that is one GGUF file."""
    head = read_head(path)
    shapes = check_tensors(head)
    factors = None
    if facts.ROPE_FACTORS in head.tensors:
        factors = read_tensor(head, facts.ROPE_FACTORS).flatten().tolist()
    if adapter is not None:
        _check_files(adapter)
    network = network_of(adapter)
    config = config_of(head, dtype_of(head), _chosen(name, family, network), factors)
    compare_shapes(path, shapes, shapes_of(config), config, "its metadata")
    config = adapted(config, network)
    if adapter is not None and has_tokenizer(adapter):
        tokenizer = read_tokenizer(adapter, config)
    else:
        tokenizer = read_gguf_tokenizer(head, config)
    names = [name for name in head.tensors if name != facts.ROPE_FACTORS]
    links = tuple(Link(name, facts.own_name(name)) for name in names)
    soft_mask = _read_soft_mask(path, adapter, config)
    if soft_mask is not None:
        check_k(soft_mask.k, config.vocab_size)
    return Source(name, path, adapter, config, tokenizer, (path,), links, soft_mask)


def _check_files(folder: Path) -> None:
    """Raises ValueError where a file's name leads to none: it would count as missing."""
    for path in sorted(folder.iterdir()):
        if any(fnmatch.fnmatchcase(path.name, p) for p in HUB_FILES) and not path.is_file():
            raise ValueError(f"{path} is a folder, or a link to nothing: put the file there")


def _model_folder(name: str | Path, revision: str | None, local_only: bool) -> Path:
    """As `_folder`, and the name of the bundled model, unless a folder here is called so."""
    if name == BUNDLED and not Path(BUNDLED).is_dir():
        require(
            revision is None, "the bundled model has no revisions: leave it out, or name a model"
        )
        return Path(str(resources.files("softmask"))) / BUNDLED
    return _folder(name, revision, local_only)


def tokenizer_folder(model: Path, adapter: Path | None) -> Path:
    """The adapter's where it brings a tokenizer: a fine-tuning may have changed the template."""
    return adapter if adapter is not None and has_tokenizer(adapter) else model


def local_place(name: str | Path) -> Path | None:
    """The folder or the GGUF file that is meant by the name of a model; None: neither is here."""
    path = expand_home(name)
    return path if path.is_dir() else gguf_path(name)


def _folder(name: str | Path, revision: str | None, local_only: bool) -> Path:
    """The local folder or GGUF file, or a snapshot of the Hub repository."""
    here = local_place(name)
    if here is not None:
        if revision is not None:
            what = "folder" if here.is_dir() else "file"
            raise ValueError(f"{here} is a local {what}: a revision has no meaning there")
        return here
    path = expand_home(name)
    if path.exists():
        raise ValueError(
            f"{path} is a file: give the folder that holds config.json, or a {facts.SUFFIX} file"
        )
    refuse_unfinished(path)
    if not HUB_ID.fullmatch(str(name)):
        raise ValueError(f"there is no folder {name}, and it is no Hub id (owner/name) either")
    return fetch(str(name), revision, local_only=local_only)


def read_config(folder: Path, family: Family | None = None) -> DreamConfig:
    """The folder's config, under our names.

    Raises:
        ValueError: there is none, it is of no known family, or a value in it has no meaning.
    """
    path = folder / CONFIG_FILE
    values = read_mapping(path)
    config = config_from_file(values, path, family)
    if values.get("quantization_config") is not None:
        read_four_bits(values["quantization_config"], str(path))
    return config


def _weight_links(folder: Path, config: DreamConfig, weights: Sequence[Path]) -> tuple[Link, ...]:
    """What the weights in a folder's files are here; raises as `_check_weights`."""
    is_own, family = is_own_layout(read_mapping(folder / CONFIG_FILE)), by_name(config.family)
    own_name: Callable[[str], str] = str if is_own else family.own_name
    stored = {name for path in weights for name in tensor_names(path)}
    if is_stored_in_4_bits(config):  # whose tensors have no shapes of the network
        return tuple(Link(name, own_name(name)) for name in sorted(stored))
    shapes = shapes_of(config)
    links = same_names(shapes) if is_own else links_of(family, shapes)
    wanted = their_shapes(links, shapes)
    _check_weights(folder, config, weights, wanted, own_name)
    return tuple(link for link in links if link.theirs in stored)


def _has_own_head(weights: Sequence[Path], links: Sequence[Link]) -> bool:
    """Whether the files have a head that is another one than their table of embeddings.

    It is the model's then, whatever its config.json says of it, as in transformers 5.
    """
    theirs = {link.ours: link.theirs for link in links}
    if not {f"{TABLE}.weight", f"{HEAD}.weight"} <= theirs.keys():
        return False
    with reading(weights) as read:
        table, head = (read(theirs[f"{name}.weight"]) for name in (TABLE, HEAD))
        return not torch.equal(table.to(head.dtype), head)


def shapes_of(config: DreamConfig) -> dict[str, list[int]]:
    """The shapes of the weights of a model with this config, by our names."""
    with torch.device("meta"):
        model = DreamModel(config)
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def check_link(path: Path) -> None:
    """Raises ValueError for a link that leads out of its folder: what it leads to is not published.

    But for the Hub's cache, where every file is a link to its blob.
    """
    blobs = path.parent.parent.parent / "blobs"
    real = path.resolve()
    if not real.is_relative_to(path.parent.resolve()) and real.parent != blobs.resolve():
        raise ValueError(f"{path} is a link to {real}: put a copy of the file in its place")


def fingerprint(folder: Path) -> str:
    """What tells a checkpoint or adapter from another: config, and name, size, ends of the weights.

    A whole hash of 15 GB would take longer than loading them; what fits in the ends is whole.
    """
    if folder.is_file():  # GGUF, its config in front
        digest, paths = hashlib.sha256(), [folder]
    else:
        configs = [ADAPTER_FILE, NETWORK_FILE] if is_adapter(folder) else [CONFIG_FILE]
        found = [folder / name for name in configs if (folder / name).is_file()]
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in found))
        paths = sorted(folder.glob("*.safetensors"))
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for place in (0, max(0, size - 2**20)):
                file.seek(place)
                digest.update(file.read(2**20))
    return digest.hexdigest()


def _check_weights(
    folder: Path,
    config: DreamConfig,
    weights: Sequence[Path],
    wanted: Mapping[str, list[int]],
    own_name: Callable[[str], str],
) -> None:
    """Checks names, shapes and dtypes of weights against the config, by the files' heads alone.

    Args:
        wanted: the shapes in the files, by the names there.
        own_name: what such a name is in errors.

    Raises:
        ValueError: they are not those of a model with this config.
    """
    stored: dict[str, list[int]] = {}
    for path in weights:
        with safe_open(path, framework="pt") as file:
            for theirs in sorted(file.keys()):
                head, name = file.get_slice(theirs), own_name(theirs)
                if name in stored:
                    raise ValueError(f"{folder}: two weights are {name}: remove one of them")
                if head.get_dtype() not in FLOATS:
                    raise ValueError(
                        f"{path}: {name} has the dtype {head.get_dtype()}: take the weights in "
                        "float32, bfloat16 or float16"
                    )
                stored[name] = head.get_shape()
    compare_shapes(folder, stored, {own_name(name): wanted[name] for name in wanted}, config)


def compare_shapes(
    folder: Path,
    stored: Mapping[str, list[int]],
    wanted: Mapping[str, list[int]],
    config: DreamConfig,
    where: str = f"its {CONFIG_FILE}",
) -> None:
    """Checks names and shapes of weights against those of a model with this config.

    Args:
        where: what the config was read from.

    Raises:
        ValueError: they are others.
    """
    report = {
        "missing_keys": wanted.keys() - stored.keys(),
        "unexpected_keys": stored.keys() - wanted.keys(),
        "mismatched_keys": [n for n in wanted.keys() & stored.keys() if wanted[n] != stored[n]],
    }
    check_report(folder, report, config, where)


def stored_dtypes(weights: Sequence[Path]) -> dict[str, torch.dtype]:
    """The dtype of each tensor in the files, by its name there; their heads alone are read."""
    found: dict[str, torch.dtype] = {}
    for path in weights:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            found |= {name: FLOATS[file.get_slice(name).get_dtype()] for name in names}
    return found


def stored_dtype(weights: Sequence[Path]) -> torch.dtype | None:
    """The dtype of all tensors in the files; None: they are of several."""
    found = set(stored_dtypes(weights).values())
    return found.pop() if len(found) == 1 else None


def check_report(
    folder: Path,
    report: dict[str, Any],
    config: DreamConfig,
    where: str = f"its {CONFIG_FILE}",
) -> None:
    """Raises ValueError where weights are missing, unknown or of another shape."""
    missing = set(report["missing_keys"])
    if config.tie_word_embeddings:
        missing.discard("lm_head.weight")
    problems = {
        "lack": sorted(missing),
        "have unknown": sorted(report["unexpected_keys"]),
        "have the wrong shape for": sorted(str(key) for key in report["mismatched_keys"]),
    }
    for what, keys in problems.items():
        if keys:
            raise ValueError(
                f"{folder}: the weights {what} {keys[0]} ({len(keys)} in all): they are not those "
                f"of {where}"
            )


def _read_soft_mask(
    folder: Path, adapter: Path | None, config: DreamConfig
) -> SoftMaskConfig | None:
    """The adapter's parameters, else the folder's, else those in its config.

    A file that says `transparency_alg: none`, as beside an adapter that was trained plainly, is
    the end of it.
    """
    for place in (adapter, folder):
        if place is not None and (place / SOFT_MASK_FILE).is_file():
            return read_soft_mask_file(place / SOFT_MASK_FILE)
    if config.transparency_config is None:
        return None
    return soft_mask_from_published(config.transparency_config, str(folder / CONFIG_FILE))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars nor advice from transformers: what matters is raised here, in a sentence."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
