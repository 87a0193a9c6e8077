"""The command `llm-kernels-npu`: list, check, bench."""

import sys
from pathlib import Path

import click

from llm_kernels_npu import __version__

_DEVICE = click.option(
    "--device", default="auto", show_default=True, metavar="cpu|cuda|npu|auto", help="Where to run."
)
_OPERATOR = click.option(
    "--op", "operators", multiple=True, metavar="NAME", help="Only this operator (repeatable)."
)
_DTYPE = click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Only this dtype (repeatable).",
)


def _png(_: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() != ".png":
        raise click.BadParameter(f"{path}: a PNG is written, want a name in .png", param=option)
    return path


class _Failures(click.Group):
    """Prints this package's errors as one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        from llm_kernels_npu.errors import (
            BackendMissingError,
            PackageMissingError,
            UnknownNameError,
        )

        try:
            return super().invoke(ctx)
        except UnknownNameError as error:
            raise click.UsageError(str(error)) from error
        except (BackendMissingError, PackageMissingError, OSError) as error:
            raise click.ClickException(str(error)) from error


@click.group(
    cls=_Failures,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: llm-kernels-npu list",
)
@click.version_option(__version__, prog_name="llm-kernels-npu")
def main() -> None:
    """Fused operators for Ascend and CUDA behind one interface, each beside its reference.

    Exit codes: 0 ok, 1 failed, 2 usage.
    """


@main.command("list", epilog="Example: llm-kernels-npu list --device npu")
@_DEVICE
def list_(device: str) -> None:
    """Show every operator's backends: usable, or why not."""
    from llm_kernels_npu.edge import report

    report.show_backends(device)


@main.command(epilog="Example: llm-kernels-npu check --op rms_norm --device cpu")
@_OPERATOR
@_DEVICE
@_DTYPE
@click.option("--verbose", is_flag=True, help="One line a case instead of one a backend.")
def check(operators: tuple[str, ...], device: str, dtypes: tuple[str, ...], verbose: bool) -> None:
    """Compare every usable backend with the reference: outputs and gradients.

    Shapes are small and odd; uninitialised memory is poisoned with NaN. Exit code 1 when any
    difference is over the dtype's tolerance.
    """
    from llm_kernels_npu.edge import report

    sys.exit(0 if report.run_check(operators, device, dtypes, verbose=verbose) else 1)


@main.command(
    epilog="\b\nExample:\n  llm-kernels-npu bench --op rms_norm --device cpu --output bench.json"
)
@_OPERATOR
@_DEVICE
@_DTYPE
@click.option(
    "--seconds", default=1.0, show_default=True, type=click.FloatRange(min=0), help="Time a case."
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="JSON file.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_png,
    help="PNG of the speeds beside the reference's (extra: plot).",
)
def bench(
    operators: tuple[str, ...],
    device: str,
    dtypes: tuple[str, ...],
    seconds: float,
    output: Path | None,
    plot: Path | None,
) -> None:
    """Time every usable backend that passes its parity check first.

    Medians of forward and of forward with backward. A backend that fails parity is not timed,
    and the exit code is 1.
    """
    from llm_kernels_npu.edge import report

    passed = report.run_bench(operators, device, dtypes, seconds, output=output, plot=plot)
    sys.exit(0 if passed else 1)
