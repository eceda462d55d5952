"""benchmarks/llama_cpp.py, with a program in place of llama.cpp's that prints what it does."""

from __future__ import annotations

import json
import runpy
import stat
import sys

import pytest
from paths import ROOT

SCRIPT = ROOT / "benchmarks" / "llama_cpp.py"
# Checks what it is called with, and prints the lines of examples/diffusion (2025-07 to 2026-10).
PROGRAM = """#!{python}
import sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert open(options["-m"], "rb").read(4) == b"GGUF"
assert options["-c"] == options["-b"] == options["-ub"] == "96", options
assert options["-t"] == options["-tb"] == "1", options
steps = int(options["--diffusion-steps"])
print(f"diffusion_params: steps={{steps}} schedule=0 algorithm=3", file=sys.stderr)
for step in range(steps):
    print(f"\\rdiffusion step: {{step}}/{{steps}} [{{' ' * 50}}] 0%", end="", file=sys.stderr)
{last}
"""
LAST = (
    'print(f"\\n{said}: {{7.5 * steps:.2f}}ms, time per step: 7.50ms, sampling time per step: '
    '1.25ms", file=sys.stderr)\nprint("\\nthere was a dog")'
)


@pytest.fixture
def run(model, tmp_path, monkeypatch):
    """Runs the script with a program that ends in these lines; returns the result's folder."""

    def with_program(last: str):
        program = tmp_path / "llama-diffusion-cli"
        program.write_text(PROGRAM.format(python=sys.executable, last=last), encoding="utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        out = tmp_path / "out"
        words = f"--binary {program} --model {model} --ways float32 --length 96 --steps 3"
        monkeypatch.setattr(
            sys,
            "argv",
            [str(SCRIPT), *words.split(), *f"--threads 1 --repeat 2 --out {out}".split()],
        )
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return out

    return with_program


def test_our_step_is_compared_with_what_the_program_prints(run, capsys) -> None:
    out = run(LAST.format(said="total time"))
    result = json.loads((out / "result.json").read_text())
    found = result["ways"]["float32"]
    assert found["file"] == "f32"
    assert found["raw_ms"]["llama.cpp"] == [7.5, 7.5]
    for name in ("plain", "soft"):
        own = found["raw_ms"][name]
        assert len(own) == 2
        ratios = found["theirs_over_ours"][name]
        assert ratios["max"] == pytest.approx(max(7.5 / ms for ms in own), abs=1e-3)
    assert "float32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ('print("total time: soon")', "printed no time per step"),
        (
            'print("error: unsupported model", file=sys.stderr)\nsys.exit(1)',
            "0%error: unsupported model",
        ),
    ],
)
def test_a_program_that_fails_is_one_sentence(run, capsys, last, message) -> None:
    with pytest.raises(SystemExit):
        run(last)
    assert message in capsys.readouterr().err
