"""The ONNX files of `--runtime=onnx`, exported once per checkpoint. Imports TensorFlow only to export."""

import hashlib
import logging
from pathlib import Path

from petseg.config import DistributionConfig
from petseg.deployment import onnx_runner
from petseg.files import explain_write_errors
from petseg.runs import packed_run
from petseg.runs.open_trained_run import Run, load_model
from petseg.runs.packed_run import PackedRun
from petseg.runs.trained_run import TrainedRun

logger = logging.getLogger(__name__)
FOLDER, SUFFIX = "onnx", ".onnx"


def find_or_export(run: TrainedRun | PackedRun, checkpoint: str, distribution: DistributionConfig) -> Path:
    """The ONNX file of a checkpoint; TensorFlow exports it if it does not exist.

    Raises PetsegError if the checkpoint does not exist, a package is missing, or the file cannot be written.
    """
    onnx_runner.check_installed()
    file = onnx_file(run, run.checkpoint(checkpoint, intact=False))
    if file.is_file():
        return file
    from petseg.runtime import startup

    startup.load_tensorflow()
    from petseg.deployment import export
    from petseg.runs import building
    from petseg.runtime import process_setup

    export.check_formats(["onnx"])
    path = run.checkpoint(checkpoint)  # the newest may be damaged
    file = onnx_file(run, path)
    if not file.is_file():
        logger.info("exports %s, once per checkpoint: later calls start without TensorFlow", file)
        process_setup.set_up_runtime(run.config, distribution, one_device=True)
        model, _ = load_model(run, path)
        with explain_write_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            rebuild = building.rebuild_for_export(run.config, run.classes)
            export.write_onnx(model, file, rebuild, run.config.data.image_spec)
    return file


def is_packaged(run: Run) -> bool:
    """Whether a run is a packaged model with an ONNX file, and ONNX Runtime is installed."""
    if not isinstance(run, PackedRun) or run.path.parent != packed_run.FOLDER:
        return False
    return onnx_runner.is_installed() and onnx_file(run, "").is_file()


def onnx_file(run: TrainedRun | PackedRun, checkpoint: str) -> Path:
    """Named by step, weights and digest: a restarted run has other weights at the same step."""
    if isinstance(run, TrainedRun):
        path = Path(checkpoint)
        folder, name, digest = run.workdir.path, f"{path.name}.{run.weights}", _digest(Path(f"{path}.index"))
    else:
        if run.path.parent == packed_run.FOLDER:
            return run.path.with_suffix(SUFFIX)
        folder, name, digest = run.path.parent, run.path.stem, _digest(run.path)
    return folder / FOLDER / f"{name}.{digest}{SUFFIX}"


def _digest(file: Path) -> str:
    """A digest of a file's content; the index of a checkpoint holds the checksums of all tensors."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
