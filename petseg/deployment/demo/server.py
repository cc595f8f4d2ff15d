"""The page's flags, and how gradio serves it: by this machine to this machine, unless --host says otherwise."""

import dataclasses
import importlib.util
import logging
import os
import tempfile
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from petseg.config import DistributionConfig
from petseg.config.eval_config import PACKAGED, ScoreConfig
from petseg.config.options import Group, option
from petseg.deployment.demo.networks import Networks
from petseg.errors import ConfigError
from petseg.runs.opening import open_run
from petseg.runtime import startup
from petseg.runtime.signals import StopSignals

if TYPE_CHECKING:
    import gradio as gr

logger = logging.getLogger(__name__)
LOOPBACK = ("127.0.0.1", "localhost")
SESSIONS = 20  # browsers whose last picture is kept, to change its opacity


@dataclasses.dataclass(frozen=True)
class DemoConfig(Group):
    """What the page shows, and to whom."""

    workdir: str = option(
        "",
        "work directory of a training run, or a file of --export=weights; empty: the packaged model of cats and dogs",
    )
    host: str = option(
        LOOPBACK[0],
        "address to listen at; the default serves this machine alone, 0.0.0.0 everybody who can reach it, without a "
        "password and without encryption",
        required=True,
    )
    port: int = option(0, "port to listen at; 0: the first free one from 7860 on", minimum=0, maximum=65535)
    max_upload: int = option(20, "largest file that is taken", unit="MiB", minimum=1, maximum=1024)
    allow_code: bool = option(False, "run the Python code of a run's own --network; whose work directory is it?")
    debug: bool = option(False, "show the traceback of an error that is otherwise one line")


def main(config: DemoConfig) -> None:
    """Serves the page until the program is told to stop.

    Raises:
      PetsegError: if gradio is not there, the run cannot be used, or nothing can listen there.
      StoppedError: at Ctrl-C and SIGTERM.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the page needs the package gradio, which is not there: pip install 'petseg[demo]'")
    with StopSignals(), tempfile.TemporaryDirectory(prefix="petseg-demo-") as folder:
        source = config.workdir or PACKAGED
        run = open_run(ScoreConfig(workdir=source, allow_code=config.allow_code))
        startup.load_tensorflow(show_greetings=config.debug)
        from petseg.runtime import process

        networks = Networks(source, run, allow_code=config.allow_code)
        process.set_up_runtime(run.config, DistributionConfig(), one_device=True)
        networks.load_first()
        page = _serve(config, networks, Path(folder))
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def _serve(config: DemoConfig, networks: Networks, folder: Path) -> "gr.Blocks":
    """Serves the page from threads of its own.

    Args:
      config: the flags.
      networks: what segments.
      folder: an empty folder for what is uploaded and shown.

    Raises:
      ConfigError: if nothing can listen at the address.
    """
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]  # one of them opens folders to everybody, another makes the page public
    # Read when gradio is imported.
    os.environ.update(GRADIO_TEMP_DIR=str(folder / "cache"), GRADIO_ANALYTICS_ENABLED="False")
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1")
    from starlette.middleware import Middleware

    from petseg.deployment.demo import page as page_lib
    from petseg.deployment.demo.guard import Guard

    page = page_lib.build(networks, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gradio's, of its own affairs
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
                app_kwargs={"middleware": [Middleware(Guard, max_upload=config.max_upload * 2**20)]},
                prevent_thread_lock=True,
                quiet=True,
                **page_lib.look(),
            )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--host={config.host} --port={config.port}: nothing can listen there; must be an address of this machine "
            "and a free port"
        ) from error
    if config.host not in LOOPBACK:
        logger.warning("--host=%s: whoever can reach this machine can use the page; there is no password", config.host)
    print(f"the page is at {page.local_url} (Ctrl-C ends it)", flush=True)
    return page
