"""softmask serve --ray: the same application as replicas on a Ray cluster, or on this machine.

Each replica is a process with a model and an engine of its own. Ray's proxy shares requests out, and
replicas start and stop by how many requests there are.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import signal
import threading
import urllib.request
from typing import Any

from .config import require
from .options import load_model
from .serve_cli import LAST_WORDS, address_of, bind
from .serve_config import ServeConfig

NAME = "softmask"
MOST_REPLICAS = 1024
# What a replica's process is told of the command line: the options of `add_model_options`.
MODEL_OPTIONS = (
    *("model", "adapter", "revision", "device", "dtype", "device_map", "quantize", "threads"),
)


class Replica:
    """A model, its engine and the application around it."""

    def __init__(self, options: dict[str, Any], config: ServeConfig) -> None:
        from .gate import log_as_json
        from .serving import Service

        self.config = config
        self.service = Service(load_model(argparse.Namespace(**options)), config)
        self.service.engine.start()
        log_as_json()

    def __serve_build_asgi_app__(self) -> Any:
        from .server import create_app

        return create_app(self.service)

    def check_health(self) -> None:
        """Ray replaces a replica that raises here."""
        if not self.service.engine.is_open:
            raise RuntimeError("the engine takes no requests any more")

    def __del__(self) -> None:
        service = getattr(self, "service", None)  # none where the model could not be loaded
        if service is not None:
            service.engine.close(finish="running", grace=self.config.grace)


def serve(args: argparse.Namespace, config: ServeConfig) -> int:
    """Serves until SIGTERM or Ctrl-C.

    Raises:
        ValueError: Ray is missing, the number of replicas makes no sense, the address is taken.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("serving on Ray needs ray: pip install 'softmask[ray]'")
    low, high = replicas_of(args.replicas)
    with bind(args.host, args.port) as listener:
        address, (host, port) = address_of(listener), listener.getsockname()[:2]
    import ray
    from ray import serve as ray_serve

    stop = threading.Event()
    own = _join(ray)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        ray_serve.start(http_options={"host": host, "port": port})
        options = {name: getattr(args, name) for name in MODEL_OPTIONS}
        ray_serve.run(deployment(options, config, low, high), name=NAME, route_prefix="/")
        print(f"softmask: serving {_served(address, config)} at {address}", flush=True)
        stop.wait()
    finally:
        # The application alone where the cluster is somebody else's.
        ray_serve.delete(NAME)
        if own:
            ray_serve.shutdown()
            ray.shutdown()
    return 0


def replicas_of(text: str) -> tuple[int, int]:
    """ "2" or "1-4" as the fewest and the most.

    Raises:
        ValueError: it is neither, or no number of replicas.
    """
    low, _, high = text.partition("-")
    numbers = [part for part in (low, high or low) if part.isdecimal()]
    sentence = f"--replicas is a number or two, as 2 or 1-4, not {text!r}"
    require(len(numbers) == 2, sentence)
    fewest, most = map(int, numbers)
    require(1 <= fewest <= most <= MOST_REPLICAS, sentence)
    return fewest, most


def deployment(options: dict[str, Any], config: ServeConfig, low: int, high: int) -> Any:
    """The application as Ray Serve takes it."""
    from ray import serve as ray_serve

    held = config.running + config.queue
    settings: dict[str, Any] = {
        "name": NAME,
        # More than an engine holds, so that it says 429 itself, and at once.
        "max_ongoing_requests": 2 * held,
        "ray_actor_options": _share_of_machine(options),
        "graceful_shutdown_timeout_s": config.grace + LAST_WORDS,
        "health_check_period_s": 5,
        "health_check_timeout_s": 30,
    }
    if low == high:
        settings["num_replicas"] = low
    else:
        settings["autoscaling_config"] = {
            "min_replicas": low,
            "max_replicas": high,
            # A replica that is full is one too few: what waits for a seat starts another.
            "target_ongoing_requests": config.running,
        }
    replica = ray_serve.ingress()(Replica)
    return ray_serve.deployment(replica).options(**settings).bind(options, config)


def _share_of_machine(options: dict[str, Any]) -> dict[str, float]:
    """What Ray sets aside for a replica: a GPU, or its threads."""
    from .hub import choose_device

    if options["device_map"] is not None or choose_device(options["device"]).type == "cuda":
        return {"num_gpus": 1}
    return {"num_cpus": options["threads"] or 1}


def _join(ray: Any) -> bool:
    """Joins the cluster that RAY_ADDRESS names, or starts one here; whether it is ours."""
    own = "RAY_ADDRESS" not in os.environ
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if own:
        settings |= {"address": "local", "include_dashboard": False}
    ray.init(**settings)
    return own


def _served(address: str, config: ServeConfig) -> str:
    """The model's name, as the replicas say it."""
    headers = {"Authorization": f"Bearer {config.api_keys[0]}"} if config.api_keys else {}
    request = urllib.request.Request(f"{address}/v1/models", headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["data"][0]["id"]
