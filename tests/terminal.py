"""The command line in a process of its own, at a tenth of a new interpreter's time.

The processes are forked from a server that has imported what every command imports, and nothing
else: they read their environment, import what a command needs and end as if they were new.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def _be_the_command(streams, arguments, environment, demo_settings):
    for number, name in enumerate(streams, start=1):
        file = os.open(name, os.O_WRONLY)
        os.dup2(file, number)
        os.close(file)
    # As an interpreter would open them whose streams are no terminals.
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace", buffering=1)
    os.environ.update(environment)
    sys.argv = ["ntkfast", *arguments]
    if demo_settings:
        from ntkfast._cli import demo

        vars(demo).update(demo_settings)
    from ntkfast import cli

    try:
        cli.main()
    finally:
        sys.stdout.flush()


def run(*arguments, timeout=120, demo_settings=None, **environment):
    """Run ``ntkfast``; `demo_settings` replace constants of the demo, whose training takes long."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ntkfast._cli.commands", "typer.rich_utils"])
    arguments = [str(argument) for argument in arguments]
    environment = {"COLUMNS": "100", "NO_COLOR": "1", **{k: str(v) for k, v in environment.items()}}
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        for stream in streams:
            stream.touch()
        process = context.Process(
            target=_be_the_command,
            args=(streams, arguments, environment, demo_settings),
        )
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["ntkfast", *arguments], timeout)
        out, err = (stream.read_text(errors="surrogateescape") for stream in streams)
    return subprocess.CompletedProcess(arguments, process.exitcode, out, err)
