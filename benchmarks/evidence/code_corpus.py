"""Python code that lies on every machine, as two texts to train and to score on.

    python benchmarks/evidence/code_corpus.py OUT [--megabytes 12]

The standard library of the running CPython (PSF-2.0) without its tests, and installed packages
whose licence is MIT, BSD, Apache-2.0 or ISC. A file is left out if most of its lines stood in an
earlier one. One file in 25, chosen by the hash of its content, is held out. OUT gets train.txt,
held_out.txt (files between <|endoftext|> lines) and sources.json (packages, versions, licences).
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from softmask.puzzles.stories import SEPARATOR, join_stories

HELD_OUT = 25
PERMISSIVE = re.compile(r"\b(MIT|BSD|Apache|ISC)\b", re.IGNORECASE)
COPYLEFT = re.compile(r"GPL|MPL|Mozilla|CDDL|EPL", re.IGNORECASE)
SIZES = range(400, 60_000)  # bytes of a file; longer ones are tables
LEFT_OUT = re.compile(r"(^|/)(tests?|idlelib|lib2to3|site-packages|_?vendor(ed)?|generated)/")


def licence_of(package: metadata.Distribution) -> str:
    """What a package says of its licence, in a line."""
    said = package.metadata
    classifiers = [c for c in said.get_all("Classifier") or [] if c.startswith("License")]
    stated = said.get("License-Expression") or " ".join(classifiers) or said.get("License") or ""
    return " ".join(stated.split())[:80]


def sources() -> Iterator[tuple[str, str, str, list[Path]]]:
    """(name, version, licence, Python files), always in the same order."""
    library = Path(sysconfig.get_paths()["stdlib"])
    own = [path for path in sorted(library.rglob("*.py")) if wanted(path, library)]
    yield "CPython", sysconfig.get_python_version(), "PSF-2.0", own
    for package in sorted(metadata.distributions(), key=lambda d: d.metadata["Name"].lower()):
        licence = licence_of(package)
        if not PERMISSIVE.search(licence) or COPYLEFT.search(licence):
            continue
        root = Path(package.locate_file(""))
        files = sorted(root / file for file in package.files or [] if file.suffix == ".py")
        inside = [path for path in files if path.is_file() and wanted(path, root)]
        yield package.metadata["Name"], package.version, licence, inside


def wanted(path: Path, root: Path) -> bool:
    """No tests, no copies of other packages."""
    return path.is_relative_to(root) and not LEFT_OUT.search(path.relative_to(root).as_posix())


def text_of(path: Path) -> str | None:
    """A file's text; None where it is no Python, or very long or short."""
    content = path.read_bytes()
    if len(content) not in SIZES:
        return None
    try:
        text = content.decode("utf-8")
        ast.parse(text)
    except (UnicodeDecodeError, SyntaxError, ValueError):
        return None
    return None if SEPARATOR in text else text.strip()


def lines_of(text: str) -> set[str]:
    """Lines that say something."""
    return {line.strip() for line in text.splitlines() if len(line.strip()) > 20}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--megabytes", type=float, default=12.0, help="at most (default 12)")
    args = parser.parse_args()
    seen: set[str] = set()
    parts: dict[str, list[str]] = {"train": [], "held_out": []}
    said, size, skipped = [], 0, Counter()
    for name, version, licence, files in sources():
        kept = 0
        for path in files:
            text = text_of(path) if size < 1e6 * args.megabytes else None
            if text is None:
                continue
            lines = lines_of(text)
            if not lines or len(lines & seen) > 0.5 * len(lines):
                skipped["repetitions"] += 1
                continue
            seen |= lines
            digest = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
            parts["held_out" if digest % HELD_OUT == 0 else "train"].append(text)
            kept, size = kept + 1, size + len(text)
        if kept:
            said.append({"name": name, "version": version, "licence": licence, "files": kept})
    args.out.mkdir(parents=True, exist_ok=True)
    for part, texts in parts.items():
        (args.out / f"{part}.txt").write_text(join_stories(texts), encoding="utf-8")
    counts = {part: len(texts) for part, texts in parts.items()}
    result = {"characters": size, "files": counts, **skipped, "sources": said}
    (args.out / "sources.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({**result, "sources": len(said)}))


if __name__ == "__main__":
    main()
