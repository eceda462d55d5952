"""A run's log, drawn: losses, soft-mask parameters, accuracy by how much is masked.

python -m softmask.training.curves runs/mix-seed1231/log.jsonl curves.png
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..files import read_json_lines
from ..reporting.plots import new_figure, save


def draw_curves(log: Path, target: Path, title: str) -> None:
    """Draws log.jsonl into a PNG.

    Raises:
        ValueError: matplotlib is missing, or a line of the log is damaged.
        OSError: the picture cannot be written.
    """
    figure = new_figure(15, 4.2)
    lines = read_json_lines(log)
    losses, parameters, accuracy = figure.subplots(1, 3)
    _losses(losses, lines)
    _parameters(parameters, lines)
    _accuracy(accuracy, lines)
    figure.suptitle(title)
    save(figure, target)


def _series(lines: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    held = [line for line in lines if key in line]
    return [line["step"] for line in held], [line[key] for line in held]


def _plot(axes: Any, lines: list[dict[str, Any]], key: str, label: str, style: str = "-") -> None:
    steps, values = _series(lines, key)
    if steps:
        axes.plot(steps, values, style, label=label, marker="." if len(steps) < 30 else "")


def _losses(axes: Any, lines: list[dict[str, Any]]) -> None:
    _plot(axes, lines, "nats", "training")
    for key in sorted({k for line in lines for k in line if k.startswith("eval_")}):
        if key.endswith(("plain", "soft")):
            label = key.removeprefix("eval_").replace("all_", "").replace("_", ", ")
            _plot(axes, lines, key, f"validation, {label}", "--" if "soft" in key else "-")
    axes.set(xlabel="update", ylabel="nats per masked token")
    axes.legend(fontsize=8)


def _parameters(axes: Any, lines: list[dict[str, Any]]) -> None:
    for key in ("lambda", "scale", "offset", "steepness", "soft_share"):
        _plot(axes, lines, key, {"lambda": "mean lambda"}.get(key, key))
    axes.set(xlabel="update", title="soft-mask parameters")
    if axes.lines:
        axes.legend(fontsize=8, loc="center left")
    else:
        axes.text(0.5, 0.5, "trained without soft-masking", ha="center", transform=axes.transAxes)


def _accuracy(axes: Any, lines: list[dict[str, Any]]) -> None:
    for key in sorted({k for line in lines for k in line if k.startswith("accuracy_t")}):
        low = float(key.removeprefix("accuracy_t"))
        _plot(axes, lines, key, f"t {low:.1f} to {low + 0.1:.1f}")
    axes.set(xlabel="update", title="accuracy at masked tokens, by t", ylim=(0, 1))
    if axes.lines:
        axes.legend(fontsize=7, ncols=2)


if __name__ == "__main__":
    draw_curves(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[1])
