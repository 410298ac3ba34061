"""The process around a command: its streams, its exit code, and how mistakes are reported."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import typer

from mmtune.cli.options import app
from mmtune.errors import MmtuneError


def main() -> None:
    """Run the command and leave the process with its code.

    0 done; 1 a fault of the program (with traceback); 2 bad input or a refused request (plain lines, and the
    traceback with `MMTUNE_DEBUG=1`); 130 stopped by Ctrl-C.
    """
    _open_streams()
    _settle_output()
    code = 0
    try:
        code = app(prog_name="mmtune", standalone_mode=False) or 0
        if code == 130:  # typer's word for Ctrl-C; a command that handled it itself leaves with SystemExit
            raise KeyboardInterrupt
    except MmtuneError as error:
        if os.environ.get("MMTUNE_DEBUG", "") not in ("", "0"):
            raise
        print(f"mmtune: {error}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        print("\nmmtune: stopped", file=sys.stderr)
        code = 130
    except SystemExit as leave:
        code = leave.code  # type: ignore[assignment]
    except typer.Exit as leave:
        code = leave.exit_code
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:  # a full disk, a read-only folder: a fault of the machine, not of the program
        if error.errno is None or os.environ.get("MMTUNE_DEBUG", "") not in ("", "0"):
            raise
        print(f"mmtune: {f'{error.filename}: ' if error.filename else ''}{error.strerror}", file=sys.stderr)
        print("expected: files and folders that can be read and written, and room for them", file=sys.stderr)
        print("try: MMTUNE_DEBUG=1 shows where this happened", file=sys.stderr)
        code = 2
    except RuntimeError as error:
        if "home directory" not in str(error):  # the only sign that Python gives for a path such as ~NAME/file
            raise
        print("mmtune: a path begins with ~NAME, and there is no user of that name here", file=sys.stderr)
        print("expected: a path\ntry: ./~NAME for a name that begins with a tilde", file=sys.stderr)
        code = 2
    except Exception as error:
        if not hasattr(error, "format_message"):  # a fault, not a mistake in the command line
            raise
        _tell(error)
        code = error.exit_code  # type: ignore[attr-defined]
    _leave(int(code))


def _tell(error: Any) -> None:
    """Report a mistake in the command line like every other mistake; a command without arguments shows its help."""
    context = getattr(error, "ctx", None)
    if context is None or type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    usage = " ".join(context.get_usage().removeprefix("Usage:").split())
    print(f"mmtune: {error.format_message()}\nexpected: {usage}\ntry: {context.command_path} --help", file=sys.stderr)


def _open_streams() -> None:
    """Replace a stream that is closed (`>&-`): Python has None there, and the next file opened gets its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            try:
                os.fstat(number)  # another open file has this number by now and must keep it
            except OSError:
                os.dup2(nowhere, number, inheritable=True)
            setattr(sys, name, os.fdopen(nowhere, "w" if number else "r"))


def _settle_output() -> None:
    """Characters that a terminal cannot show are written as escapes, and libraries draw no progress bars."""
    for stream in (sys.stdout, sys.stderr):
        utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
        if hasattr(stream, "reconfigure") and (not utf8 or stream.errors == "strict"):
            stream.reconfigure(errors="backslashreplace")
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):  # transformers and datasets read the first too
        os.environ.setdefault(name, "1")


def _leave(code: int) -> None:
    """End the process, at once where a thread is still importing or reading weights, whose result is not needed."""
    import threading

    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or Python tries once more, and fails
            if stream is sys.stdout:  # a reader or a terminal that left undoes nothing; a full disk lost our answer
                code = code or {errno.EPIPE: 141, errno.EIO: 0}.get(error.errno or 0, 2)
    if any(thread.name == "mmtune-load" for thread in threading.enumerate()):
        os._exit(code)
    sys.exit(code)
