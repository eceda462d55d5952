"""softmask serve --ray: the same application in several processes, on one machine or on many.

A replica is a process of its own with the model, an engine and the application of `server.py`. Ray
Serve takes requests at one address, hands each to the replica that has the fewest, adds and removes
replicas by how many requests they have, and replaces those that fail. docs/guides/deploy.md says
how that runs in a cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from ..config import require
from ..hub.load import LoadConfig
from .config import DRAIN_SECONDS, ServeConfig
from .listener import address_of, bind
from .middleware import log_as_json
from .server import create_app
from .service import Service

APPLICATION = "softmask"
# Requests of a replica beyond those that run or wait: its engine is to refuse them, not Ray, which
# would have them wait without a word. Those that only ask how it is need room too.
SPARE = 64
# A model that cannot be loaded will not be the third time.
ATTEMPTS = 2
# Ray's own memory for what passes between processes; requests are small, the default is a third.
STORE_BYTES = 128 << 20


class Replica:
    """What a process of Ray's holds: the model on an engine, and the application around it."""

    def __init__(self, load: LoadConfig, config: ServeConfig) -> None:
        log_as_json()
        self.service = Service(load.load(), config)
        self._is_closing = False
        self.service.engine.start()

    async def __serve_build_asgi_app__(self) -> Any:
        """The application; Ray asks for it once, when the model is loaded."""
        return create_app(self.service)

    def name(self) -> str:
        """The model's name for clients."""
        return self.service.name

    def check_health(self) -> None:
        """Ray asks again and again, and replaces a replica that raises.

        Raises:
            RuntimeError: the engine broke down, or was closed by something else than `close`.
        """
        if not (self.service.engine.is_open or self._is_closing):
            raise RuntimeError("the engine takes no requests any more")

    async def close(self, grace: float) -> None:
        """Ends waiting requests, and returns when the running ones have ended."""
        self._is_closing = True
        self.service.encoder.close()
        await asyncio.to_thread(self.service.engine.close, finish="running", grace=grace)

    def __del__(self) -> None:
        # Ray calls it when it has waited for all requests; a model that did not load has none.
        if "service" in vars(self):
            self.service.engine.close(finish="nothing")


def serve(
    load: LoadConfig, config: ServeConfig, replicas: tuple[int, int], host: str, port: int
) -> None:
    """Serves at host and port until a signal comes.

    Args:
        replicas: the least and the most.

    Raises:
        ValueError: an address that cannot be had, or a model that no replica can load.
    """
    least, most = replicas
    with bind(host, port) as listener:
        url, (host, port) = address_of(listener), listener.getsockname()[:2]
    stdout = sys.stdout
    # Ray prints what its processes print.
    with (
        contextlib.redirect_stdout(sys.stderr),
        _ray(most * _processors(load)),
        _stopping() as stop,
    ):
        import ray

        if takes_gpu(load.device, ray.cluster_resources()):
            _check_gpus(least, ray.cluster_resources())
        handle = _deploy(load, config, replicas, host, port)
        try:
            name = handle.name.remote().result()
            _wait_until_served(host, port)
            print(f"softmask: serving {name} at {url}", file=stdout, flush=True)
            stop.wait()
            seconds = config.grace + DRAIN_SECONDS
            # Ray tells replicas nothing before all their requests are over. One may be dead.
            with contextlib.suppress(TimeoutError, ray.exceptions.RayError):
                handle.broadcast("close", config.grace).results(timeout_s=seconds)
        finally:
            _undeploy()


def application(load: LoadConfig, config: ServeConfig, replicas: tuple[int, int]) -> Any:
    """The deployment, bound to what its replicas load."""
    import ray
    from ray import serve

    least, most = replicas
    takes = takes_gpu(load.device, ray.cluster_resources())
    deployment = serve.deployment(
        name="Replica",
        autoscaling_config={
            "min_replicas": least,
            "max_replicas": most,
            # More than that in a replica would wait there.
            "target_ongoing_requests": config.running,
        },
        max_ongoing_requests=config.running + config.queue + SPARE,
        ray_actor_options={"num_cpus": _processors(load), "num_gpus": int(takes)},
        graceful_shutdown_timeout_s=config.grace + DRAIN_SECONDS,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5.0,
        max_constructor_retry_count=ATTEMPTS,
    )
    load = dataclasses.replace(
        load, model=_everywhere(load.model), adapter=_everywhere(load.adapter)
    )
    return deployment(serve.ingress()(Replica)).bind(load, config)


def replicas_of(text: str) -> tuple[int, int]:
    """The least and the most replicas.

    Raises:
        ValueError: it is neither a number nor two, the lower one first.
    """
    match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
    if match is None:
        raise ValueError(f"--replicas are a number, or two as in 1-4, not {text!r}")
    least = int(match[1])
    most = int(match[2] or least)
    require(1 <= least <= most, f"--replicas must be at least 1, the lower first, not {text}")
    return least, most


def takes_gpu(device: str | None, resources: Mapping[str, float]) -> bool:
    """Whether a replica runs on a GPU: as the device says, else where the cluster has any."""
    return resources.get("GPU", 0) >= 1 if device is None else device == "cuda"


def _processors(load: LoadConfig) -> int:
    return load.threads or 1


def _everywhere(name: str | None) -> str | None:
    """A folder's name as other processes find it; a Hub id stays as it is."""
    return str(Path(name).resolve()) if name is not None and Path(name).is_dir() else name


def _check_gpus(least: int, resources: Mapping[str, float]) -> None:
    found = int(resources.get("GPU", 0))
    require(
        found >= least or "RAY_ADDRESS" in os.environ,
        f"each replica takes a GPU, and this machine has {found}: lower --replicas",
    )


@contextlib.contextmanager
def _ray(processors: int) -> Iterator[None]:
    """Ray while it is open: the cluster that RAY_ADDRESS names, else one on this machine.

    Raises:
        ValueError: there is no such cluster, or it does not let us in.
    """
    # Read when Ray is imported and by the processes that it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    quiet = {"logging_level": "warning", "namespace": "serve"}
    if "RAY_ADDRESS" in os.environ:
        try:
            ray.init(**quiet)
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise ValueError(
                f"no Ray cluster at RAY_ADDRESS={os.environ['RAY_ADDRESS']} takes us: see that it "
                "is up, and give the token that it was started with as RAY_AUTH_TOKEN"
            ) from error
    else:
        ray.init(
            address="local",
            # Without them Ray waits for ever; with too many of them the system shares them out.
            num_cpus=max(processors, os.cpu_count() or 1),
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            **quiet,
        )
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set; a second Ctrl-C interrupts at once."""
    stop = threading.Event()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    signals = (signal.SIGTERM, signal.SIGINT)
    before: list[Any] = [signal.signal(number, handle) for number in signals]
    try:
        yield stop
    finally:
        for number, old in zip(signals, before, strict=True):
            signal.signal(number, old)


def _deploy(
    load: LoadConfig, config: ServeConfig, replicas: tuple[int, int], host: str, port: int
) -> Any:
    """Starts Ray Serve and the replicas; returns their handle."""
    from ray import serve
    from ray.serve.schema import LoggingConfig

    # The gate logs what is asked.
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(http_options={"host": host, "port": port}, logging_config=quiet)
    target = application(load, config, replicas)
    try:
        return serve.run(target, name=APPLICATION, route_prefix="/", logging_config=quiet)
    except RuntimeError as error:
        deployments = serve.status().applications[APPLICATION].deployments.values()
        reason = _reason("\n".join([str(error), *(one.message for one in deployments)]))
        _undeploy()
        raise ValueError(f"no replica came up: {reason}") from error


def _reason(report: str) -> str:
    """The last error in a report of Ray's, which quotes tracebacks."""
    found = re.findall(r"^\s*(?:\w+\.)*\w+(?:Error|Exception): (.+)$", report, re.MULTILINE)
    return found[-1] if found else report


def _undeploy() -> None:
    """Ends the replicas, and Ray Serve with them unless it has other applications."""
    from ray import serve

    serve.delete(APPLICATION)
    if not serve.status().applications:
        serve.shutdown()


def _wait_until_served(host: str, port: int, seconds: float = 30.0) -> None:
    """Until the address answers.

    Raises:
        ValueError: it does not, as where Ray Serve has run before, at another one.
    """
    near = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    ends = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"http://{near}:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if time.monotonic() > ends:
                raise ValueError(
                    f"Ray Serve does not answer at {host}:{port} ({error}): in a cluster where it "
                    "runs already it keeps the address that it has"
                ) from error
        time.sleep(0.1)
