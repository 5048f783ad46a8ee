"""The command tfcompress. Everything heavy is imported inside the commands, so that --help is quick."""

import contextlib
import json
import math
import os
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from tfcompress.errors import CompressionError

if TYPE_CHECKING:
    from tfcompress.commands import Result

_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130


class _Commands(typer.core.TyperGroup):
    """Turns errors into one sentence and an exit code."""

    def invoke(self, ctx):
        from tfcompress.commands import UsageError

        try:
            return super().invoke(ctx)
        except CompressionError as error:
            _say(f"tfcompress: {error}")
            raise typer.Exit(_USAGE if isinstance(error, UsageError) else _FAILED) from error
        except KeyboardInterrupt:
            _say(
                "tfcompress: interrupted. An unfinished compress goes on with --resume, a search when it is called again."
            )
            raise typer.Exit(_INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read the output has seen enough; nothing more can be written there.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(_FAILED) from None
        except (OSError, MemoryError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError) as error:  # fmt: skip
            if _is_ours(error) or "TFCOMPRESS_TRACEBACK" in os.environ:
                raise
            lines = str(error).strip().splitlines() or ["no reason given"]
            _say(f"tfcompress: {type(error).__name__}: {lines[0]} (TFCOMPRESS_TRACEBACK=1 shows where)")
            raise typer.Exit(_FAILED) from error


def _is_ours(error: BaseException) -> bool:
    """Whether typer uses the exception for itself (an exit, a wrong option)."""
    return type(error).__module__.split(".")[0] in ("typer", "click")


app = typer.Typer(
    name="tfcompress",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="""Takes a Keras 3 model to a phone: compression, verified .tflite files, packing.

Example:

  tfcompress compress model.keras --recipe prune-qat --data train.npz --out build/small

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted.""",
)

_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")]
_DATA = "An .npz with x, y, x_val, y_val; a folder with a sub-folder of images a class; or module:function."
_IMPORT = Annotated[
    list[str] | None, typer.Option("--import", help="Module to import first, e.g. one that registers layer classes.")
]
_SCALE = Annotated[float, typer.Option(help="Factor for the pixels 0..255 of image files, e.g. 0.00392157.")]
_MODEL = Annotated[pathlib.Path, typer.Argument(metavar="MODEL", help="A .keras file.")]
_BOUNDARY = "Type of the ends of integer files: float32 (the default where the target takes it), int8, uint8 (int16 for int16x8)."
_TARGET = "Whose rules the file obeys: xnnpack, gpu, nnapi, edgetpu, tflm, tflm-legacy."


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _finite(value: Any) -> Any:
    """The same values, with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, pathlib.Path):
        return str(value)
    number = float(value)
    return (
        (int(number) if number.is_integer() and not isinstance(value, float) else number)
        if math.isfinite(number)
        else None
    )


def _run(work: "Callable[[], Result]", as_json: bool) -> None:
    """Do a command's work, with all that it prints on stderr, and show what it found on stdout."""
    with contextlib.redirect_stdout(sys.stderr):
        result = work()
    if as_json:
        print(json.dumps(_finite(result.data), indent=1, allow_nan=False))
    else:
        from rich.console import Console

        console = Console(soft_wrap=True)
        for part in result.shown:
            print(part) if isinstance(part, str) else console.print(part)
    sys.stdout.flush()
    if result.failed:
        raise typer.Exit(_FAILED)


@app.command()
def compress(
    model: _MODEL,
    recipe: Annotated[str, typer.Option(help="A shipped recipe (tfcompress recipes) or a YAML file.")],
    out: Annotated[pathlib.Path, typer.Option(help="Folder for the results and the state that --resume takes up.")],
    data: Annotated[str | None, typer.Option(help=_DATA)] = None,
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Leave all training out; schedules stand at their end.")
    ] = False,
    max_drop: Annotated[
        float | None, typer.Option(help="Largest loss of accuracy in points; the last step within it is the result.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    loss: Annotated[str | None, typer.Option(help="Loss, for a model that was saved without one.")] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Metrics, with commas between them; an accuracy is what --max-drop looks at.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of every step that trains, instead of the recipe's.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a batch.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples' order and of what methods draw.")] = 0,
    precision: Annotated[str | None, typer.Option(help="Of model.tflite, instead of the recipe's.")] = None,
    scale: _SCALE = 1.0,
    modules: _IMPORT = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Every layer's row and every batch.")] = False,
    as_json: _JSON = False,
) -> None:
    """Compress a model by a recipe, and write it as .keras, .tflite and .tfcz with a report.

    Example: tfcompress compress model.keras --recipe deep-compression --data train.npz --out build/
    """

    def work():
        from tfcompress.commands.compress import compress as run

        return run(
            model, recipe, data, out, training=not no_train, max_drop=max_drop, resume=resume, loss=loss,
            metrics=metrics.split(",") if metrics else None, epochs=epochs, batch_size=batch_size, seed=seed,
            precision=precision, scale=scale, modules=modules or [], verbose=2 if verbose else 1,
        )  # fmt: skip

    _run(work, as_json)


@app.command()
def export(
    model: _MODEL,
    out: Annotated[pathlib.Path, typer.Option(help="The .tflite file to write.")],
    precision: Annotated[str, typer.Option(help="float32, float16, dynamic, int8, int16x8 or int4.")] = "float32",
    data: Annotated[str | None, typer.Option(help="Calibration inputs. " + _DATA)] = None,
    boundary: Annotated[str | None, typer.Option(help=_BOUNDARY)] = None,
    target: Annotated[str, typer.Option(help=_TARGET)] = "xnnpack",
    batch: Annotated[int, typer.Option(min=1, help="The file's fixed batch size.")] = 1,
    sparse: Annotated[
        bool, typer.Option("--sparse", help="Store weights that are mostly zeros as positions and values.")
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="Number of calibration samples.")] = 200,
    scale: _SCALE = 1.0,
    modules: _IMPORT = None,
    as_json: _JSON = False,
) -> None:
    """Write a model as a .tflite file that is verified against it.

    Example: tfcompress export model.keras --precision int8 --data train.npz --out model.tflite
    """

    def work():
        from tfcompress.commands import files

        return files.export(
            model, precision, out, data, boundary=boundary, target=target, batch=batch, sparse=sparse, samples=samples,
            scale=scale, modules=modules or [],
        )  # fmt: skip

    _run(work, as_json)


@app.command()
def verify(
    file: Annotated[pathlib.Path, typer.Argument(metavar="FILE", help="A .tflite file.")],
    model: Annotated[pathlib.Path, typer.Option(help="The .keras file that it was made from.")],
    data: Annotated[str, typer.Option(help="Inputs to compare on. " + _DATA)],
    target: Annotated[str, typer.Option(help=_TARGET)] = "xnnpack",
    samples: Annotated[int, typer.Option(min=1, help="Number of samples.")] = 200,
    scale: _SCALE = 1.0,
    modules: _IMPORT = None,
    as_json: _JSON = False,
) -> None:
    """Run a .tflite file and compare its answers with the Keras model's.

    Example: tfcompress verify model.tflite --model model.keras --data train.npz
    """

    def work():
        from tfcompress.commands import files

        return files.verify(file, model, data, target=target, samples=samples, scale=scale, modules=modules or [])

    _run(work, as_json)


@app.command()
def inspect(
    file: Annotated[pathlib.Path, typer.Argument(metavar="FILE", help="A .keras, .tflite or .tfcz file.")],
    modules: _IMPORT = None,
    as_json: _JSON = False,
) -> None:
    """Show layers or operators, parameters, MACs, zeros, distinct values and bytes of a file.

    Example: tfcompress inspect build/model.tflite
    """

    def work():
        from tfcompress.commands import files

        return files.inspect(file, modules or [])

    _run(work, as_json)


@app.command()
def pack(
    file: Annotated[pathlib.Path, typer.Argument(metavar="FILE", help="A .keras, .tflite, .weights.h5 or .npz file.")],
    out: Annotated[pathlib.Path | None, typer.Option(help="The .tfcz file; by default beside FILE.")] = None,
    effort: Annotated[str, typer.Option(help="fast, normal or best.")] = "normal",
    against: Annotated[
        pathlib.Path | None, typer.Option(help="The float32 file that the ratio is taken against.")
    ] = None,
    optimizer: Annotated[
        bool, typer.Option("--optimizer", help="Keep the optimizer's state of a .keras file.")
    ] = False,
    as_json: _JSON = False,
) -> None:
    """Write a model file as .tfcz, without loss, every tensor by the smallest of its codings.

    Example: tfcompress pack build/model.tflite --out build/model.tfcz
    """

    def work():
        from tfcompress.commands import files

        return files.pack(file, out, effort=effort, against=against, optimizer=optimizer)

    _run(work, as_json)


@app.command()
def unpack(
    file: Annotated[pathlib.Path, typer.Argument(metavar="FILE", help="A .tfcz file.")],
    out: Annotated[pathlib.Path | None, typer.Option(help="The file to write; by default beside FILE.")] = None,
    as_json: _JSON = False,
) -> None:
    """Write the model file that a .tfcz holds.

    Example: tfcompress unpack build/model.tfcz --out model.tflite
    """

    def work():
        from tfcompress.commands import files

        return files.unpack(file, out)

    _run(work, as_json)


@app.command()
def search(
    model: _MODEL,
    data: Annotated[str, typer.Option(help="Labelled samples to measure on (x_val where there is one). " + _DATA)],
    out: Annotated[pathlib.Path, typer.Option(help="Folder for the results; the same call goes on where it stopped.")],
    max_drop: Annotated[
        float | None,
        typer.Option(help="Largest drop (points of accuracy); without it each layer is measured alone."),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="bytes, macs (bit operations) or latency (of this computer).")
    ] = "bytes",
    choices: Annotated[
        str, typer.Option(help="Precisions by layer, of int4, int8, int16, float.")
    ] = "int8,int16,float",
    sparsities: Annotated[str, typer.Option(help="Shares of zeros to measure each layer at.")] = "0.5,0.7,0.9",
    bits: Annotated[str, typer.Option(help="Bits of weights to measure each layer at.")] = "8,4",
    metric: Annotated[
        str | None, typer.Option(help="accuracy, loss or error; by default accuracy where labels are classes.")
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="Assignments that are measured as a whole.")] = 64,
    samples: Annotated[int | None, typer.Option(min=1, help="Draw so many samples to measure on.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a batch.")] = 32,
    scale: _SCALE = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples that are drawn.")] = 0,
    modules: _IMPORT = None,
    as_json: _JSON = False,
) -> None:
    """Measure what each layer's zeros and bits cost, or choose each layer's precision within a drop and export it.

    Example: tfcompress search model.keras --data train.npz --max-drop 0.5 --choices int8,float --out build/search
    """

    def work():
        from tfcompress.commands.search import search as run

        return run(
            model, data, out, max_drop=max_drop, objective=objective, choices=choices, sparsities=sparsities, bits=bits,
            metric=metric, limit=limit, samples=samples, batch_size=batch_size, scale=scale, seed=seed,
            modules=modules or [],
        )  # fmt: skip

    _run(work, as_json)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show one method's arguments.")] = None,
    as_json: _JSON = False,
) -> None:
    """List the methods that recipes are made of.

    Example: tfcompress methods pruning.Magnitude
    """

    def work():
        from tfcompress.commands import lists

        return lists.methods(name)

    _run(work, as_json)


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Print one recipe, to start an own one from.")
    ] = None,
    as_json: _JSON = False,
) -> None:
    """List the shipped recipes.

    Example: tfcompress recipes prune-qat > own.yaml
    """

    def work():
        from tfcompress.commands import lists

        return lists.recipes(name)

    _run(work, as_json)


def main() -> None:
    """Entry point of the command tfcompress."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # A polite end is like Ctrl-C: the state of a training is written.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()


if __name__ == "__main__":
    main()
