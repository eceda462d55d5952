"""push(): an adapter or an exported folder goes to the Hub, and training state stays behind."""

from __future__ import annotations

import contextlib
import fnmatch
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from ..config import SAMPLING_FILE, SOFT_MASK_FILE, SOFT_MASK_WEIGHTS, read_soft_mask_file
from ..families.dream import DREAM
from ..families.registry import is_own_layout
from ..files import expand_home
from ..reporting.progress import progress
from .adapters import read_adapter
from .checkpoints import check_link, find
from .export import TOKENIZER_FILES, export
from .folder import (
    ADAPTER_FILE,
    ADAPTER_WEIGHTS,
    CONFIG_FILE,
    HUB_ID,
    NETWORK_FILE,
    WEIGHT_INDEX,
    is_on_hub,
    read_mapping,
    weight_files,
)
from .original_layout import named_code
from .tokenizer_files import TOKENIZER_CONFIG

# What goes up, by name: nothing that a run or an editor leaves in the folder slips in.
ADAPTER_FILES = (
    ADAPTER_FILE,
    ADAPTER_WEIGHTS,
    NETWORK_FILE,
    SOFT_MASK_FILE,
    SOFT_MASK_WEIGHTS,
    # Where a fine-tuning brings its own.
    TOKENIZER_CONFIG,
    *TOKENIZER_FILES,
    "README.md",
    "LICENSE*",
)
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    WEIGHT_INDEX,
    TOKENIZER_CONFIG,
    *TOKENIZER_FILES,
    SOFT_MASK_FILE,
    SAMPLING_FILE,
    "*.py",
    "README.md",
    "LICENSE*",
)
# What of an earlier upload would be read together with another one, by its kind.
ADAPTER_STATE = (
    *(NETWORK_FILE, SOFT_MASK_FILE, SOFT_MASK_WEIGHTS, TOKENIZER_CONFIG),
    *TOKENIZER_FILES,
)
MODEL_STATE = (
    *("generation_config.json", "model.safetensors", "model-*-of-*.safetensors", WEIGHT_INDEX),
    *(SOFT_MASK_FILE, SOFT_MASK_WEIGHTS, SAMPLING_FILE, *TOKENIZER_FILES),
)


def push(
    repo: str,
    folder: str | Path | None = None,
    *,
    model: str | Path | None = None,
    adapter: str | Path | None = None,
    family: str | None = None,
    layout: str | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    dry_run: bool = False,
) -> str | None:
    """Uploads a folder, or exports a checkpoint and uploads that.

    Args:
        repo: owner/name on the Hub; made where it does not exist.
        folder: of an adapter or of an exported model; leave it out to export `model` with
            `adapter` merged in.
        family: as for `hub.load`.
        layout: of what is exported, as for `export`.
        private: make the repository private.
        revision: branch to write to; made where it does not exist.
        dry_run: print what would go up, and send no request.

    Returns:
        The address of the commit; None for a dry run.

    Raises:
        ValueError: the folder is not whole, or the Hub refuses: one sentence that says what to do.
    """
    if not HUB_ID.fullmatch(repo):
        raise ValueError(f"{repo!r} is no repository: give it as OWNER/NAME")
    if (folder is None) == (model is None and adapter is None):
        raise ValueError("give either a folder to upload, or --model and --adapter to export")
    if folder is not None and layout is not None:
        raise ValueError("a folder goes up in the layout that it is in: export it anew for another")
    if folder is not None:
        ready = expand_home(folder)
        names = files_to_push(ready, family)
        if dry_run:
            _show(repo, ready, names)
            return None
        there = _make(repo, private, revision, is_adapter=ADAPTER_FILE in names)
        return _upload(repo, ready, names, there, revision, message)
    found = find(model, adapter, family=family, local_only=dry_run)
    there = []
    if not dry_run:
        # Before the export: a login that is missing should not cost a merge first.
        there = _make(repo, private, revision, is_adapter=False)
    with tempfile.TemporaryDirectory() as place:
        with progress("exporting the model"):
            ready = export(
                Path(place) / "model",
                model,
                adapter,
                family=family,
                layout=layout or "softmask",
                title=repo,
                link=True,
                local_only=dry_run,
            )
        names = files_to_push(ready, found.config.family, needs_code=layout != "original")
        if dry_run:
            _show(repo, ready, names)
            return None
        return _upload(repo, ready, names, there, revision, message)


def files_to_push(folder: Path, family: str | None = None, *, needs_code: bool = True) -> list[str]:
    """The names of the files to upload from an adapter's or an exported folder.

    Args:
        family: as for `hub.load`.
        needs_code: refuse a model that transformers cannot load without code beside it.

    Raises:
        ValueError: it is neither, or something in it is missing or damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    weights: set[str] = set()
    if (folder / ADAPTER_FILE).is_file():
        _check_adapter(folder)
        patterns: Sequence[str] = ADAPTER_FILES
    elif (folder / CONFIG_FILE).is_file():
        _check_model(folder, family, needs_code)
        patterns, weights = MODEL_FILES, {path.name for path in weight_files(folder)}
    else:
        raise ValueError(
            f"{folder} has neither {ADAPTER_FILE} nor config.json: give the folder of an adapter "
            "or of an exported model"
        )
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    chosen = [name for name in names if name in weights or _is_any(name, patterns)]
    for name in chosen:
        if not name.endswith(".safetensors"):
            check_link(folder / name)
    return chosen


def _is_any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check_adapter(folder: Path) -> None:
    read_adapter(folder)
    if (folder / SOFT_MASK_FILE).is_file():
        read_soft_mask_file(folder / SOFT_MASK_FILE)
    base = str(read_mapping(folder / ADAPTER_FILE).get("base_model_name_or_path"))
    if not is_on_hub(base):
        # It still works where the base is named by hand, so it is no error.
        print(
            f"softmask: note: {ADAPTER_FILE} names its base model {base!r}, which is no Hub id: "
            "others will have to give --model",
            file=sys.stderr,
        )


def _check_model(folder: Path, family: str | None, needs_code: bool) -> None:
    found = find(folder, family=family)
    values = read_mapping(folder / "config.json")
    remote = named_code(values)
    # Code on the Hub is named by its repository: OWNER/NAME--file.Class.
    files = {f"{name.split('.')[0]}.py" for name in remote if "--" not in name}
    # In its original layout, code of the family's own may lie elsewhere; but for Dream's.
    own = is_own_layout(values) or found.config.family == DREAM.name
    if needs_code and not remote and own:
        raise ValueError(
            f"{folder} has no code of its own, which transformers would need: `softmask push REPO "
            f"--model {folder}` exports it and uploads that (with `--layout original`: without)"
        )
    missing = sorted(file for file in files if not (folder / file).is_file())
    if missing:
        raise ValueError(f"{folder} lacks {missing[0]}, which its config.json names: export again")


def _show(repo: str, folder: Path, names: list[str]) -> None:
    sizes = {name: (folder / name).stat().st_size for name in names}
    print(f"would upload to {repo}:")
    for name, size in sizes.items():
        print(f"  {size:>14,}  {name}")
    print(f"  {sum(sizes.values()):>14,}  bytes in {len(sizes)} files")
    others = sorted(path.name for path in folder.iterdir() if path.name not in sizes)
    if others:
        print(f"would leave out: {', '.join(others)}")


def _make(repo: str, private: bool, revision: str | None, *, is_adapter: bool) -> list[str]:
    """The repository, and the branch in it, where they do not exist; returns the files there.

    Raises:
        ValueError: the Hub refuses, it is public where it should be private, or there is a model
            where an adapter is to go, or the reverse.
    """
    api = HfApi()
    with _explained(repo):
        # None leaves the choice of a new one to the account's settings.
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise ValueError(
                f"{repo} exists and is public: make it private on its settings page first, or "
                "leave out --private"
            )
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo, revision=revision)
    if (CONFIG_FILE if is_adapter else ADAPTER_FILE) in there:
        own, its = ("an adapter", "a model") if is_adapter else ("a model", "an adapter")
        raise ValueError(f"{repo} holds {its}, beside which {own} cannot be read: name another one")
    return there


def _upload(
    repo: str,
    folder: Path,
    names: list[str],
    there: list[str],
    revision: str | None,
    message: str | None,
) -> str:
    """Uploads these files; of those that are there, removes what would be read with them."""
    state = ADAPTER_STATE if ADAPTER_FILE in names else MODEL_STATE
    stale = [name for name in there if name not in names and _is_any(name, state)]
    with _explained(repo):
        commit = HfApi().upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=names,
            delete_patterns=stale or None,
            revision=revision,
            commit_message=message or "Upload with softmask",
        )
    if stale:
        what = ", ".join(stale)
        print(
            f"softmask: note: removed from {repo}, as of an earlier upload: {what}", file=sys.stderr
        )
    return commit.commit_url


@contextlib.contextmanager
def _explained(repo: str) -> Iterator[None]:
    """The Hub's refusals as one sentence each."""
    login = "run `hf auth login` with a token that may write, or set HF_TOKEN"
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise ValueError(f"you are not logged in to the Hub: {login}") from error
    except OfflineModeIsEnabled as error:
        raise ValueError("HF_HUB_OFFLINE is set: unset it to upload") from error
    except HfHubHTTPError as error:
        raise ValueError(_refusal(error, repo, login)) from error
    except (HTTPError, ConnectionError) as error:
        raise ValueError(
            f"the Hub cannot be reached ({error}): check the network and HF_ENDPOINT"
        ) from error


def _refusal(error: HfHubHTTPError, repo: str, login: str) -> str:
    status = error.response.status_code
    if status == 401:
        return f"the Hub does not accept your login: {login}"
    if status == 403:
        owner = repo.split("/")[0]
        return (
            f"your token may not write to {repo}: make one with write permission for {owner}, or "
            "push under your own name"
        )
    if status == 404:
        return f"the Hub finds no {repo} that you may write to: check the name and {login}"
    said = error.server_message or str(error).splitlines()[0]
    return f"the Hub refused the upload to {repo} ({status}): {said}"
