"""The command `ghn`: a stage of the pipeline each, as `dvc.yaml` runs them, and what else one does with a GHN."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import Terminated, UserError
from pipeline.params import load_params
from pipeline.storage.files import FORBIDDEN, FULL

app = typer.Typer(
    help="Graph hypernetworks: predict all parameters of networks never seen.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

STAGES = "Stages of the pipeline, in this order"
ARCHITECTURES = "Stored architectures"
NETWORKS = "Any network"
FILES = "PaperStatistics files"

ParamsFile = Annotated[Path, typer.Option("--params", help="The settings.")]


def exits_on_user_error(command: Callable[..., None]) -> Callable[..., None]:
    """What the user can mend is said in its own words, without a traceback, and exits with status 1."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except OSError as error:
            if error.errno not in (*FULL, *FORBIDDEN):
                raise
            print(f"error: {error}\nmake room, or give the right to write there, and run it again", file=sys.stderr)
            raise typer.Exit(1) from None
        except Terminated as ending:
            print(f"{ending}: the same command goes on from there", file=sys.stderr)
            raise typer.Exit(143) from None
        except KeyboardInterrupt:
            print("\ninterrupted: the same command goes on from what is finished", file=sys.stderr)
            raise typer.Exit(130) from None

    return run


def run_stage(stage: str, file: Path) -> None:
    """Runs the function `pipeline.<stage>.<stage>`, imported once the settings are known to be valid."""
    params = load_params(file)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pipeline").setLevel(logging.INFO)
    getattr(import_module(f"pipeline.stages.{stage}"), stage)(params)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def check(params: ParamsFile = Path("params.yaml")) -> None:
    """Check the settings, the storage and the images that they name."""
    run_stage("check", params)
    print(f"{params} is valid")


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def generate(params: ParamsFile = Path("params.yaml")) -> None:
    """Sample the architectures of all splits into sharded Parquet."""
    run_stage("generate", params)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def train(params: ParamsFile = Path("params.yaml")) -> None:
    """Train a hypernetwork on the training architectures and images."""
    run_stage("train", params)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def evaluate(params: ParamsFile = Path("params.yaml")) -> None:
    """Score predicted parameters on every split, beside random ones."""
    run_stage("evaluate", params)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def finetune(params: ParamsFile = Path("params.yaml")) -> None:
    """Transfer to other data sets, from predicted and from random parameters."""
    run_stage("finetune", params)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def report(params: ParamsFile = Path("params.yaml")) -> None:
    """Draw the plots and tables and write one page of all results."""
    run_stage("report", params)


@app.command(rich_help_panel=ARCHITECTURES)
@exits_on_user_error
def verify(
    params: ParamsFile = Path("params.yaml"),
    recompute: Annotated[int, typer.Option(min=0, help="Rows of each split that are compiled again.")] = 200,
    every_row: Annotated[bool, typer.Option("--every-row", help="Count all other rows again too.")] = False,
) -> None:
    """Verify what stage generate wrote: checksums, that no network is there twice, and rows computed again."""
    from pipeline.architectures.verify import verify as verify_architectures

    verify_architectures(load_params(params), recompute=recompute, every_row=every_row)


Architecture = Annotated[
    str, typer.Argument(help="A name that `ghn list` lists, or SPLIT/NUMBER: what a split samples.")
]
Classes = Annotated[int | None, typer.Option("--classes", min=1, help="Of the network; by default those of the GHN.")]
ImageSize = Annotated[int | None, typer.Option("--image-size", min=8, help="In pixels; by default what it takes.")]


@app.command("list", rich_help_panel=NETWORKS)
@exits_on_user_error
def list_names(pattern: Annotated[str, typer.Argument(help="Such as '*resnet*'.")] = "*") -> None:
    """List the architectures that have a name: torchvision's, timm's (if installed) and the predefined ones."""
    from ghn import list_architectures

    names = list_architectures(pattern)
    if not names:
        raise UserError(f"no architecture is called {pattern!r}")
    print("\n".join(names))


@app.command(rich_help_panel=NETWORKS)
@exits_on_user_error
def predict(
    architecture: Architecture,
    checkpoint: Annotated[Path, typer.Option(help="The GHN: a checkpoint folder, or a published file.")],
    out: Annotated[Path, typer.Option(help="Where to write the parameters, in safetensors.")],
    classes: Classes = None,
    image_size: ImageSize = None,
    class_layers: Annotated[bool, typer.Option(help="Predict the classification layer too.")] = True,
    images: Annotated[
        str | None,
        typer.Option(help="Data set, or folder of class folders, for running statistics and a score."),
    ] = None,
    folder: Annotated[str | None, typer.Option(help="Where the files of cifar10, imagenet, … lie.")] = None,
    cache: Annotated[Path, typer.Option(help="Where decoded images are kept.")] = Path("storage/images"),
) -> None:
    """Predict the parameters of a network and write them to a file."""
    from pipeline.commands.one_network import predict_network

    predict_network(
        architecture,
        checkpoint,
        out,
        num_classes=classes,
        image_size=image_size,
        class_layers=class_layers,
        dataset=images,
        folder=folder,
        cache=cache,
    )


@app.command(rich_help_panel=NETWORKS)
@exits_on_user_error
def graph(
    architecture: Architecture,
    out: Annotated[Path, typer.Option(help="Where to draw it: .svg, .pdf or .png.")],
    classes: Annotated[int, typer.Option(min=1, help="Of the network.")] = 1000,
    image_size: ImageSize = None,
    virtual_edges: Annotated[bool, typer.Option(help="Sample virtual edges too.")] = False,
) -> None:
    """Render the graph of a network, as a GHN sees it."""
    from pipeline.commands.one_network import render_network

    render_network(architecture, out, classes, image_size, virtual_edges)


@app.command("import-ghn", rich_help_panel=FILES)
@exits_on_user_error
def import_ghn(
    file: Annotated[Path, typer.Argument(help="A GHN in the published format.")],
    out: Annotated[Path, typer.Option(help="The checkpoint folder to write.")],
) -> None:
    """Import a published GHN; nothing in the file is executed."""
    from pipeline.commands.one_network import import_hypernetwork

    import_hypernetwork(file, out)


@app.command("export-ghn", rich_help_panel=FILES)
@exits_on_user_error
def export_ghn(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
) -> None:
    """Export a GHN to the published format."""
    from pipeline.commands.one_network import export_hypernetwork

    export_hypernetwork(checkpoint, out)


@app.command("import-deepnets", rich_help_panel=FILES)
@exits_on_user_error
def import_architectures(
    hdf5: Annotated[Path, typer.Argument(help="The graphs, such as deepnets1m_train.hdf5.")],
    metadata: Annotated[Path, typer.Argument(help="The records, such as deepnets1m_train_meta.json.")],
    split: Annotated[str, typer.Option(help="Where they belong: train, val, test, deep, …")] = "train",
    storage: Annotated[str, typer.Option(help="A folder, or s3://bucket/prefix.")] = "storage",
    keep_disagreeing: Annotated[bool, typer.Option(help="Import rows too whose graph is not their record's.")] = False,
) -> None:
    """Import published architectures of DeepNets-1M; every row is checked."""
    from pipeline.architectures.deepnets1m_files.import_split import import_deepnets

    import_deepnets(hdf5, metadata, split, storage, keep_disagreeing)


if __name__ == "__main__":
    app()
