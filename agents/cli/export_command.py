"""The command that exports a network."""

from pathlib import Path

import click


@click.command()
@click.argument("checkpoint")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="File of the graph, ending in .onnx.")
@click.option(
    "--detail",
    type=click.FloatRange(0, 1),
    help="Default of the input `detail`: from faithful (0) to rich (1), for a network with substeps.  [default: 1]",
)
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
def export(checkpoint: str, out: Path, detail: float | None, overwrite: bool) -> None:
    """Write one forward from noise to the picture as an ONNX graph.

    CHECKPOINT is a name, a folder or a Hub id. The graph contains the predictor and the network, and takes pictures of
    any size. Its inputs are `image`, (B, 3, h, w) in [0, 1]; `noise`, (B, 3, H, W), standard normal, where H and W are
    the sides of the result; and, for a network with substeps, `detail`, a number in 0 … 1. Its output is `sr`, (B, 3,
    H, W) in [0, 1].
    Needs ONNX: pip install "skipdiff[export]".
    """
    from ddpm.nets.export import export_onnx

    export_onnx(checkpoint, out, detail, overwrite)
    click.echo(f"graph: {out}")
