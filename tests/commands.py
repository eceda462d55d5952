"""Commands that must fail, run in this process."""

from __future__ import annotations

from softmask.cli.main import main


def failed(capsys, *arguments: str) -> str:
    """Runs a command that must fail; returns its one line."""
    try:
        code = main(list(arguments))
    except SystemExit as error:  # argparse
        code = error.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.strip().splitlines()[-1]
    assert "Traceback" not in captured.err
    return last
