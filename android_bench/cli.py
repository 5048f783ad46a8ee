"""The command android-bench. Everything heavy is imported inside the commands, so that --help is quick."""

import pathlib
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer
import typer.core

from android_bench.errors import BenchError, UsageError

if TYPE_CHECKING:
    from android_bench.record import Record

_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130


class _Commands(typer.core.TyperGroup):
    """Turns errors into one sentence and an exit code."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except BenchError as error:
            _say(f"android-bench: {error}")
            raise typer.Exit(_USAGE if isinstance(error, UsageError) else _FAILED) from error
        except KeyboardInterrupt:
            _say("android-bench: interrupted; what was measured until then is in the record of --out.")
            raise typer.Exit(_INTERRUPTED) from None


app = typer.Typer(
    name="android-bench",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="""Latency, memory and per-operator profiles of .tflite files, with intervals.

Example:

  android-bench run float.tflite int8.tflite --threads 1,2 --profile --out build/bench

Exit codes: 0 measured, 1 failed or refused, 2 wrong usage, 130 interrupted.""",
)

_JSON = Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")]


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _counts(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--threads takes numbers with commas between them, e.g. 1,2,4; it is {text!r}.") from None


def _shape(text: str) -> tuple[str, list[int]]:
    name, _, sizes = text.rpartition("=")
    try:
        shape = [int(part) for part in sizes.split(",")]
    except ValueError:
        shape = []
    if not name or not shape or min(shape) < 1:
        raise UsageError(f"--input-shape takes NAME=1,224,224,3; it is {text!r}.")
    return name, shape


def _show(record: "Record", as_json: bool) -> None:
    print(record.to_json() if as_json else record.table())
    if not record.ok:
        raise typer.Exit(_FAILED)


@app.command()
def run(
    files: Annotated[list[pathlib.Path], typer.Argument(help="One or more .tflite files; several run in alternation.")],
    device: Annotated[str, typer.Option(help="Where to run: host.")] = "host",
    threads: Annotated[str, typer.Option(help="Thread counts, with commas between them.")] = "1",
    runs: Annotated[int, typer.Option(help="Least number of timed runs in a block.")] = 50,
    min_seconds: Annotated[float, typer.Option(help="Least time of the timed runs in a block.")] = 0.5,
    max_seconds: Annotated[float, typer.Option(help="Most time of the timed runs in a block.")] = 30.0,
    warmup_runs: Annotated[int, typer.Option(help="Least number of runs before the timed ones.")] = 10,
    warmup_seconds: Annotated[float, typer.Option(help="Least time of the runs before the timed ones.")] = 0.2,
    warmup_max_seconds: Annotated[
        float, typer.Option(help="Time after which warming up is given up, and flagged.")
    ] = 5.0,
    blocks: Annotated[int, typer.Option(help="Processes for each file and setting.")] = 6,
    pause: Annotated[float, typer.Option(help="Seconds of rest between blocks.")] = 0.0,
    time_limit: Annotated[float, typer.Option(help="Seconds after which a block is ended.")] = 300.0,
    seed: Annotated[int, typer.Option(help="Of the random inputs and the intervals.")] = 0,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also the time per operator, in runs of their own.")
    ] = False,
    check: Annotated[
        pathlib.Path | None, typer.Option(help="NPZ of inputs and expected outputs by tensor name, run before timing.")
    ] = None,
    tolerance: Annotated[float | None, typer.Option(help="Largest error that --check allows.")] = None,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="NAME=1,224,224,3 for an input without a fixed shape.")
    ] = None,
    out: Annotated[pathlib.Path | None, typer.Option(help="Folder for record.json.")] = None,
    as_json: _JSON = False,
) -> None:
    """Measure files in alternating blocks of one process each.

    Example: android-bench run float.tflite int8.tflite --threads 1,2 --runs 100 --check samples.npz --out build/bench
    """
    from android_bench import session

    record = session.run(
        files,
        device,
        threads=_counts(threads),
        check=check,
        tolerance=tolerance,
        profile=profile,
        shapes=dict(map(_shape, input_shape or [])),
        out=out,
        progress=_say,
        runs=runs,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        warmup_runs=warmup_runs,
        warmup_seconds=warmup_seconds,
        warmup_max_seconds=warmup_max_seconds,
        blocks=blocks,
        pause=pause,
        time_limit=time_limit,
        seed=seed,
    )
    if out is not None:
        _say(f"record: {out / 'record.json'}")
    _show(record, as_json)


@app.command()
def compare(
    first: Annotated[pathlib.Path, typer.Argument(help="A record, or the folder that --out named.")],
    second: Annotated[
        pathlib.Path | None, typer.Argument(help="Another record; the first one is then the base.")
    ] = None,
    as_json: _JSON = False,
) -> None:
    """How many times faster, with an interval: within one record (paired blocks) or between two.

    Example: android-bench compare build/bench
    """
    import dataclasses
    import json

    from android_bench import comparison
    from android_bench.record import Record

    rows = comparison.compare(Record.load(first), None if second is None else Record.load(second))
    print(
        json.dumps([dataclasses.asdict(row) for row in rows], indent=1)
        if as_json
        else "\n".join(r.sentence for r in rows)
    )


@app.command()
def report(
    record: Annotated[pathlib.Path, typer.Argument(help="A record, or the folder that --out named.")],
    as_json: _JSON = False,
) -> None:
    """Print a record as a table.

    Example: android-bench report build/bench
    """
    from android_bench.record import Record

    loaded = Record.load(record)
    print(loaded.to_json() if as_json else loaded.table())


@app.command()
def read(
    log: Annotated[pathlib.Path, typer.Argument(help="What TFLite's or LiteRT's benchmark_model printed.")],
    accelerator: Annotated[
        str | None, typer.Option(help="What was asked for: cpu, gpu, nnapi; else what the log says.")
    ] = None,
    out: Annotated[pathlib.Path | None, typer.Option(help="Folder for record.json.")] = None,
    as_json: _JSON = False,
) -> None:
    """Judge a recorded log: runs without a delegate fail, debug builds are refused, throttling is flagged.

    Example: android-bench read phone.log --accelerator gpu
    """
    from android_bench import logs

    if not log.is_file():
        raise UsageError(f"There is no file {log}.")
    record = logs.read(log.read_text(encoding="utf-8", errors="replace"), accelerator, log.name)
    if out is not None:
        record.save(out / "record.json")
    _show(record, as_json)


def main() -> None:
    """Entry point of the command android-bench."""
    # A polite end is like Ctrl-C: children are ended and the record so far is kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()


if __name__ == "__main__":
    main()
