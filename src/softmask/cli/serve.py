"""softmask serve: reads the command line, loads the model, and runs the server to its end.

Serves a model over HTTP: OpenAI's chat and completions (with a suffix: infilling), every
denoising step as events, Prometheus metrics, and a page at /. An API key in the environment
variable SOFTMASK_API_KEY is one like those of --api-key, and does not show among this machine's
processes.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import require
from ..reporting.progress import progress
from ..serving.config import ServeConfig
from ..serving.listener import bind, is_loopback
from .options import add_model_options, add_settings, given, load_config, load_model, new_parser

KEY_VARIABLE = "SOFTMASK_API_KEY"
# Settings that have options of their own.
NO_OPTIONS = ("api_keys", "hosts", "origins", "chat_template")


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("serve", __doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port; 0: any free one (8000)")
    parser.add_argument(
        "--api-key", action="append", default=[], help="wanted of requests; may be repeated"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        help="a name that clients call this server by, beside addresses and localhost; others are "
        "refused where it is given, and by default where no key is set and --host is this machine "
        "alone; may be repeated",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        help="whose pages may use this server in a browser, such as https://example.org, or * for "
        "all; may be repeated",
    )
    parser.add_argument(
        "--chat-template",
        metavar="FILE",
        help="a chat template (Jinja) in place of the model's own: with one, chat requests are "
        "answered by any model",
    )
    parser.add_argument("--ray", action="store_true", help="as a Ray Serve application")
    parser.add_argument(
        "--replicas", default="1", help="with --ray: so many, or between two numbers: 1-4 (1)"
    )
    add_settings(parser.add_argument_group("limits"), ServeConfig, "--", {}, NO_OPTIONS)
    add_model_options(parser)
    return parser


def run(args: argparse.Namespace, _argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"serving needs {package}: pip install 'softmask[serve]'")
    config = config_of(args, args.host)
    if args.ray:
        _check_ray(args)
        from ..serving import ray_serve

        load, replicas = load_config(args), ray_serve.replicas_of(args.replicas)
        ray_serve.serve(load, config, replicas, args.host, args.port)
        return 0
    require(args.replicas == "1", "--replicas are Ray's: give --ray too")
    listener = bind(args.host, args.port)
    with listener:
        return _serve(args, config, listener)


def config_of(args: argparse.Namespace, host: str | None) -> ServeConfig:
    """The limits that the command line and the environment name.

    Args:
        host: the address to listen at; None: another program decides that.
    """
    own = os.environ.get(KEY_VARIABLE)
    keys = (*args.api_key, *([own] if own else []))
    hosts = tuple(name.lower() for name in args.allow_host)
    if not keys and host is not None and is_loopback(host):
        # Whoever reaches it is on this machine; pages in a browser there are not to be let in.
        hosts = ("localhost", *hosts)
    origins = tuple(origin.lower() for origin in args.allow_origin)
    return ServeConfig(
        **given(args, ServeConfig),
        api_keys=keys,
        hosts=hosts,
        origins=origins,
        chat_template=None if args.chat_template is None else _template(args.chat_template),
    )


def _template(path: str) -> str:
    """A chat template's text, checked before a model is loaded."""
    from ..decoding.chat_template import check_template

    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8"
        raise ValueError(f"--chat-template {path} cannot be read: {why}") from error
    check_template(text)
    return text


def build(settings: Mapping[str, str]) -> Any:
    """The application for a Ray Serve config file: import_path "softmask.cli.serve:build".

    Args:
        settings: `options`, those of `softmask serve`, as on a command line.

    Raises:
        ValueError: another setting, or what the options themselves make wrong.
    """
    require(set(settings) <= {"options"}, f"args: only options are known, not {[*settings]}")
    args = make_parser().parse_args(["--ray", *shlex.split(settings.get("options", ""))])
    _check_ray(args)
    from ..serving import ray_serve

    replicas = ray_serve.replicas_of(args.replicas)
    return ray_serve.application(load_config(args), config_of(args, None), replicas)


def _check_ray(args: argparse.Namespace) -> None:
    require(
        importlib.util.find_spec("ray") is not None,
        "serving on Ray needs ray: pip install 'softmask[ray]'",
    )
    device = args.device
    require(
        device in (None, "cpu", "cuda", "mps"),
        f"with --ray a device is cpu, cuda or mps, and not {device}: Ray says which GPU is whose",
    )


def _serve(args: argparse.Namespace, config: ServeConfig, listener: socket.socket) -> int:
    with progress("starting the server"):
        from ..serving.http_server import HttpServer
        from ..serving.middleware import log_as_json
        from ..serving.service import Service

    service = Service(load_model(args), config)
    log_as_json()
    return HttpServer(service, listener).serve_to_the_end()
