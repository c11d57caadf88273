"""The entry point of the command ``ntkfast``; the commands themselves are in `_cli`."""

from __future__ import annotations

import io
import os
import sys
import warnings

__all__ = ["main"]


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 something is not installed or the reader of a pipe is gone, 2 bad input or
    nowhere to write (standard error says what), 130 stopped with Ctrl-C.
    """
    # A letter that the terminal has not, of a file's name say, is no reason to fail in the end.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"ntkfast: warning: {message}\n"
    try:
        from ntkfast._cli.commands import app
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit(
            f"ntkfast: the command line needs {error.name}, which is not installed.\n"
            "Install it with: pip install 'ntkfast[cli]'"
        )
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        app(prog_name="ntkfast")  # typer turns Ctrl-C into exit code 130
    except OSError as error:  # of standard output; commands handle those of their files
        print(f"ntkfast: error: standard output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(2)


if __name__ == "__main__":
    main()
