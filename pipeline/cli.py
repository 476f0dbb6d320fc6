"""The command `ghn`: a stage of the pipeline each, as `dvc.yaml` runs them."""

from __future__ import annotations

import errno
import functools
import logging
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import UserError
from pipeline.params import load_params

app = typer.Typer(
    help="Graph hypernetworks: predict all parameters of networks never seen. Stages run in this order.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

NOT_OUR_FAULT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""What a disk says that is full or may not be written."""

ParamsFile = Annotated[Path, typer.Option("--params", help="The settings.")]


def explained(command: Callable[..., None]) -> Callable[..., None]:
    """What the user can mend is said in its own words, without a traceback, and exits with status 1."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except OSError as error:
            if error.errno not in NOT_OUR_FAULT:
                raise
            print(f"error: {error}\nmake room, or give the right to write there, and run it again", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            print("\ninterrupted: the same command goes on from what is finished", file=sys.stderr)
            raise typer.Exit(130) from None

    return run


def run_stage(stage: str, file: Path) -> None:
    """Runs the function `pipeline.<stage>.<stage>`, imported once the settings are known to be valid."""
    params = load_params(file)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pipeline").setLevel(logging.INFO)
    getattr(import_module(f"pipeline.{stage}"), stage)(params)


@app.command()
@explained
def check(params: ParamsFile = Path("params.yaml")) -> None:
    """Check the settings, the storage and the images that they name."""
    run_stage("check", params)
    print(f"{params} is valid")


@app.command()
@explained
def generate(params: ParamsFile = Path("params.yaml")) -> None:
    """Sample the architectures of all splits into sharded Parquet."""
    run_stage("generate", params)


@app.command()
@explained
def train(params: ParamsFile = Path("params.yaml")) -> None:
    """Train a hypernetwork on the training architectures and images."""
    run_stage("train", params)


@app.command()
@explained
def evaluate(params: ParamsFile = Path("params.yaml")) -> None:
    """Score predicted parameters on every split, beside random ones."""
    run_stage("evaluate", params)


@app.command()
@explained
def finetune(params: ParamsFile = Path("params.yaml")) -> None:
    """Transfer to other data sets, from predicted and from random parameters."""
    run_stage("finetune", params)


@app.command()
@explained
def report(params: ParamsFile = Path("params.yaml")) -> None:
    """Draw the plots and tables and write one page of all results."""
    run_stage("report", params)


if __name__ == "__main__":
    app()
