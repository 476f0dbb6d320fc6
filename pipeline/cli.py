"""Command `ghn`: a subcommand for each stage of the pipeline, as `dvc.yaml` runs it, and others for single networks.

Each subcommand imports what it runs when it is called, because PyTorch, Ray and MLflow take seconds to import: help,
completion and errors in `params.yaml` come at once.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import DISK_FULL, NO_PERMISSION, Terminated, UserError
from pipeline.params import Params, load_params
from pipeline.results import CHECKPOINT
from pipeline.secrets import hidden, hide_in_output
from pipeline.termination import sigterm_raises_terminated

app = typer.Typer(
    help="Graph hypernetworks: predict all parameters of networks never seen.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

STAGES = "Stages of the pipeline, in this order"
TEXT_STAGES = ("train", "sgd", "evaluate", "study")  # and those that they need
SETTINGS = "Settings"
TRACKING = "MLflow"
ARCHITECTURES = "Stored architectures"
NETWORKS = "Any network"
FILES = "Published files"

PARAMS = Path("params.yaml")
ParamsFile = Annotated[Path, typer.Option("--params", help="The settings.")]
Checkpoint = Annotated[
    str,
    typer.Option(help="The GHN: a checkpoint folder, a published file, or either on the hub, as hf://owner/name."),
]


def exits_on_user_error(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command print errors that the user can correct without a traceback, and exit with status 1.

    Passwords are hidden in all that it logs, and in the tracebacks of other errors.

    SIGTERM ends it with status 143, Ctrl-C with 130.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        hide_in_output()
        try:
            with sigterm_raises_terminated():
                command(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except OSError as error:
            if error.errno not in (*DISK_FULL, *NO_PERMISSION):
                raise
            print(
                f"error: {hidden(str(error))}\nmake room, or give the right to write there, and run it again",
                file=sys.stderr,
            )
            raise typer.Exit(1) from None
        except Terminated as ending:
            print(f"{ending}: the same command goes on from there", file=sys.stderr)
            raise typer.Exit(143) from None
        except KeyboardInterrupt:
            print("\ninterrupted: the same command goes on from what is finished", file=sys.stderr)
            raise typer.Exit(130) from None

    return run


def begin_stage(file: Path, reads_text: bool = False) -> Params:
    """Return the settings of a stage, which is imported once they are known to be valid; show what it logs.

    Args:
        reads_text: whether the stage can do with networks of text, not of images.
    """
    params = load_params(file)
    if params.is_text and not reads_text:
        raise UserError(
            f"dataset = {params.dataset} is text, and this stage is for networks of images\n"
            f"`dvc repro {' '.join(TEXT_STAGES)}` runs all stages that are for text too"
        )
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pipeline").setLevel(logging.INFO)
    return params


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def check(file: ParamsFile = PARAMS) -> None:
    """Check the settings, the storage and the images that they name, and the MLflow server."""
    params = begin_stage(file, reads_text=True)
    from pipeline.stages.check import check

    check(params)
    print(f"{file} is valid")


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def generate(file: ParamsFile = PARAMS) -> None:
    """Sample the architectures of all splits into sharded Parquet."""
    params = begin_stage(file, reads_text=True)
    from pipeline.stages.generate import generate

    generate(params)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def describe(file: ParamsFile = PARAMS) -> None:
    """Write the page about the architectures."""
    params = begin_stage(file)
    from pipeline.stages.describe import describe

    describe(params)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def train(file: ParamsFile = PARAMS) -> None:
    """Train a hypernetwork on the training architectures and images."""
    params = begin_stage(file, reads_text=True)
    from pipeline.stages.train import train

    train(params)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def sgd(file: ParamsFile = PARAMS) -> None:
    """Train networks one by one, from random parameters, to compare with."""
    params = begin_stage(file, reads_text=True)
    from pipeline.stages.sgd import sgd

    sgd(params)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def evaluate(file: ParamsFile = PARAMS) -> None:
    """Score predicted parameters on every split, beside random ones."""
    params = begin_stage(file, reads_text=True)
    from pipeline.stages.evaluate import evaluate

    evaluate(params)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def copies(file: ParamsFile = PARAMS) -> None:
    """Score copies of the parameters of the most similar trained network."""
    params = begin_stage(file)
    from pipeline.stages.copies import copies

    copies(params)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def finetune(file: ParamsFile = PARAMS) -> None:
    """Transfer to other data sets, from predicted and from random parameters."""
    params = begin_stage(file)
    from pipeline.stages.finetune import finetune

    finetune(params)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def adapt(
    file: ParamsFile = PARAMS,
    images: Annotated[str | None, typer.Option(help="A data set, or folder of class folders, to adapt to.")] = None,
    shots: Annotated[int, typer.Option(min=1, help="Training images of each class; others choose when to stop.")] = 10,
    checkpoint: Checkpoint = str(CHECKPOINT),
    out: Annotated[Path | None, typer.Option(help="The checkpoint folder to write.")] = None,
    folder: Annotated[str | None, typer.Option(help="Where the files of cifar10, imagenet, … lie.")] = None,
    cache: Annotated[Path, typer.Option(help="Where decoded images are kept.")] = Path("storage/images"),
    steps: Annotated[int, typer.Option(min=1, help="Optimisation steps.")] = 200,
    learning_rate: Annotated[float, typer.Option(min=0, help="Of Adam.")] = 0.003,
    seed: Annotated[int, typer.Option(min=0, help="Of the images and of all else that is sampled.")] = 0,
) -> None:
    """Adapt the GHN to few images of other data sets, and compare; with --images, adapt one to those alone."""
    if images is None:
        if out is not None:
            raise typer.BadParameter("--out needs --images, the images to adapt to")
        params = begin_stage(file)
        from pipeline.stages.adapt import adapt

        adapt(params)
        return
    if out is None:
        raise typer.BadParameter("--images needs --out, the checkpoint folder to write")
    from pipeline.commands.adapt import adapt_to_images

    adapt_to_images(checkpoint, out, images, shots, folder, cache, steps, learning_rate, seed)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def condition(file: ParamsFile = PARAMS) -> None:
    """Train one GHN for several data sets, and predict for others from a few images."""
    params = begin_stage(file)
    from pipeline.stages.condition import condition

    condition(params)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def detect(file: ParamsFile = PARAMS) -> None:
    """Train detectors of objects on predicted and on random backbones."""
    params = begin_stage(file)
    from pipeline.stages.detect import detect

    detect(params)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def properties(file: ParamsFile = PARAMS) -> None:
    """Predict properties of networks, such as their accuracy after training, from their graphs."""
    params = begin_stage(file)
    from pipeline.stages.properties import properties

    properties(params)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def study(
    variant: Annotated[str, typer.Argument(help="A name of study.changes.")],
    seed: Annotated[int, typer.Argument(min=0, help="Of the weights and of what is sampled.")],
    file: ParamsFile = PARAMS,
) -> None:
    """Train a variant of the hypernetwork in the study's time, and score it."""
    params = begin_stage(file, reads_text=True)
    from pipeline.stages.study import study

    study(params, variant, seed)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def compare(file: ParamsFile = PARAMS) -> None:
    """Compare all initialisations: those of the study's variants, copies, SGD; and say what predictions are worth."""
    params = begin_stage(file)
    from pipeline.stages.compare import compare

    compare(params)


@app.command(rich_help_panel=STAGES)
@exits_on_user_error
def report(file: ParamsFile = PARAMS) -> None:
    """Write the plots, the tables and one page of all results."""
    params = begin_stage(file)
    from pipeline.stages.report import report

    report(params)


@app.command(rich_help_panel=TRACKING)
@exits_on_user_error
def deliver() -> None:
    """Deliver to MLflow what stages logged while it did not answer."""
    from pipeline.commands.deliver import deliver

    deliver()


@app.command(rich_help_panel=SETTINGS)
@exits_on_user_error
def preset(
    preset: Annotated[str, typer.Argument(help="Name of a file in params/, such as cifar10, or path of a file.")],
    file: ParamsFile = PARAMS,
) -> None:
    """Write ready settings into params.yaml; keys that they do not name stay, and so do comments."""
    from pipeline.commands.preset import apply_preset

    apply_preset(preset, file)


@app.command(rich_help_panel=SETTINGS)
@exits_on_user_error
def doctor(
    file: ParamsFile = PARAMS,
    storage: Annotated[str | None, typer.Option(help="A folder or bucket in place of the one in the settings.")] = None,
) -> None:
    """Look for what is wrong on this machine, or on all nodes of a cluster, before a run."""
    params = load_params(file)
    if storage is not None:
        params = params.model_copy(update={"storage": storage})
    from pipeline.cluster.doctor import examine_nodes
    from pipeline.commands.doctor import doctor

    doctor(params, examine_nodes)


@app.command(rich_help_panel=ARCHITECTURES)
@exits_on_user_error
def verify(
    file: ParamsFile = PARAMS,
    recompute: Annotated[int, typer.Option(min=0, help="Rows of each split that are compiled again.")] = 200,
    every_row: Annotated[bool, typer.Option("--every-row", help="Count all other rows again too.")] = False,
) -> None:
    """Verify what stage generate wrote: checksums, that no network is there twice, and rows computed again."""
    from pipeline.architectures.verify import verify

    verify(load_params(file), recompute=recompute, every_row=every_row)


Architecture = Annotated[
    str, typer.Argument(help="A name that `ghn list` lists, or SPLIT/NUMBER or gpt/SPLIT/NUMBER: what a split samples.")
]
Classes = Annotated[int | None, typer.Option("--classes", min=1, help="Of the network; by default those of the GHN.")]
ImageSize = Annotated[int | None, typer.Option("--image-size", min=8, help="In pixels; by default what it takes.")]


@app.command("list", rich_help_panel=NETWORKS)
@exits_on_user_error
def list_names(pattern: Annotated[str, typer.Argument(help="Such as '*resnet*'.")] = "*") -> None:
    """List networks by name: torchvision's, those of timm and transformers if installed, predefined ones."""
    from pipeline.commands.one_network import print_names

    print_names(pattern)


@app.command(rich_help_panel=NETWORKS)
@exits_on_user_error
def predict(
    architecture: Architecture,
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="Where to write the parameters, in safetensors.")],
    classes: Classes = None,
    image_size: ImageSize = None,
    class_layers: Annotated[bool, typer.Option(help="Predict the classification layer too.")] = True,
    images: Annotated[
        str | None,
        typer.Option(help="Data set, or folder of class folders, for running statistics and a score."),
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option(help="The same in place of --images, of other classes: the class layer is fitted to them."),
    ] = None,
    folder: Annotated[str | None, typer.Option(help="Where the files of cifar10, imagenet, … lie.")] = None,
    cache: Annotated[Path, typer.Option(help="Where decoded images are kept.")] = Path("storage/images"),
    shards: Annotated[
        bool,
        typer.Option(
            "--shards", help="Write a folder of files as they are predicted: memory need not hold the network."
        ),
    ] = False,
) -> None:
    """Predict the parameters of a network and write them to a file."""
    if shards:
        if images is not None or shots is not None:
            raise UserError("--shards writes parameters as they are predicted: leave out --images and --shots")
        from pipeline.commands.one_network import predict_large_network

        predict_large_network(architecture, checkpoint, out, classes, image_size, class_layers)
        return
    if shots is not None:
        if images is not None or classes is not None or not class_layers:
            raise UserError("--shots gives the classes and the class layer: leave out --images, --classes and the like")
        from pipeline.commands.few_shots import predict_from_shots

        predict_from_shots(architecture, checkpoint, out, shots, image_size, folder, cache)
        return
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
    out: Annotated[Path, typer.Option(help="Where to write the picture: .svg, .pdf or .png.")],
    classes: Annotated[int, typer.Option(min=1, help="Of the network.")] = 1000,
    image_size: ImageSize = None,
    virtual_edges: Annotated[bool, typer.Option(help="Show virtual edges too.")] = False,
) -> None:
    """Render the graph of a network, as a GHN sees it."""
    from pipeline.commands.one_network import render_network

    render_network(architecture, out, classes, image_size, virtual_edges)


@app.command("import-ghn", rich_help_panel=FILES)
@exits_on_user_error
def import_ghn(
    file: Annotated[str, typer.Argument(help="A GHN in the published format, or hf://owner/name/file.")],
    out: Annotated[Path, typer.Option(help="The checkpoint folder to write.")],
) -> None:
    """Import a published GHN; nothing in the file is executed."""
    from pipeline.commands.one_network import import_hypernetwork

    import_hypernetwork(file, out)


@app.command("export-ghn", rich_help_panel=FILES)
@exits_on_user_error
def export_ghn(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder, or hf://owner/name.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
) -> None:
    """Export a GHN to the published format."""
    from pipeline.commands.one_network import export_hypernetwork

    export_hypernetwork(checkpoint, out)


@app.command(rich_help_panel=FILES)
@exits_on_user_error
def push(
    model: Annotated[str, typer.Argument(help="A GHN that stage train has registered, such as models:/ghn/1.")],
    repository: Annotated[str, typer.Argument(help="On the Hugging Face hub: owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
) -> None:
    """Upload a GHN to the Hugging Face hub, with a card of its settings and results."""
    from pipeline.commands.push import push

    push(model, repository, private)


@app.command("import-deepnets", rich_help_panel=FILES)
@exits_on_user_error
def import_architectures(
    hdf5: Annotated[Path, typer.Argument(help="The graphs, such as deepnets1m_train.hdf5.")],
    metadata: Annotated[Path, typer.Argument(help="The records, such as deepnets1m_train_meta.json.")],
    split: Annotated[str, typer.Option(help="Where they belong: train, val, test, deep, …")] = "train",
    storage: Annotated[str, typer.Option(help="A folder, or s3://bucket/prefix.")] = "storage",
    keep_disagreeing: Annotated[bool, typer.Option(help="Also import rows whose graph is not their record's.")] = False,
) -> None:
    """Import published architectures of DeepNets-1M; every row is checked."""
    from pipeline.architectures.import_split import import_deepnets

    import_deepnets(hdf5, metadata, split, storage, keep_disagreeing)


@app.command("import-results", rich_help_panel=FILES)
@exits_on_user_error
def import_paper_results(
    file: Annotated[Path, typer.Argument(help="Results of single architectures, such as results_cifar10.json.")],
    storage: Annotated[str, typer.Option(help="A folder, or s3://bucket/prefix.")] = "storage",
) -> None:
    """Import published results of the architectures of DeepNets-1M, for stage properties."""
    from pipeline.architectures.paper_results import import_results

    import_results(file, storage)


if __name__ == "__main__":
    app()
