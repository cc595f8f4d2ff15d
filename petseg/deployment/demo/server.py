"""Flags and server of the demo page, which listens on the loopback interface unless --host says otherwise."""

import dataclasses
import importlib.util
import ipaddress
import logging
import os
import socket
import tempfile
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from petseg.config import DistributionConfig
from petseg.config.eval_config import PACKAGED, ScoreConfig
from petseg.config.options import Group, option
from petseg.deployment.demo.guard import RESULTS, Guard, Hosts
from petseg.deployment.demo.networks import Networks
from petseg.deployment.demo.uploads import Uploads
from petseg.errors import ConfigError
from petseg.runs import packed_run
from petseg.runs.open_trained_run import open_single
from petseg.runtime import startup
from petseg.runtime.signals import StopSignals

if TYPE_CHECKING:
    import gradio as gr

logger = logging.getLogger(__name__)
LOCALHOST = "localhost"
SESSIONS = 20  # browsers whose last image is kept, to change its opacity
MOST_WAITING = 32  # requests in the queue


@dataclasses.dataclass(frozen=True)
class DemoConfig(Group):
    """The demo page's run, address and limits."""

    workdir: str = option(
        "",
        "work directory of a training run, or a file of --export=weights; empty: the packaged model of cats and dogs",
    )
    host: str = option(
        "127.0.0.1",
        "address to listen on; the default serves this machine only, 0.0.0.0 every machine that can reach it, without "
        "password or encryption",
        required=True,
    )
    port: int = option(0, "port to listen on; 0: the first free one from 7860", minimum=0, maximum=65535)
    allowed_hosts: str = option(
        "",
        "further host names of the page, such as that of a proxy before it, separated by commas; requests for other "
        "names are refused",
    )
    max_upload: int = option(20, "largest uploaded file", unit="MiB", minimum=1, maximum=1024)
    max_stored: int = option(
        0,
        "total size of uploads and result images, of which the oldest are deleted for new ones; 0: eight times "
        "--max_upload, at least 64",
        unit="MiB",
        minimum=0,
        maximum=2**20,
    )
    allow_code: bool = option(
        False, "run the Python code of a run's own --network; only use it if you trust the work directory"
    )
    debug: bool = option(False, "show tracebacks of errors")

    def __post_init__(self) -> None:
        super().__post_init__()
        least = self.max_upload + RESULTS // 2**20
        if self.max_stored and self.max_stored < least:
            raise ConfigError(
                f"--max_stored={self.max_stored}: must be at least {least}, for one upload of "
                f"--max_upload={self.max_upload} and its result images, or 0"
            )

    @property
    def quota(self) -> int:
        """Limit of the total size of uploads and result images, in bytes."""
        return (self.max_stored or max(8 * self.max_upload, 64)) * 2**20


def main(config: DemoConfig) -> None:
    """Serves the page until a stop signal.

    Raises:
      PetsegError: if gradio is not installed, or the run or the address cannot be used.
      StoppedError: at Ctrl-C and SIGTERM.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the page needs the package gradio: pip install 'petseg[demo]'")
    with StopSignals(), tempfile.TemporaryDirectory(prefix="petseg-demo-") as folder:
        source = config.workdir or str(packed_run.packaged_file(PACKAGED))
        run = open_single(ScoreConfig(workdir=source, allow_code=config.allow_code))
        startup.load_tensorflow(show_greetings=config.debug)
        from petseg.runtime import process_setup

        networks = Networks(source, run, allow_code=config.allow_code)
        process_setup.set_up_runtime(run.config, DistributionConfig(), one_device=True)
        networks(next(iter(networks.checkpoints), ""), networks.has_averages, False)  # that the page shows first
        page = _serve(config, networks, Path(folder))
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def _serve(config: DemoConfig, networks: Networks, folder: Path) -> "gr.Blocks":
    """Starts the server in threads of its own.

    Raises ConfigError if the address is not available.
    """
    uploads = Uploads(folder / "cache", config.quota)
    _set_environment(folder / "cache")
    from starlette.middleware import Middleware

    from petseg.deployment.demo import page as page_lib

    page = page_lib.build(networks, folder, uploads).queue(max_size=MOST_WAITING, api_open=False)
    guard = Middleware(Guard, hosts=_hosts(config), uploads=uploads, max_upload=config.max_upload * 2**20)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gradio's internal ones
            page.launch(
                server_name=config.host,
                server_port=config.port or None,
                share=False,
                ssr_mode=False,
                mcp_server=False,
                run_history=False,
                enable_monitoring=False,
                footer_links=[],
                max_file_size=config.max_upload * 2**20,
                state_session_capacity=SESSIONS,
                app_kwargs={"middleware": [guard]},
                prevent_thread_lock=True,
                quiet=True,
                **page_lib.launch_options(),
            )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--host={config.host} --port={config.port}: is not available; must be an address of this machine and "
            "a free port"
        ) from error
    if not _is_loopback(config.host):
        logger.warning(
            "--host=%s: every machine that can reach this one can use the page; there is no password", config.host
        )
    print(f"the page is at {page.local_url} (Ctrl-C ends it)", flush=True)
    return page


def _set_environment(cache: Path) -> None:
    """Sets the environment of gradio and httpx before their import, so that both only contact this machine."""
    for name in list(os.environ):
        # Variables of gradio can open folders or make the page public. With a proxy or missing certificates, gradio
        # cannot reach its own server and gives up.
        if name.startswith("GRADIO_") or name.lower().endswith("_proxy") or name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            del os.environ[name]
    os.environ.update(GRADIO_TEMP_DIR=str(cache), GRADIO_ANALYTICS_ENABLED="False")
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1")
    os.environ.update(NO_PROXY="*", no_proxy="*")  # some systems configure a proxy elsewhere


def _hosts(config: DemoConfig) -> Hosts:
    """The accepted hosts of the page."""
    trusted = {name.strip().lower() for name in config.allowed_hosts.split(",") if name.strip()}
    if _is_loopback(config.host):
        return Hosts({LOCALHOST}, trusted=trusted)
    own = {LOCALHOST, config.host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
    return Hosts(own, any_address=True, trusted=trusted)


def _is_loopback(host: str) -> bool:
    try:
        return host == LOCALHOST or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
