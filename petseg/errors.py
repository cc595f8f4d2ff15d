"""Errors that users can fix, with their exit codes."""

import signal


class PetsegError(Exception):
    """Base class of errors that are printed as one line without a traceback."""

    exit_code = 2


class ConfigError(PetsegError):
    """A flag has an invalid value, or contradicts another flag."""


class DataError(PetsegError):
    """A data set is missing or invalid."""


class WorkDirectoryError(PetsegError):
    """A work directory cannot be used by the command."""


class CheckpointError(PetsegError):
    """A checkpoint is missing or does not match the model."""


class NonFiniteLossError(PetsegError):
    """The loss became infinite or NaN."""

    exit_code = 3


class ExportError(PetsegError):
    """An export failed, or its output differs from the model's."""


class UnreadableFilesError(PetsegError):
    """Some input files could not be read; the others were processed."""

    exit_code = 4


class ClusterError(PetsegError):
    """The processes of a cluster do not match, or one was lost."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: a retry may succeed


class StoppedError(BaseException):
    """The program received SIGTERM or SIGINT (Ctrl-C).

    A BaseException like KeyboardInterrupt, so that no library catches it as an error of its own.
    """

    def __init__(self, number: int, what_remains: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}{what_remains}")
        self.exit_code = 128 + number


def one_line(error: BaseException) -> str:
    """Class and message of a library's error, shortened to one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
