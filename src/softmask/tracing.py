"""softmask.trace(): a run as arrays, positions by steps, and as a file to look at.

    run = softmask.trace(checkpoint, "One day, Tom", max_new_tokens=64, against_plain=True)
    run.entropy_PS.shape                    # (64 positions, so many steps)
    run.save("run.html")                    # or .json, .svg, .png

It is recorded as `softmask generate --trace` does it: docs/reference/trace.md.
Shape suffixes: P positions that were masked, S steps, K leading tokens.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .config import read_json, require
from .constraints.constraint import Constraint
from .decoding.arguments import as_count, check_keywords
from .decoding.generation import Generation, Prompt, SoftMaskChoice
from .files import write_atomically
from .models.checkpoint import Checkpoint
from .reporting.plots import new_figure, save
from .serving.trace import CANDIDATES, check_trace, record_ways, steady, ways_of

SUFFIXES = (".json", ".html", ".svg", ".png")


class Trace:
    """A recorded run; with `against_plain` also the plain one of the same seed, as `plain`.

    Column s of an array is the state after `step_S[s]` steps; steps that computed nothing are not
    there. NaN and -1 stand where nothing was read. Probabilities are the model's own, before
    temperature and filters.

    Attributes:
        text: what came out.
        steps: how many columns there are.
        step_S: the number of each, from 1.
        position_P: columns of the canvas, prompt included; where a hole grew, of one that has a
            column for all that ever stood there.
        piece_P: what each token adds to the text.
        committed_P: the index of the step that committed each position; -1: none did.
        token_PS: the token there; -1 while it is masked.
        probability_PS: of the leading token while it is masked, in the step that commits a token
            of that token, and NaN from then on.
        entropy_PS: in nats, likewise.
        lambda_PS: weight of the feedback in the next input of a masked position.
        candidate_PSK: the leading tokens of a masked position, likeliest first.
        candidate_probability_PSK: their probabilities.
        share_PSK: their shares of the mixture; NaN with dense rules, which are not asked for them.
        data: the content of the trace file.
    """

    def __init__(self, data: dict[str, Any], index: int = 0) -> None:
        self.data, self._index = data, index
        run = steady(data["runs"][index])
        self.text: str = run["end"]["text"]
        self.settings: dict[str, Any] = run["start"]["settings"]
        self.steps = len(run["steps"])
        self.step_S = np.array([step["step"] for step in run["steps"]], dtype=np.int64)
        masked = [token["masked"] for token in run["start"]["tokens"]]
        self.position_P = np.flatnonzero(masked)
        self.piece_P = [run["end"]["pieces"][column] for column in self.position_P]
        self._fill(run["steps"])

    def _fill(self, steps: Sequence[dict[str, Any]]) -> None:
        lists = [ids for step in steps for ids in step["masked"]["candidates"]]
        shape, most = (len(self.position_P), len(steps)), max(map(len, lists), default=0)
        place = {column: row for row, column in enumerate(self.position_P.tolist())}
        self.committed_P = np.full(shape[0], -1)
        self.token_PS = np.full(shape, -1)
        self.probability_PS, self.entropy_PS, self.lambda_PS = (
            np.full(shape, np.nan) for _ in range(3)
        )
        self.candidate_PSK = np.full((*shape, most), -1)
        self.candidate_probability_PSK, self.share_PSK = (
            np.full((*shape, most), np.nan) for _ in range(2)
        )
        for s, step in enumerate(steps):
            masked, done = step["masked"], step["committed"]
            for column, *values, ids, chances, shares in zip(
                *(masked[k] for k in ("position", "lambda", "entropy", "candidates", "p", "w")),
                strict=True,
            ):
                p = place[column]
                self.lambda_PS[p, s], self.entropy_PS[p, s] = _numbers(values)
                self.candidate_PSK[p, s, : len(ids)] = ids
                self.candidate_probability_PSK[p, s, : len(ids)] = _numbers(chances)
                self.share_PSK[p, s, : len(ids)] = _numbers(shares)
                if ids:
                    (self.probability_PS[p, s],) = _numbers(chances[:1])
            for column, token, *values in zip(
                *(done[key] for key in ("position", "id", "p", "entropy")), strict=True
            ):
                p = place[column]
                self.committed_P[p] = s
                self.token_PS[p, s:] = token
                self.probability_PS[p, s], self.entropy_PS[p, s] = _numbers(values)

    @property
    def plain(self) -> Trace | None:
        """The plain run beside this one, where it was recorded."""
        if self._index or len(self.data["runs"]) < 2:
            return None
        return self._other

    @cached_property
    def _other(self) -> Trace:
        return Trace(self.data, 1)

    def __repr__(self) -> str:
        size = f"{len(self.position_P)} positions, {self.steps} steps"
        return f"Trace({size}, {self.text[:40]!r})"

    def to_pandas(self) -> Any:
        """A pandas.DataFrame with a row for each position and step.

        Raises:
            ValueError: pandas is missing.
        """
        if importlib.util.find_spec("pandas") is None:
            raise ValueError("to_pandas needs pandas: pip install pandas")
        import pandas

        positions, steps = len(self.position_P), self.steps
        columns = {
            "step": np.tile(self.step_S, positions),
            "position": np.repeat(self.position_P, steps),
            "token": self.token_PS.ravel(),
            "committed": (self.committed_P[:, None] == np.arange(steps)).ravel(),
            "probability": self.probability_PS.ravel(),
            "entropy": self.entropy_PS.ravel(),
            "lambda": self.lambda_PS.ravel(),
        }
        for k in range(self.candidate_PSK.shape[2]):
            columns[f"candidate_{k}"] = self.candidate_PSK[..., k].ravel()
            columns[f"candidate_{k}_probability"] = self.candidate_probability_PSK[..., k].ravel()
            columns[f"candidate_{k}_share"] = self.share_PSK[..., k].ravel()
        return pandas.DataFrame(columns)

    def save(self, path: str | Path) -> None:
        """Writes the run: .json a trace file, .html a page that plays it, .svg, .png a picture.

        Raises:
            ValueError: another ending, no such folder, or for .png no matplotlib.
        """
        path = Path(path)
        known = ", ".join(SUFFIXES)
        require(path.suffix in SUFFIXES, f"{path.name} must end in one of {known}")
        require(path.parent.is_dir(), f"there is no folder for {path}")
        if path.suffix == ".json":
            write_atomically(path, json.dumps(self.data, ensure_ascii=False))
        elif path.suffix == ".html":
            from .serving.page import page_html

            write_atomically(path, page_html({"mode": "trace", "trace": self.data}))
        elif path.suffix == ".svg":
            from .cli.svg import picture

            write_atomically(path, picture(self.data))
        else:
            _draw([self] if self.plain is None else [self, self.plain], path)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """A run from a trace file.

        Raises:
            ValueError: there is no such file, it is something else, or a run in it is not whole.
        """
        path = Path(path)
        require(
            path.suffix not in SUFFIXES[1:],
            f"a {path.suffix} cannot be read again, only a trace file (.json): save the run as one",
        )
        require(path.is_file(), f"there is no file {path}")
        data = check_trace(read_json(path), str(path))
        try:
            runs = [cls(data, index) for index in range(len(data["runs"]))]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no whole run: record it again") from error
        return runs[0]


def trace(
    checkpoint: Checkpoint,
    prompts: Prompt | Sequence[Prompt],
    *,
    against_plain: bool = False,
    candidates: int = CANDIDATES,
    max_new_tokens: int | None = None,
    soft_mask: SoftMaskChoice = "checkpoint",
    seed: int | Sequence[int] | None = None,
    num_return_sequences: int = 1,
    chat: bool | None = None,
    system: str | None = None,
    infill: bool = False,
    constraint: Constraint | None = None,
    **sampling: Any,
) -> Trace | list[Trace]:
    """Generates as `generate` does, and returns the recorded run; of a list of prompts a list.

    Args:
        against_plain: also run each text plainly, with the same seed: `Trace.plain`.
        candidates: leading tokens that are kept of each position and step.

    Raises:
        ValueError: see `generate`; nothing to compare with, or no candidates.
    """
    candidates = as_count("candidates", candidates)
    check_keywords(trace, sampling)
    run = Generation(
        checkpoint,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        soft_mask=soft_mask,
        seed=seed,
        num_return_sequences=num_return_sequences,
        chat=chat,
        system=system,
        infill=infill,
        constraint=constraint,
    )
    ways = ways_of(run, against_plain=against_plain)
    rows = range(len(run.seeds))
    found = [Trace(record_ways(run, ways, candidates=candidates, row=row)) for row in rows]
    return found[0] if run.is_single else found


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _draw(runs: Sequence[Trace], target: Path) -> None:
    """Positions by steps as maps of probability, entropy and lambda, a row of maps for each run.

    Raises:
        ValueError: matplotlib is missing.
    """
    maps = {
        "probability": ("probability_PS", "viridis", 1.0),
        "entropy, nats": ("entropy_PS", "magma_r", None),
        "lambda": ("lambda_PS", "Blues", None),
    }
    height = max(len(run.position_P) for run in runs)
    figure = new_figure(13, len(runs) * min(1.8 + 0.14 * height, 12))
    axes = figure.subplots(len(runs), len(maps), squeeze=False)
    for run, row in zip(runs, axes, strict=True):
        soft = run.settings["soft_mask"] is not None
        done = run.committed_P >= 0
        for axis, (title, (name, colours, most)) in zip(row, maps.items(), strict=True):
            if name == "lambda_PS" and not soft:
                axis.axis("off")
                continue
            # One scale for both runs.
            seen = np.concatenate([getattr(one, name).ravel() for one in runs])
            image = axis.imshow(
                getattr(run, name),
                cmap=colours,
                vmin=0,
                vmax=most or max(np.nanmax(seen, initial=0.0), 1e-6),
                aspect="auto",
                extent=(0.5, run.steps + 0.5, len(run.position_P) - 0.5, -0.5),
            )
            axis.plot(
                run.committed_P[done] + 1,
                np.flatnonzero(done),
                linestyle="",
                marker="s",
                markersize=2.5,
                color="black",
            )
            axis.set_title(f"{'soft-masked' if soft else 'plain'}: {title}", fontsize=10)
            axis.set_xlabel("step that computes (black: committed)")
            axis.xaxis.get_major_locator().set_params(integer=True)
            figure.colorbar(image, ax=axis)
        every = max(1, height // 60)
        ticks = range(0, len(run.position_P), every)
        # A dollar sign would begin a formula.
        words = [run.piece_P[t].replace("\n", "\u21b5").replace("$", r"\$") for t in ticks]
        row[0].set_yticks(ticks, words, fontsize=7)
        for axis in row[1:]:
            axis.set_yticks([])
    save(figure, target)
