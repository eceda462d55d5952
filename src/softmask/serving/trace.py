"""A run step by step as JSON: what the event stream sends, the page draws and a trace file holds.

docs/reference/trace.md describes the format. A trace file is {"format", "version", "runs"}; a run
is {"start", "steps", "end"}, each as `Tracer` makes them.
Shape suffixes: N positions, K leading tokens.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..config import SoftMaskConfig, from_mapping, is_on, require
from ..decoding.generation import Generation
from ..decoding.prompts import decode_answer, pieces, rules_of
from ..models.checkpoint import Checkpoint
from .engine import Engine, Event, Request, Result
from .request import Trace

FORMAT, VERSION = "softmask-trace", 1
DIGITS = 4
# Leading tokens that a recording tells of each position.
CANDIDATES = 5


class Tracer:
    """Turns a request, its events and its result into JSON.

    Args:
        infill: whether the text is what was between holes too; else it is what follows a prompt.
        start: the position where a text with holes begins: behind a conversation.
        name: of the model, for readers; default: the checkpoint's own.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        request: Request,
        *,
        infill: bool,
        id: str,
        start: int = 0,
        name: str | None = None,
    ) -> None:
        self.checkpoint, self.request, self.infill, self.id = checkpoint, request, infill, id
        self.name, self.begins = name or checkpoint.name, start
        self._mask_id = checkpoint.model.mask_id
        self._named: set[int] = set()
        self._started = time.monotonic()

    def start(self) -> dict[str, Any]:
        """The canvas, and how it is going to be denoised."""
        request = self.request
        texts = pieces(self.checkpoint, request.ids)
        added = self.checkpoint.tokenizer.added_tokens_decoder.items()
        special = {index for index, token in added if token.special}
        tokens = []
        for token, text in zip(request.ids, texts, strict=True):
            masked = token == self._mask_id
            if token in special and not masked:
                text = self._text_of(token)
            tokens.append({"id": token, "text": text, "masked": masked})
        return {
            "id": self.id,
            "name": "soft-masked" if is_on(request.soft_mask) else "plain",
            "model": self.name,
            "settings": settings_of(request),
            "infill": self.infill,
            "tokens": tokens,
        }

    def step(self, event: Event) -> dict[str, Any]:
        """What a step did, and the state of the masked positions."""
        trace, seen = event.trace, event.logprobs
        assert trace is not None, "the request asks for no trace"
        assert seen is not None
        mixes = is_on(self.request.soft_mask) and len(trace.lambda_M)
        mean = float(trace.lambda_M.mean()) if mixes else None
        named = {
            *event.ids,
            *seen.ids_NK.flatten().tolist(),
            *trace.logprobs.ids_NK.flatten().tolist(),
        }
        fresh = sorted(named - self._named - {-1})
        self._named.update(fresh)
        return {
            "step": event.step,
            "steps": event.steps,
            "forwards": event.forwards,
            "seconds": round(time.monotonic() - self._started, DIGITS),
            "left": event.left,
            "final": event.final,
            **({} if event.source is None else {"source": list(event.source)}),
            "lambda": None if mean is None else round(mean, DIGITS),
            "committed": {
                "position": list(event.columns),
                "id": list(event.ids),
                "p": _rounded(np.exp(seen.logprob_N)),
                "entropy": _rounded(np.where(np.isnan(seen.logprob_N), np.nan, seen.entropy_N)),
            },
            "masked": _masked(trace),
            "texts": {str(token): self._text_of(token) for token in fresh},
        }

    def answer(self, result: Result) -> tuple[str, list[int]]:
        """Its text and tokens."""
        return decode_answer(self.checkpoint, result.ids[self._first :], infill=self.infill)

    @property
    def _first(self) -> int:
        return self.begins if self.infill else self.request.ids.index(self._mask_id)

    def end(self, result: Result) -> dict[str, Any]:
        """How it came out."""
        text, chosen = self.answer(result)
        cut = len(chosen) < len(result.ids) - self._first
        whole = self.infill or self.request.constraint is not None
        reason = "stop" if cut or whole else "length"
        if self.request.room is not None and self.request.room.is_cut(len(result.ids), result.left):
            reason = "length"
        return {
            "text": text,
            "tokens": len(chosen),
            "finish_reason": reason if result.finish_reason == "done" else result.finish_reason,
            **result.cost(),
            "pieces": pieces(self.checkpoint, result.ids),
        }

    def _text_of(self, token: int) -> str:
        return self.checkpoint.decode([token])


def settings_of(request: Request) -> dict[str, Any]:
    """All that decides a request's outcome, its canvas and rules aside."""
    soft_mask = request.soft_mask
    return {
        "seed": request.seed,
        "sampling": dataclasses.asdict(request.sampling),
        "soft_mask": None if soft_mask is None else dataclasses.asdict(soft_mask),
    }


def _masked(trace: Trace) -> dict[str, Any]:
    """The masked positions, column by column; a weight is a share of the mixture."""
    seen, lambda_M = trace.logprobs, trace.lambda_M
    shares_MK = trace.weights_MK / np.maximum(trace.weights_MK.sum(1), 1e-12)[:, None]
    candidates, chances, shares = [], [], []
    for row, (ids_K, logprobs_K) in enumerate(zip(seen.ids_NK, seen.logprobs_NK, strict=True)):
        known = ids_K >= 0
        mixed = dict(zip(trace.ids_MK[row].tolist(), shares_MK[row].tolist(), strict=True))
        candidates.append(ids_K[known].tolist())
        chances.append(_rounded(np.exp(logprobs_K[known])))
        if not lambda_M[row]:
            own_K = np.zeros(len(candidates[-1]))
        elif mixed:
            own_K = np.array([mixed.get(token, 0.0) for token in candidates[-1]])
        else:  # all tokens
            own_K = seen.shares_NK[row][known]
        shares.append(_rounded(own_K))
    return {
        "position": trace.columns_M.tolist(),
        "lambda": _rounded(lambda_M),
        "entropy": _rounded(seen.entropy_N),
        "candidates": candidates,
        "p": chances,
        "w": shares,
    }


def _rounded(values_N: np.ndarray) -> list[float | None]:
    rounded = np.round(values_N.astype(np.float64), DIGITS).tolist()
    return [None if value != value else value for value in rounded]


def trace_file(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What a trace file holds."""
    return {"format": FORMAT, "version": VERSION, "runs": list(runs)}


@dataclasses.dataclass(frozen=True)
class _TraceFile:
    format: str
    version: int
    runs: tuple[dict[str, Any], ...]


def check_trace(values: Any, where: str) -> dict[str, Any]:
    """A trace file's content, looked at so far that it can be shown.

    Raises:
        ValueError: it is something else, of another version, or a run in it is not whole.
    """
    parsed = from_mapping(_TraceFile, values, where)
    require(parsed.format == FORMAT, f"{where} is no trace: its format is {parsed.format!r}")
    require(
        parsed.version == VERSION,
        f"{where} is a trace of version {parsed.version}, and this softmask reads {VERSION}",
    )
    whole = all(_is_whole(run) for run in parsed.runs)
    require(bool(parsed.runs) and whole, f"{where} holds no whole run")
    return values


def _is_whole(run: dict[str, Any]) -> bool:
    """Whether a run has what it is shown by."""
    parts = {"start": {"tokens"}, "end": {"text", "pieces"}}
    return isinstance(run.get("steps"), list) and all(
        isinstance(run.get(part), dict) and names <= run[part].keys()
        for part, names in parts.items()
    )


def steady(run: dict[str, Any]) -> dict[str, Any]:
    """A run on a canvas where nothing moves: with a column for all that ever stood there.

    A run without a hole that grew is that already. A column that was removed adds no text.
    """
    tokens, orders = run["start"]["tokens"], list[list[int]]()
    order = line = list(range(len(tokens)))
    masked = [token["masked"] for token in tokens]
    first, size = masked.index(True), sum(masked)
    for step in run["steps"]:
        source = step.get("source")
        if source is not None:
            before, behind = order, order[first + size :]
            order = [*before[:first], *(-1 if c < 0 else before[c] for c in source), *behind]
            line = list(line)
            for column, name in enumerate(order):
                if name < 0:  # it stands before what is next
                    following = next((one for one in order[column:] if one >= 0), None)
                    at = len(line) if following is None else line.index(following)
                    order[column] = len(line)
                    line.insert(at, len(line))
            size = len(source)
        orders.append(order)
    if order is line:
        return run
    place = {name: column for column, name in enumerate(line)}
    pieces = dict(zip(order, run["end"]["pieces"], strict=True))
    new = {"id": -1, "text": "", "masked": True}

    def at_places(part: dict[str, Any], own: list[int]) -> dict[str, Any]:
        return part | {"position": [place[own[column]] for column in part["position"]]}

    steps = [
        step | {part: at_places(step[part], own) for part in ("committed", "masked")}
        for step, own in zip(run["steps"], orders, strict=True)
    ]
    return {
        "start": run["start"] | {"tokens": [tokens[n] if n < len(tokens) else new for n in line]},
        "steps": steps,
        "end": run["end"] | {"pieces": [pieces.get(name, "") for name in line]},
    }


def record_ways(
    run: Generation,
    ways: Sequence[SoftMaskConfig | None],
    *,
    candidates: int = CANDIDATES,
    row: int = 0,
) -> dict[str, Any]:
    """What a trace file holds of a row of a Generation that has not begun, run once for each way.

    Args:
        ways: the soft-mask settings of each run; None: plain.
        candidates: leading tokens that are told of each position.

    Raises:
        ValueError: a run failed.
    """
    request = Request(
        tuple(run.rows[row]),
        run.sampling_of(row),
        rules=rules_of(run.checkpoint, infill=run.infill),
        seed=run.seeds[row],
        top_logprobs=candidates,
        trace=True,
        constraint=run.constraints[row],
        holes=run.holes[row],
        room=run.rooms[row] if run.rooms else None,
    )
    requests = [dataclasses.replace(request, soft_mask=soft_mask) for soft_mask in ways]
    return trace_file(
        record(run.checkpoint, one, infill=run.infill, id=f"run-{index}")
        for index, one in enumerate(requests, start=1)
    )


def ways_of(run: Generation, *, against_plain: bool) -> list[SoftMaskConfig | None]:
    """How a Generation is to be recorded: as it is, and plainly too.

    Raises:
        ValueError: it is plain already.
    """
    require(
        run.soft_mask is not None or not against_plain,
        "this run is plain already: leave out against_plain (of a command --against-plain)",
    )
    return [run.soft_mask, None] if against_plain else [run.soft_mask]


def record(checkpoint: Checkpoint, request: Request, *, infill: bool, id: str) -> dict[str, Any]:
    """Denoises a request here and now, and returns its run.

    Raises:
        ValueError: the request cannot be run, or it failed.
    """
    soft_mask, k = request.soft_mask, request.top_logprobs
    if soft_mask is not None:
        k = max(k, soft_mask.k, soft_mask.feedback.rule.top)
    engine = Engine(checkpoint.model, positions=request.positions, k=k)
    tracer = Tracer(checkpoint, request, infill=infill, id=id)
    handle, start, steps, left = engine.submit(request), tracer.start(), [], True
    while left:
        left = engine.run_once()
        steps += [tracer.step(event) for event in handle.pending()]
    result = handle.result()
    if result.error is not None:
        raise result.failure(f"the run failed: {result.error}")
    return {"start": start, "steps": steps, "end": tracer.end(result)}
