"""Which client works: each one in an environment of its own against a real `softmask serve`.

    python benchmarks/clients/run.py --cache FOLDER --out benchmarks/results/DATE_clients

The model is tiny, of random weights, with a chat template that knows tools: what is tried is
the interface. The cache keeps the environments; --install makes them. Records of what the
clients ask go to tests/data/clients, where a default test replays them; the table goes to
docs/reference/clients.md too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests")]

from catalog import CLIENTS, OFFLINE, PROGRAMS, Client  # noqa: E402
from recorder import fixture, recording  # noqa: E402
from rich.console import Console  # noqa: E402
from tiny import write_dream_folder  # noqa: E402

from softmask.hub.load import load  # noqa: E402
from softmask.reporting.result_folder import claim, provenance, write  # noqa: E402
from softmask.reporting.tables import light_table  # noqa: E402

RECORDS, PAGE = ROOT / "tests/data/clients", ROOT / "docs/reference/clients.md"
# Agents bring long prompts, and the tiny model's tokens are single bytes.
CONTEXT = 32768
PATIENCE = 180  # seconds for a program


@dataclass(frozen=True)
class Verdict:
    """What came of a client. `reason` is empty where it works."""

    client: str
    version: str
    tries: str
    works: bool
    reason: str
    commit: str | None


def main(argv: list[str]) -> int:
    """The command; 1 where a client does not work."""
    args = _parser().parse_args(argv)
    if args.out is not None:
        claim(args.out)
    found = _found(args)
    verdicts = [found[client.name] for client in CLIENTS if client.name in found]
    table = light_table()
    for column in ("client", "version", "tried", "works"):
        table.add_column(column)
    for one in verdicts:
        table.add_row(one.client, one.version, one.tries, one.reason or "yes")
    Console().print(table)
    if args.out is not None:
        write(args.out, ["python", *sys.argv], {"clients": list(map(asdict, verdicts))}, [table])
    if args.page:
        PAGE.write_text(_page(verdicts), encoding="utf-8")
    return 0 if all(one.works for one in verdicts) else 1


def _found(args: argparse.Namespace) -> dict[str, Verdict]:
    """What came of each client, now or when it was tried last.

    Verdicts are kept in the cache one by one: --only tries some again, and the table has all.
    """
    store = args.cache / "verdicts.json"
    found: dict[str, Verdict] = {}
    if store.exists():
        found = {name: Verdict(**one) for name, one in json.loads(store.read_text()).items()}
    if args.table:
        return found
    with tempfile.TemporaryDirectory() as folder, _serving(Path(folder)) as (address, model):
        for client in CLIENTS:
            if args.only and client.name not in args.only:
                continue
            if args.install:
                _install(client, args.cache)
            verdict, records = _try(client, args.cache, address, model)
            found[client.name] = verdict
            store.write_text(json.dumps({name: asdict(one) for name, one in found.items()}))
            print(f"{verdict.client}: {verdict.reason or 'works'}", flush=True)
            if verdict.works and args.records:
                _write_records(client, verdict.version, records)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder of the environments")
    parser.add_argument("--out", type=Path, help="folder for the result")
    parser.add_argument("--only", action="append", help="a client by name; may be repeated")
    parser.add_argument("--table", action="store_true", help="try none: what was found before")
    parser.add_argument("--install", action="store_true", help="make environments that are missing")
    parser.add_argument("--records", action="store_true", help=f"write {RECORDS.relative_to(ROOT)}")
    parser.add_argument("--page", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    return parser


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[tuple[str, Path]]:
    """A server of a tiny chat model that knows tools, and the model's folder."""
    model = write_dream_folder(
        folder / "tiny", tools=True, max_position_embeddings=CONTEXT, num_hidden_layers=1
    )
    # For clients that count tokens: the checkpoint's own is code, which they would not run.
    load(model, device="cpu").tokenizer.save_pretrained(folder / "tokenizer")
    command = [sys.executable, "-m", "softmask", "serve", "--model", str(model), "--port", "0"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=(folder / "server.log").open("w"),
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1], model
        finally:
            process.terminate()


def _environment(client: Client, cache: Path) -> Path:
    return cache / ("js" if client.javascript else "py") / client.folder


def _install(client: Client, cache: Path) -> None:
    place = _environment(client, cache)
    if client.javascript:
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "node_modules").exists():
            subprocess.run(["npm", "init", "-y"], cwd=place, check=True, capture_output=True)
            npm = ["npm", "install", "--no-audit", "--no-fund", *client.packages]
            subprocess.run(npm, cwd=place, check=True)
    elif not (place / "bin/python").exists():
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        subprocess.run([place / "bin/pip", "install", "-q", *client.packages], check=True)


def _version(client: Client, place: Path) -> str:
    if client.javascript:
        package = place / "node_modules" / client.package / "package.json"
        return str(json.loads(package.read_text())["version"])
    look = f"import importlib.metadata as m; print(m.version({client.package!r}))"
    done = subprocess.run([place / "bin/python", "-c", look], capture_output=True, text=True)
    return done.stdout.strip()


def _try(
    client: Client, cache: Path, address: str, model: Path
) -> tuple[Verdict, list[dict[str, object]]]:
    place = _environment(client, cache).absolute()
    if not place.exists():
        return Verdict(client.name, "", client.tries, False, "not installed", None), []
    with recording(address) as (root, asked), tempfile.TemporaryDirectory() as work:
        values = {
            "url": f"{root}/v1",
            "root": root,
            "model": "tiny",
            "tokenizer": str(model.with_name("tokenizer")),
            "programs": str(PROGRAMS),
        }
        own = {name: value.format(**values) for name, value in client.environment}
        environment = {**_plain_environment(), **OFFLINE, "HOME": work, **own}
        environment |= {"URL": values["url"], "MODEL": values["model"]}
        reason = _run(_command(client, place, Path(work), values), Path(work), environment)
        bad = [one for one in asked if one["status"] >= 400]
        if bad:
            reason = f"{bad[0]['status']}: {bad[0]['error']}"
        elif not reason and not any(one["method"] == "POST" for one in asked):
            reason = "it asked nothing"
    version, commit = _version(client, place), provenance()["commit"]
    return Verdict(client.name, version, client.tries, not reason, reason, commit), asked


def _plain_environment() -> dict[str, str]:
    """This process's own, without what would lead to softmask's packages or to keys."""
    kept = ("PATH", "LANG", "TMPDIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
    return {name: os.environ[name] for name in kept if name in os.environ}


def _command(client: Client, place: Path, work: Path, values: dict[str, str]) -> list[str]:
    if client.javascript:
        assert client.program is not None
        # Node looks for packages from the program's own place on.
        program = place / client.program
        program.write_text((PROGRAMS / client.program).read_text())
        return ["node", str(program)]
    if client.program is not None:
        return [str(place / "bin/python"), str(PROGRAMS / client.program), *client.command]
    first, *rest = (word.format(**values) for word in client.command)
    return [str(place / "bin" / first), *rest]


def _run(command: list[str], work: Path, environment: dict[str, str]) -> str:
    """Why the program failed; empty where it did not."""
    try:
        done = subprocess.run(
            command,
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return f"not done in {PATIENCE} s"
    if os.environ.get("SHOW"):
        print(done.stdout[-3000:], done.stderr[-3000:])
    if done.returncode == 0:
        return ""
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else f"exit code {done.returncode}"


def _write_records(client: Client, version: str, asked: list[dict[str, object]]) -> None:
    RECORDS.mkdir(parents=True, exist_ok=True)
    name = re.sub("[^a-z0-9]+", "_", client.name.lower()).strip("_")
    lines = ",\n".join(json.dumps(one) for one in fixture(asked))
    head = f'"client": {json.dumps(client.name)}, "version": {json.dumps(version)}'
    content = f'{{{head}, "requests": [\n{lines}\n]}}\n'
    (RECORDS / f"{name}.json").write_text(content, encoding="utf-8")


def _page(verdicts: list[Verdict]) -> str:
    """The page of the documents."""
    lines = [
        "# Clients",
        "",
        "Each client was installed in an environment of its own and run against `softmask serve`",
        "with a tiny chat model whose template knows tools, by `benchmarks/clients/run.py`, which",
        "writes this page. What a client asks is recorded in `tests/data/clients`, and a test",
        "asks it again at every change. The weights are random: what is tried is the interface. An",
        "answer that is cut at its length is a failure to openai-agents, so give it enough tokens.",
        "",
        "| client | version | tried | works |",
        "| --- | --- | --- | --- |",
    ]
    for one in verdicts:
        reason = one.reason.replace("|", "\\|") or "yes"
        lines.append(f"| {one.client} | {one.version} | {one.tries} | {reason} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
