"""Command line of the programs: parses flags into a config, runs the program, maps errors to exit codes."""

import contextlib
import logging
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import flags

from petseg.config import options, presets
from petseg.errors import PetsegError, StoppedError
from petseg.files import printable

C = TypeVar("C")
SCRIPTS = ("train.py", "eval.py")


def parse(argv: Sequence[str], config_class: type[C]) -> C:
    """Parses flags into a config. Later flags win, also over a flag that they exclude: --train_steps over --epochs.

    Args:
      argv: program name and arguments; ``--flagfile=FILE`` reads more of them from a file, and, for `config.Config`,
        ``--preset=NAME`` from the file of a preset.
      config_class: `config.Config` or `eval_config.EvalConfig`. If it has an attribute `positional`, one argument may
        be given without the name of that flag; a method `check_arguments` gets the arguments without those of files.

    Raises:
      PetsegError: if an argument is unknown or a value invalid.
    """
    flag_values, positional = flags.FlagValues(), getattr(config_class, "positional", "")
    flag_values.set_gnu_getopt(bool(positional))  # flags may follow it
    options.define_flags(config_class, flag_values)
    try:
        arguments = _expanded(argv[1:], config_class, flag_values)
        rest = flag_values([argv[0], *arguments])[1:]
    except flags.Error as error:
        raise PetsegError(" ".join(str(error).split()).removeprefix("flag ")) from error
    if rest and positional:
        flag_values[positional].value = rest.pop(0)
    if rest:
        others = f"other than one {positional.upper()} " if positional else ""
        raise PetsegError(f"{rest[0]}: every argument {others}is a flag, --name=value; see --help")
    options.switch_off_excluded(config_class, flag_values, arguments)
    config = options.from_flags(config_class, flag_values)
    if hasattr(config, "check_arguments"):
        config.check_arguments(argv[1:])
    return config


def _expanded(arguments: Sequence[str], config_class: type, flag_values: flags.FlagValues) -> list[str]:
    """Replaces --flagfile and --preset by the flags that the files contain; flag files may name presets."""
    found = flag_values.read_flags_from_files(arguments, force_gnu=False)
    while _has_presets(config_class) and presets.includes_preset(found):
        found = flag_values.read_flags_from_files(presets.as_flagfiles(found), force_gnu=False)
    return found


def _has_presets(config_class: type) -> bool:
    return getattr(config_class, "has_presets", False)


def invocation(script: str) -> str:
    """The command of a program: `python train.py` if a script of a checkout is running, else `petseg-train`."""
    folder, running = os.path.split(sys.argv[0])
    if running in SCRIPTS:
        return f"python {shlex.quote(os.path.join(folder, script))}"
    return f"petseg-{os.path.splitext(script)[0]}"


def help_text(program: str, summary: str, config_class: type) -> str:
    """The text of --help: presets, and all flags by group with their defaults."""
    shown_program = f"python {'' if program.endswith('.py') else '-m '}{program}" if "." in program else program
    has_presets, positional = _has_presets(config_class), getattr(config_class, "positional", "")
    preset = "[--preset=NAME] " if has_presets else f"{positional.upper()} " if positional else ""
    lines = [summary, "", f"usage: {shown_program} {preset}[--flagfile=FILE] [--flag=value ...]"]
    if has_presets:
        lines += ["", "presets, files of flags; later flags win:"]
        for name in presets.names():
            lines += [f"  --preset={name}", _indented(presets.summary(name))]
    group = None
    for name, flag, default, help_line in options.rows(config_class):
        if name != group:
            group = name
            lines += ["", f"{name or 'flags'}:"]
        shown = default if default else "''"
        lines += [f"  --{flag}={shown}", _indented(help_line)]
    return "\n".join(lines)


def _indented(text: str) -> str:
    return textwrap.fill(text, 112, initial_indent=" " * 6, subsequent_indent=" " * 6)


def run(main: Callable[[C], Any], config_class: type[C], summary: str) -> None:
    """Runs a program: parses the flags, calls ``main(config)``, and exits.

    Exit codes: 0 done; 1 a bug, with its traceback; 2 an error that the user can fix, in one line; 3 the loss was not
    finite; 4 some files could not be read; 75 another process of the cluster was lost; 130 and 143 stopped by Ctrl-C
    and SIGTERM.
    """
    program = _program()
    if any(argument in ("-h", "-help", "--help", "--helpfull", "--helpshort") for argument in sys.argv[1:]):
        try:
            print(help_text(program, summary, config_class), flush=True)
        except BrokenPipeError:  # as of `--help | head`; Python's flush at its exit must not fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    debug = _debug_is_on(sys.argv[1:], config_class)
    try:
        if sys.platform == "win32":  # lacks fsync of folders and os.pread
            raise PetsegError("this is native Windows, which petseg does not support; run it in WSL2 (wsl --install)")
        config = parse(sys.argv, config_class)
        _set_up_logging()
        main(config)
    except StoppedError as stopped:
        print(f"{program}: {stopped}", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except PetsegError as error:
        if debug:
            raise
        print(f"{program}: error: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # before StopSignals is active
        print(f"{program}: stopped by SIGINT", file=sys.stderr)
        sys.exit(130)


def _program() -> str:
    """Name of the running program: its file, or its module or package if that is run by `python -m`."""
    name = os.path.basename(sys.argv[0])
    spec = sys.modules["__main__"].__spec__
    package, _, module = spec.name.rpartition(".") if spec else ("", "", "")
    if not package or name != f"{module}.py":
        return name
    return package if module == "__main__" else f"{package}.{module}"


def _debug_is_on(arguments: Sequence[str], config_class: type) -> bool:
    """Whether the last --debug, in any spelling or in a flag file, is true; works also if parsing fails."""
    with contextlib.suppress(flags.Error, PetsegError):  # `parse` reports them
        arguments = _expanded(arguments, config_class, flags.FlagValues())
    is_on = False
    for argument in arguments:
        match = re.fullmatch(r"--?(no)?debug(?:=(.*))?", argument)
        if match:
            is_on = not match[1] and (match[2] or "true").lower() in ("true", "t", "1")
    return is_on


def _set_up_logging() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow loads
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("petseg").setLevel(logging.INFO)
