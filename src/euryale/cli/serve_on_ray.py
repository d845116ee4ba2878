"""Replicas of a server on Ray Serve, on this machine: started, watched and ended by one process."""

import logging
import os
import re
import secrets
import signal
import time
from types import FrameType
from typing import Any

import torch

from euryale.cli.open_engine import open_checkpoint
from euryale.cli.open_server import extra
from euryale.cli.serve_schema import ServeRayConfig
from euryale.errors import UserError
from euryale.server.address import find_port
from euryale.server.limits import MAX_SEQUENCES

NAME = "euryale"
OTHER_REQUESTS = 64  # at a replica: sockets of pages, metrics, tokens
LAST_SECONDS = 5.0  # for responses that were cut off to reach their clients
log = logging.getLogger(__name__)


def serve_on_ray(config: ServeRayConfig) -> dict[str, object]:
    """Serves until SIGINT or SIGTERM, then drains. Returns what all replicas did.

    Raises UserError: a package of the extra `ray` is missing; more cores or GPUs are asked for than there are; the
    address is taken; a replica cannot open its engine.
    """
    open_checkpoint(config)  # what its settings and files say is refused here, not in a replica
    num_gpus = _gpus(config)
    port = find_port(config)  # Ray's proxy would try for long, and then tell its own log
    _prepare_environment()
    with extra("ray"):
        import ray

        from euryale.cli.ray_replica import Replica
        from euryale.server.replica_metrics import Board
    with extra("ray"):
        from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(
        address="local",  # a cluster of others is left alone
        num_cpus=config.replicas * config.cores,
        num_gpus=num_gpus * config.replicas,
        include_dashboard=False,
        object_store_memory=80 << 20,  # nothing large goes through it
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    try:
        with _Signals() as signals:
            board = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()
            serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": port})
            options = {"num_cpus": config.cores, "num_gpus": num_gpus}
            deployment = serve.deployment(
                name=NAME,
                num_replicas=config.replicas,
                ray_actor_options=options,
                max_ongoing_requests=config.max_rows + config.max_waiting + OTHER_REQUESTS,
                max_queued_requests=MAX_SEQUENCES,
                max_constructor_retry_count=1,
                health_check_period_s=2.0,
                graceful_shutdown_timeout_s=LAST_SECONDS,
                graceful_shutdown_wait_loop_s=0.2,
                logging_config={"enable_access_log": False},  # its lines hold paths and queries
            )(serve.ingress()(Replica))
            _run(serve, deployment.bind(config, board, os.getcwd()))
            shown = f"[{config.host}]" if ":" in config.host else config.host
            url = f"http://{shown}:{port}"
            log.info("serving %d replicas at %s: the live page; OpenAI's API at %s/v1", config.replicas, url, url)
            signals.wait()
            log.info("draining for up to %g s; a second signal ends at once", config.drain)
            ray.get(board.begin_drain.remote())
            end = time.monotonic() + config.drain + LAST_SECONDS
            while not signals.is_urgent and time.monotonic() < end and not ray.get(board.is_drained.remote()):
                time.sleep(0.1)
            num_requests, num_tokens = ray.get(board.totals.remote())
    finally:
        ray.shutdown()  # ends all processes of this cluster; they have drained
    return {"num_requests": num_requests, "num_tokens": num_tokens}


class _Signals:
    """SIGINT and SIGTERM: before `wait` they interrupt; then the first asks for an end, the second for one at once.

    Plain flags: a handler runs in the thread that waits, and would wait for ever for the lock of an Event that this
    thread holds.
    """

    def __init__(self) -> None:
        self._is_asked = False
        self._is_serving = False
        self.is_urgent = False

    def __enter__(self) -> "_Signals":
        self._before = {sign: signal.signal(sign, self._take) for sign in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for sign, handler in self._before.items():
            signal.signal(sign, handler)

    def wait(self) -> None:
        """Returns after the first signal."""
        self._is_serving = True
        while not self._is_asked:
            time.sleep(0.2)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self._is_serving:
            raise KeyboardInterrupt
        self.is_urgent, self._is_asked = self._is_asked, True


def _run(serve: Any, application: Any) -> None:
    """Returns when all replicas are up. Raises UserError with the reason of one that could not open its engine."""
    try:
        serve.run(application, name=NAME, route_prefix="/")
    except RuntimeError as error:
        told = re.search(r"UserError: (.+)", serve.status().applications[NAME].deployments[NAME].message)
        if told is None:
            raise
        raise UserError(told.group(1)) from error


def _gpus(config: ServeRayConfig) -> int:
    """Of each replica. Raises UserError where there are fewer GPUs than replicas."""
    if config.base.device == "cpu" or not torch.cuda.is_available():
        return 0
    if config.replicas > torch.cuda.device_count():
        raise UserError(
            f"replicas must be at most the {torch.cuda.device_count()} GPUs of this machine; got {config.replicas}. "
            "Start fewer, or use base.device=cpu."
        )
    return 1


def _prepare_environment() -> None:
    """Ray reads these when it is imported, and its processes inherit them."""
    from euryale.server.replica_proxy import CALLBACK

    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": CALLBACK,
        "RAY_SERVE_LOG_TO_STDERR": "0",  # its own chatter; what replicas say is shown
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # on a busy machine its processes take long to start
    }
    if "RAY_AUTH_MODE" not in os.environ:  # Ray's ports run what they are sent
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
