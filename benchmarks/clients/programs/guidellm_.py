"""A benchmark of 8 completions, 4 at once, as guidellm's own command runs it."""

import json
import subprocess
import sys
from pathlib import Path

from common import MODEL, TEXT, URL, say

ROWS = [{"prompt": f"{number}. {TEXT}", "output_tokens_count": 16} for number in range(8)]
Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
root = URL.removesuffix("/v1")
words = [
    *("--backend", f"kind=openai_http,target={root},model={MODEL},request_format=/v1/completions"),
    *("--profile", "kind=concurrent,streams=4"),
    *("--constraint", "kind=max_requests,count=8"),
    *("--data", "kind=json_file,path=rows.jsonl"),
    *("--output", "kind=json,path=out.json", "--disable-console-interactive"),
]
subprocess.run([Path(sys.executable).with_name("guidellm"), "run", *words], check=True)
metrics = json.loads(Path("out.json").read_text(encoding="utf-8"))["benchmarks"][0]["metrics"]
say("requests", metrics["request_totals"])
if metrics["request_totals"]["errored"]:
    raise SystemExit("some requests failed")
