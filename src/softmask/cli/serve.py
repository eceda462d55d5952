"""softmask serve: reads the command line, loads the model, and runs the server to its end."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import socket
import threading
from types import FrameType
from typing import Any

from ..config import require
from ..serving.config import LAST_WORDS, ServeConfig
from .options import add_model_options, add_settings, given, load_model

KEY_VARIABLE = "SOFTMASK_API_KEY"


def add_serve(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "serve",
        help="an OpenAI-compatible server, and a page that shows the denoising",
        description="Serves a model over HTTP: OpenAI's chat and completions (with a suffix: "
        "infilling), every denoising step as events, Prometheus metrics, and a page at /. "
        f"An API key in the environment variable {KEY_VARIABLE} is one like those of --api-key, "
        "and does not show among this machine's processes.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port; 0: any free one (8000)")
    parser.add_argument(
        "--api-key", action="append", default=[], help="wanted of requests; may be repeated"
    )
    parser.add_argument("--ray", action="store_true", help="as a Ray Serve application")
    parser.add_argument(
        "--replicas", default="1", help="with --ray: so many, or between two numbers: 1-4 (1)"
    )
    add_settings(parser.add_argument_group("limits"), ServeConfig, "--", {}, ("api_keys",))
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, _argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"serving needs {package}: pip install 'softmask[serve]'")
    config = config_of(args)
    if args.ray:
        from ..serving.ray_serve import serve

        return serve(args, config)
    require(args.replicas == "1", "--replicas are Ray's: give --ray too")
    listener = bind(args.host, args.port)
    with listener:
        return _serve(args, config, listener)


def config_of(args: argparse.Namespace) -> ServeConfig:
    """The limits that the command line and the environment name."""
    own = os.environ.get(KEY_VARIABLE)
    keys = (*args.api_key, *([own] if own else []))
    return ServeConfig(**given(args, ServeConfig), api_keys=keys)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens, before a model is loaded for nothing.

    Raises:
        ValueError: the address cannot be had.
    """
    require(0 <= port < 65536, f"a port lies between 0 and 65535, not {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ValueError(
            f"cannot listen at {host}:{port} ({error.strerror}): choose another --port or --host"
        ) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """http://127.0.0.1:8000"""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _serve(args: argparse.Namespace, config: ServeConfig, listener: socket.socket) -> int:
    import uvicorn

    from ..serving.middleware import log_as_json
    from ..serving.server import create_app
    from ..serving.service import Service

    service = Service(load_model(args), config)
    log_as_json()

    class Server(uvicorn.Server):
        """Ends what runs, or tells it, before connections are closed."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"softmask: serving {service.name} at {address_of(listener)}", flush=True)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # A second Ctrl-C is somebody who does not want to wait.
            again = self.should_exit and sig == signal.SIGINT
            finish, grace = ("nothing", None) if again else ("running", config.grace)
            settings = {"finish": finish, "grace": grace}
            threading.Thread(target=service.engine.close, kwargs=settings, daemon=True).start()
            super().handle_exit(sig, frame)

    settings = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        server_header=False,
        # Connections that nobody uses are closed; what runs has its grace.
        timeout_graceful_shutdown=int(config.grace + LAST_WORDS) + 1,
        timeout_keep_alive=30,
    )
    service.engine.start()
    try:
        Server(settings).run(sockets=[listener])
    finally:
        service.engine.close(finish="nothing")
    return 0
