"""The commands of ``ntkfast``: rank, info, bench, demo."""

from __future__ import annotations

import csv
import inspect
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated, Any, NoReturn, get_args

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import ntkfast as nf
from ntkfast import ops
from ntkfast._cli.files import is_store, open_atomic, read_arrays
from ntkfast.arrays import (
    ArgumentError,
    ArgumentValueError,
    as_choice,
    as_indices,
    as_positive,
    as_temperature,
    check_shape,
)
from ntkfast.config import USES, show_config
from ntkfast.criteria import automatic, find
from ntkfast.loss import Loss, as_loss, label_scale_of, residual_temperature_of
from ntkfast.progress import waiting
from ntkfast.selection import Similarity

__all__ = ["app"]

app = typer.Typer(
    help="Look-ahead active learning: which unlabelled points would change a network most, if "
    "they had a label?\n\nStart with [bold]ntkfast demo[/bold], then rank a pool of your own: "
    "[bold]ntkfast rank --help[/bold].",
    epilog="Exit codes: 0 done; 1 something is not installed, or the reader of a pipe is gone; "
    "2 bad input, or nowhere to write (standard error says what, in one line); 130 Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _fail(message: object) -> NoReturn:
    """Stop with one line on standard error and exit code 2."""
    print("ntkfast: error:", " ".join(str(message).split()), file=sys.stderr)
    raise typer.Exit(2)


# For every command that answers.
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]


def _print_json(answer: object, file: IO[str] | None = None) -> None:
    print(json.dumps(answer, indent=2, allow_nan=False), file=file)


def _complete(*values: str) -> Callable[[str], list[str]]:
    """Offer values to the completion of a shell."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def _help_of(function: Callable[..., Any], parameter: str) -> str:
    """Return what the docstring of a function says of a parameter."""
    found = re.search(rf"^{parameter} : .*\n((?:    .*\n)+)", inspect.getdoc(function) or "", re.M)
    return re.sub(r'[`"]', "", " ".join(found[1].split())) if found else ""


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"ntkfast {nf.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    # No docstring: it would replace the help of the app.
    del version  # its callback has done all there is to do


RANK_HELP = """
Rank a pool of points by what their labels would do to the network.

Writes CSV: rank, index (row of the pool, from 0), utility (larger is better; in sequential mode, at the moment of the pick). With --json one object: criterion, mode, pool_size, unlabeled (how many points), ranked (a list of objects of rank, index, utility).

[bold]What to save.[/bold] Run your network once over the pool; one row per point:

  [cyan]features[/cyan]  (N, d) gradient features of ntkfast.EmpiricalNTK, or any embedding
  [cyan]outputs[/cyan]   (N, k) logits, or raw outputs with --loss squared; k classes
  [cyan]targets[/cyan]   of the labelled points: classes (n,), or rows of numbers (n, k)

If the labelled points are rows of the pool, --labeled-indices says which; they are never ranked. Otherwise save their features and outputs too. Without labelled points the whole pool is ranked, for a cold start.

[bold]Stores.[/bold] A folder that EmpiricalNTK.features(X, out="pool/") has written holds features and outputs: --features pool/ takes both from it, --labeled-features labeled/ likewise.

[bold]Files.[/bold] .npy, .npz and .safetensors; .npy and .safetensors are memory-mapped. In a file of several arrays the one named like the option is read (features, labeled_indices, ...); FILE::ARRAY chooses another.

[bold]Examples[/bold]

  [green]# 20 points to label next, chosen together so that they are not redundant[/green]
  ntkfast rank --features pool.npz --outputs pool.npz \\
      --labeled-indices labeled.npy --targets classes.npy \\
      --mode sequential --batch-size 20 -o next.csv

  [green]# a pool kept as a store[/green]
  ntkfast rank --features pool/ --labeled-indices labeled.npy --targets classes.npy -b 20

  [green]# the whole pool, best first, by the entropy expected to be left[/green]
  ntkfast rank --features phi.npy --outputs logits.npy \\
      --labeled-features phi_l.npy --labeled-outputs logits_l.npy \\
      --targets classes.npy --criterion expected_entropy
"""  # noqa: E501  (rich wraps at the width of the terminal)


@app.command(help=RANK_HELP)
def rank(
    features: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="(N, d) features of the pool; or the folder of a store.",
            rich_help_panel="The pool",
        ),
    ],
    outputs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="(N, k) outputs of the network. Default: those of the store.",
            rich_help_panel="The pool",
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Their labels: classes (n,) in 0..k-1, or target rows (n, k).",
            rich_help_panel="The labelled points",
        ),
    ] = None,
    labeled_indices: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="(n,) rows of the pool that are labelled, in the order of the targets; or a mask "
            "(N,), with the targets in the order of the pool.",
            rich_help_panel="The labelled points",
        ),
    ] = None,
    labeled_features: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="(n, d) features, for labelled points outside the pool; or the folder of a store.",
            rich_help_panel="The labelled points",
        ),
    ] = None,
    labeled_outputs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="(n, k) outputs, for labelled points outside the pool.",
            rich_help_panel="The labelled points",
        ),
    ] = None,
    loss: Annotated[
        str,
        typer.Option(
            help="How the network was trained: cross_entropy (outputs are logits) or squared.",
            autocompletion=_complete("cross_entropy", "squared"),
            rich_help_panel="The question",
        ),
    ] = "cross_entropy",
    criterion: Annotated[
        str,
        typer.Option(
            help=f"What to look for: {', '.join(row.name for row in nf.criteria())}. auto: "
            f"{automatic(classes=True, covers=False)} for classes, "
            f"{automatic(classes=False, covers=False)} for a regression; of squared loss the "
            "targets tell which it is.",
            autocompletion=_complete("auto", *(row.name for row in nf.criteria())),
            rich_help_panel="The question",
        ),
    ] = "auto",
    log_loss_targets: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="(N, k) label distributions to be approached; expected_log_loss needs them.",
            rich_help_panel="The question",
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="top: best utilities first. sequential: after each pick, score again as if it "
            "had been labelled.",
            autocompletion=_complete("top", "sequential"),
            rich_help_panel="The question",
        ),
    ] = "top",
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            "-b",
            min=1,
            help="How many points to return. Default: all of them (top only).",
            rich_help_panel="The question",
        ),
    ] = None,
    ridge: Annotated[
        str,
        typer.Option(
            help=_help_of(nf.Posterior.from_features, "ridge"), rich_help_panel="The question"
        ),
    ] = "auto",
    label_scale: Annotated[
        str,
        typer.Option(
            help=_help_of(nf.Posterior.from_features, "label_scale"),
            rich_help_panel="The question",
        ),
    ] = "auto",
    residual_temperature: Annotated[
        str,
        typer.Option(
            help=_help_of(nf.Posterior.from_features, "residual_temperature"),
            rich_help_panel="The question",
        ),
    ] = "auto",
    temperature: Annotated[
        float | None,
        typer.Option(help=_help_of(nf.utilities, "temperature"), rich_help_panel="The question"),
    ] = None,
    similarity: Annotated[
        str | None,
        typer.Option(
            help=_help_of(nf.utilities, "similarity"),
            autocompletion=_complete(*get_args(Similarity)),
            rich_help_panel="The question",
        ),
    ] = None,
    radius: Annotated[
        str, typer.Option(help=_help_of(nf.utilities, "radius"), rich_help_panel="The question")
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="auto, float32 or float64. auto: that of the features, raised where float32 "
            "would not do.",
            autocompletion=_complete("auto", "float32", "float64"),
            rich_help_panel="The question",
        ),
    ] = "auto",
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File, written completely or not at all. Default: standard output.",
            rich_help_panel="The answer",
        ),
    ] = "-",
    as_json: Annotated[
        bool,
        typer.Option("--json", help="JSON instead of CSV.", rich_help_panel="The answer"),
    ] = False,
) -> None:
    start = time.perf_counter()
    files: dict[str, str | None] = {}
    try:
        # What costs nothing to check comes before minutes of reading and factorising.
        trained_with = as_loss(loss)
        _check_options(criterion, mode, precision, batch_size, log_loss_targets)
        _check_pool_files(features, outputs)
        _check_labeled_files(targets, labeled_indices, labeled_features, labeled_outputs)
        if temperature is not None:
            as_temperature("temperature", temperature)
        lam, reach = _number("ridge", ridge), _number("radius", radius)
        scale = _number("label_scale", label_scale)
        T_r = _number("residual_temperature", residual_temperature)
        label_scale_of(scale, trained_with)
        residual_temperature_of(T_r, trained_with)
        if similarity is not None:
            as_choice("similarity", similarity, get_args(Similarity))
        _check_writable(output)
        files = {
            "features": features,
            "outputs": outputs,
            "labeled_features": labeled_features,
            "labeled_outputs": labeled_outputs,
            "targets": targets,
            "labeled_indices": labeled_indices,
            "log_loss_targets": log_loss_targets,
        }
        with waiting("reading the files"):
            arrays = read_arrays(files)
        distributions = arrays.pop("log_loss_targets")
        data = _described(**arrays)
        pool_size, k = data["outputs"].shape
        guess = None
        if criterion == "auto":
            classes, guess = _are_classes(trained_with, data["targets"], k)
            criterion = automatic(classes=classes, covers=False)
        row = find(criterion)
        on_disk = isinstance(data["features"], np.memmap)
        if not on_disk or (mode == "sequential" and row.holds_evaluation):
            with waiting("reading the features"):
                data["features"] = _in_memory(data["features"])
        unlabeled = pool_size
        if data["labeled_indices"] is not None:
            unlabeled -= len(data["labeled_indices"])
        if unlabeled == 0:
            raise ArgumentValueError(
                "labeled_indices",
                f"labeled_indices: all {pool_size} points of the pool are labelled, so that no "
                "point is left to rank",
            )
        if batch_size is not None and batch_size > unlabeled:
            raise ArgumentValueError(
                "batch_size",
                f"batch_size is {batch_size}, but only {unlabeled} unlabelled points are left",
            )
        with waiting("building the posterior"):
            post = nf.Posterior.from_features(
                **data, ridge=lam, loss=trained_with, label_scale=scale, residual_temperature=T_r
            )
        with waiting(criterion):
            picked = nf.select(
                post,
                criterion,
                batch_size=unlabeled if batch_size is None else batch_size,
                mode=mode,  # type: ignore[arg-type]  # checked above, as precision is
                temperature=temperature,
                precision=precision,  # type: ignore[arg-type]
                log_loss_targets=distributions,
                similarity=similarity,  # type: ignore[arg-type]
                radius=reach,
            )
        columns = ("rank", "index", "utility")
        picks = zip(picked.indices.tolist(), picked.utilities.tolist(), strict=True)
        rows = [(i, *pick) for i, pick in enumerate(picks, start=1)]
        try:
            with open_atomic(output) as file:
                if as_json:
                    answer = {
                        "criterion": criterion,
                        "mode": mode,
                        "pool_size": pool_size,
                        "unlabeled": unlabeled,
                        "ranked": [dict(zip(columns, row, strict=True)) for row in rows],
                    }
                    _print_json(answer, file)
                else:
                    csv.writer(file, lineterminator="\n").writerows([columns, *rows])
        except BrokenPipeError:
            raise
        except OSError as error:
            where = "standard output" if output == "-" else output
            raise OSError(f"output: {where}: {error.strerror or error}") from None
    except BrokenPipeError:  # `ntkfast rank ... | head` has seen enough
        raise
    except ArgumentError as error:
        # The library names its argument; here that is a file, which most messages do not know.
        spec = files.get(error.argument)
        known = spec is None or spec.partition("::")[0] in str(error)
        _fail(error if known else f"{spec}: {error}")
    except (ValueError, TypeError, OSError, MemoryError) as error:
        _fail(error)
    if guess is not None:
        print(f"ntkfast: ranked by {criterion}, because {guess}", file=sys.stderr)
    if sys.stderr.isatty():
        print(
            f"{len(picked.indices)} of {unlabeled} unlabelled points (pool of {pool_size}) ranked "
            f"by {criterion} in {time.perf_counter() - start:.2f} s",
            file=sys.stderr,
        )


def _in_memory(features: Any) -> Any:
    """Return features that are not on disk, float16 as float32."""
    read = np.array if isinstance(features, np.memmap) else np.asarray
    return read(features, np.float32 if features.dtype == np.float16 else None)


def _check_options(
    criterion: str,
    mode: str,
    precision: str,
    batch_size: int | None,
    log_loss_targets: str | None,
) -> None:
    """Raise a ValueError unless the question makes sense, whatever the files hold."""
    needs = () if criterion == "auto" else find(criterion).needs
    as_choice("mode", mode, ("top", "sequential"))
    as_choice("precision", precision, ("auto", "float32", "float64"))  # files are read to a CPU
    if "log_loss_targets" in needs and log_loss_targets is None:
        raise ValueError(
            f"log_loss_targets: {criterion} needs --log-loss-targets, the distributions that the "
            "points should have"
        )
    if mode == "sequential" and batch_size is None:
        raise ValueError("mode: sequential needs --batch-size, the number of points to pick")


def _are_classes(loss: Loss, targets: Any, k: int) -> tuple[bool, str | None]:
    """Return whether targets are classes, and why, where that is a guess."""
    if loss == "cross_entropy":
        return True, None
    if k == 1:
        return False, "there is one output: a regression"
    if targets is None or len(targets) == 0:
        return False, "no targets tell whether they are classes"
    rows = np.asarray(targets)
    if rows.ndim == 1 or ((rows >= 0).all() and (abs(rows.sum(-1) - 1) < 1e-6).all()):
        return True, "targets are classes"
    return False, "targets are those of a regression: rows that are no classes"


def _check_pool_files(features: str, outputs: str | None) -> None:
    """Raise a ValueError where only the features of the pool are given."""
    if outputs is None and not is_store(features):
        raise ValueError(
            "outputs: --outputs is missing; only a store, a folder that EmpiricalNTK.features has "
            f"written, holds both, and {features!r} is no folder"
        )


def _check_labeled_files(
    targets: str | None,
    labeled_indices: str | None,
    labeled_features: str | None,
    labeled_outputs: str | None,
) -> None:
    """Raise a ValueError unless the labelled points are described in one way, and completely."""
    stored = labeled_features is not None and is_store(labeled_features)
    outputs_missing = labeled_outputs is None and not stored
    if labeled_indices is not None:
        if labeled_features is not None or labeled_outputs is not None:
            raise ValueError(
                "labeled_indices: labelled rows of the pool bring their features and outputs "
                "along; leave --labeled-features and --labeled-outputs out"
            )
        if targets is None:
            raise ValueError("targets: --labeled-indices needs the labels of those points")
    elif len({targets is None, labeled_features is None, outputs_missing}) > 1:
        raise ValueError(
            "targets: labelled points need --targets and either --labeled-indices or both "
            "--labeled-features and --labeled-outputs"
        )


def _check_writable(output: str) -> None:
    """Raise a ValueError if the file could not be written in the end, by trying its folder."""
    if not output:
        raise ValueError("output: expected the name of a file, got ''")
    path = Path(output).resolve()
    if output == "-" or (path.exists() and not path.is_file() and not path.is_dir()):
        return  # a pipe or a device needs no neighbour
    if path.is_dir():
        raise ValueError(f"output: {output} is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise ValueError(f"output: the folder of {output} is not there")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"output: the folder of {output} cannot be written to ({error.strerror})"
        ) from None


def _number(name: str, text: str) -> Any:
    """Return a number > 0 or "auto"."""
    if text == "auto":
        return text
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name}: expected a number or auto, got {text!r}") from None
    return as_positive(name, number)


def _described(
    features: Any,
    outputs: Any,
    labeled_features: Any,
    labeled_outputs: Any,
    targets: Any,
    labeled_indices: Any,
) -> dict[str, Any]:
    """Return the arguments of `Posterior.from_features`, however the labelled points are given."""
    check_shape("features", features, ("N", "d"))
    check_shape("outputs", outputs, ("N", "k"))
    N, k = outputs.shape
    per_point = k if k > 1 and len(features) == N * k else 1  # a kernel of k x k blocks
    if len(features) != N * per_point:
        raise ArgumentValueError(
            "outputs",
            f"outputs: expected a row for each of the {len(features)} rows of features (or for "
            f"every k of them, of outputs=full), got shape {outputs.shape}",
        )
    if labeled_indices is not None:
        if labeled_indices.ndim != 1 or labeled_indices.dtype.kind not in "biu":
            raise ArgumentValueError(
                "labeled_indices",
                f"labeled_indices: expected integers of shape (n,), or a mask of shape "
                f"({N},), got {labeled_indices.dtype} of shape {labeled_indices.shape}",
            )
        if labeled_indices.dtype.kind == "b":
            check_shape("labeled_indices", labeled_indices, (N,))
            labeled_indices = np.flatnonzero(labeled_indices)
        wrong = (labeled_indices < 0) | (labeled_indices >= N)
        if wrong.any():
            raise ArgumentValueError(
                "labeled_indices",
                f"labeled_indices: {labeled_indices[wrong][0]} is not a row of the pool of "
                f"{N} points",
            )
        labeled_indices = as_indices("labeled_indices", labeled_indices, N, empty=True)
        labeled_outputs = outputs[labeled_indices]
        blocks = features.reshape(N, per_point, -1)[labeled_indices]
        labeled_features = blocks.reshape(-1, features.shape[1])
    if labeled_features is not None and labeled_features.dtype == np.float16:
        labeled_features = _in_memory(labeled_features)  # of a store; few, unlike the pool
    return {
        "features": features,
        "outputs": outputs,
        "labeled_features": labeled_features,
        "labeled_outputs": labeled_outputs,
        "targets": targets,
        "labeled_indices": labeled_indices,
    }


@app.command()
def info(as_json: Json = False) -> None:
    """Show what this installation can use: versions, instruction set, threads, CUDA, extras."""
    _engine()
    config = show_config("dicts") or {}
    if as_json:
        _print_json(config)
        return
    table = Table("", "", show_header=False)
    table.columns[1].overflow = "fold"
    for section, entries in config.items():
        for name, value in entries.items():
            if value is None:
                value = f"not installed ({USES[name]})"
            shown = ", ".join(value) if isinstance(value, list) else str(value)
            table.add_row(
                name if section in ("Packages", "Environment") else f"{section} {name}", shown
            )
    Console().print(table)


def _engine() -> tuple[str, int]:
    """Instruction set and threads, unless a variable of the environment asks for nonsense."""
    try:
        return ops.cpu_isa(), ops.num_threads()
    except ValueError as error:
        _fail(error)


@app.command()
def bench(
    candidates: Annotated[int, typer.Option(min=1, help="Points to score.")] = 512,
    points: Annotated[int, typer.Option(min=10, help="Points predicted each time.")] = 2048,
    classes: Annotated[int, typer.Option(min=2, help="Labels each candidate may get.")] = 10,
    dimension: Annotated[int, typer.Option(min=1, help="Length of a feature.")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="Timings; the median is shown.")] = 3,
    as_json: Json = False,
) -> None:
    """Time scoring on this machine beside NumPy with one softmax per label.

    Expected entropy: every candidate under every label, predicted at every point, in float32. The
    error is the largest relative one of a utility against the same in float64.
    """
    from ntkfast._cli.benchmark import time_expected_entropy

    if candidates > points:
        _fail(f"candidates: expected at most {points}, the number of points, got {candidates}")
    isa, threads = _engine()
    if as_json:
        timings = time_expected_entropy(candidates, points, classes, dimension, rounds)
        _print_json([asdict(timing) for timing in timings])
        return
    Console().print(
        f"expected_entropy, {candidates} candidates x {points} points x {classes} labels, "
        f"d = {dimension}; {isa}, {threads} thread{'s' if threads > 1 else ''}",
        highlight=False,
    )
    timings = time_expected_entropy(candidates, points, classes, dimension, rounds)
    table = Table("", "seconds", "ratio", "largest relative error")
    for column in table.columns[1:]:
        column.justify = "right"
    for timing in timings:
        table.add_row(
            timing.name,
            f"{timing.seconds:.4f}",
            f"{timing.seconds / timings[0].seconds:.1f}",
            f"{timing.error:.0e}",
        )
    Console().print(table)


@app.command()
def demo(
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions, each with its own split.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of 20 labels.")] = 6,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the pictures go; made if needed.")
    ] = Path("demo-output"),
    as_json: Json = False,
) -> None:
    """Watch active learning on 5000 real MNIST images: random, margin and look-ahead.

    A small CNN starts with 40 labels and gets 20 more in each round. The three strategies see the
    same splits and the same training seeds. Prints the accuracies and writes
    learning_curves.png and picked_images.png. Takes up to three minutes on two cores.
    """
    _engine()
    try:
        from ntkfast._cli.demo import run
    except ModuleNotFoundError as error:
        print(
            f"ntkfast: the demo needs {error.name}, which is not installed.\n"
            "Install it with: pip install 'ntkfast[demo]'",
            file=sys.stderr,
        )
        raise typer.Exit(1) from None
    try:
        answer = run(seeds=seeds, rounds=rounds, out=out, quiet=as_json)
        if as_json:
            _print_json(answer)
    except BrokenPipeError:
        raise
    except OSError as error:
        _fail(f"out: {error}")
