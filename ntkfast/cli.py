"""The entry point of the command ``ntkfast``; the commands themselves are in `_cli`."""

from __future__ import annotations

import sys
import warnings

__all__ = ["main"]


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 something is not installed, 2 bad input (standard error says what),
    130 stopped with Ctrl-C.
    """
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
    app(prog_name="ntkfast")  # typer turns Ctrl-C into exit code 130


if __name__ == "__main__":
    main()
