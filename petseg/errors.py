"""What can go wrong in a way the user can mend; each error knows its exit code."""

import signal


class PetsegError(Exception):
    """An error whose message is all the user needs: one line, no traceback."""

    exit_code = 2


class ConfigError(PetsegError):
    """A flag has a value that cannot be used, alone or beside another flag."""


class DataError(PetsegError):
    """A data set is missing, or holds something that cannot be trained on."""


class WorkDirectoryError(PetsegError):
    """A work directory cannot be used for what was asked."""


class CheckpointError(PetsegError):
    """A checkpoint is missing, or does not fit the model."""


class NonFiniteLossError(PetsegError):
    """The loss became infinite or not a number."""

    exit_code = 3


class ExportError(PetsegError):
    """An export could not be made, or does not say what its original says."""


class UnreadableFilesError(PetsegError):
    """Some of the files that were asked for could not be read; what could be done is done."""

    exit_code = 4


class ClusterError(PetsegError):
    """The processes of a cluster do not go together, or one of them was lost."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: trying again may succeed


class StoppedError(BaseException):
    """The program was told to stop, by SIGTERM or Ctrl-C.

    Like KeyboardInterrupt no Exception, so that no library takes it for an error of its own.
    """

    def __init__(self, number: int, what_remains: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}{what_remains}")
        self.exit_code = 128 + number


def one_line(error: BaseException) -> str:
    """What some library says of an error, short enough for a message of ours."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
