"""The zoo's results as JSON files and as docs/models.md; it imports neither Keras nor tfcompress's methods."""

import json
import pathlib
from collections.abc import Mapping

from models.zoo import ENTRIES

NOTICE = "<!-- Written by tools/zoo.py. Do not edit. -->"
# Result rows in the order of the tables: (key, name).
ROWS = (
    ("int8", "int8, calibrated"), ("qat", "int8, trained (QAT)"), ("float16", "float16"), ("dynamic", "dynamic"),
    ("int16x8", "int16x8"), ("int4", "int4 weights"),
)  # fmt: skip
STOCK = (
    ("converter", "TFLiteConverter, int8"), ("keras", "Keras `quantize` and `export`"),
    ("quantizer", "litert-quantizer, int8"), ("tfmot", "TFMOT `quantize_model` (tf_keras)"),
)  # fmt: skip


def assembled(key: str, folder: pathlib.Path) -> dict | None:
    """The result file's content from the records of the steps in a model's folder; None before the network is trained."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    if "float" not in records or "result" not in records["float"]:
        return None
    entry, about = ENTRIES[key], records.pop("about", {})
    rows: dict[str, dict] = {}
    for step, names in (("ptq", ("float32", *(k for k, _ in ROWS if k != "qat"))), ("qat", ("qat",))):
        result = _result(records, step)
        for name in names:
            rows[name] = (result if name == "qat" else result.get(name)) or _missing(records, step)
    stock = _result(records, "stock")
    stock |= {"tfmot": _result(records, "tfmot") or _missing(records, "tfmot")}
    return {
        "key": key,
        "title": entry.title,
        "about": entry.about,
        "own": entry.own,
        "criterion": entry.criterion,
        "least": entry.least,
        "float": records["float"]["result"],
        "rows": rows,
        "stock": {name: stock.get(name) or _missing(records, "stock") for name, _ in STOCK},
        "latency": _result(records, "latency"),
        "code": {step: record["code"][:16] for step, record in records.items()},
        "seconds": round(sum(record["seconds"] for record in records.values()), 1),
        **about,
    }


def _result(records: Mapping, step: str) -> dict:
    return dict(records.get(step, {}).get("result") or {})


def _missing(records: Mapping, step: str) -> dict:
    crash = records.get(step, {}).get("crash")
    return {"converts": False if crash else None, "reason": crash or "not run yet"}


def read(folder: pathlib.Path) -> list[dict]:
    """All result files, in the order of the zoo."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return [found[key] for key in ENTRIES if key in found]


def page(results: list[dict]) -> str:
    """docs/models.md."""
    lines = [NOTICE, "# Models", ""]
    if not results:
        return "\n".join([*lines, "No model has been run yet."]) + "\n"
    return (
        "\n".join([*lines, *_introduction(), *_summary(results), *(line for r in results for line in _model(r))]) + "\n"
    )


def _introduction() -> list[str]:
    return [
        "Networks that people deploy, each trained on a toy set until it has learned it, then taken through every "
        "precision. All cells are measured by `python tools/zoo.py`; one that failed says why.",
        "",
        "- *Largest* and *mean* are the error at the worst output, in steps of that output (two neighbouring codes), "
        "against the float network (calibrated files) or against the simulated network (QAT). Float outputs have no "
        "steps: their error is given in percent of the output's range. *Within one* is the share of the numbers one step off at "
        "most.",
        "- *Top-1* is the share of samples with the same first class as that reference. Only samples count whose margin "
        "in the reference exceeds two output steps: below that, rounding decides. *Counted* is their share.",
        "- *Score* is the criterion that the float network had to reach, through the file, on test samples. A softmax "
        "output has a step of 1/256.",
        "- *GPU* is the verdict of LiteRT's model analyzer on the GPU delegate: rules, no device.",
        "- *Latency* is that of one run on one thread of the host over that of the float32 file, files taking turns, "
        "median with quartiles. Hosts differ from phones.",
        "- *Stays float*: operators that compute in float in the integer file; \"all\" says that the file is a float one.",
        "- int8 files, calibrated or trained, have int8 inputs and outputs; int16x8 files int16.",
        "",
    ]  # fmt: skip


def _summary(results: list[dict]) -> list[str]:
    head = [
        "model", "learned", "int8: largest / mean steps, top-1", "QAT int8: largest / mean steps, top-1", "stays float (QAT)",
        "GPU (QAT)", "bytes", "latency", *(name for _, name in STOCK),
    ]  # fmt: skip
    lines = ["## In short", "", _row(head), _row(["---"] * len(head))]
    for r in results:
        calibrated, trained = r["rows"]["int8"], r["rows"]["qat"]
        shown = trained if trained.get("converts") else calibrated
        cells = [
            f"[{r['title']}](#{r['key']})", f"{100 * r['float']['score']:.0f} %", _short(calibrated), _short(trained),
            _floats(trained), _gpu(trained), _bytes(shown, r), _latency(r, "qat" if shown is trained else "int8"),
            *(_short(r["stock"][key]) for key, _ in STOCK),
        ]  # fmt: skip
        lines.append(_row(cells))
    missing = [ENTRIES[key].title for key in ENTRIES if key not in {r["key"] for r in results}]
    return [*lines, "", *([f"Not run yet: {', '.join(missing)}.", ""] if missing else [])]


def _model(r: dict) -> list[str]:
    trained = f"{100 * r['float']['score']:.1f} % ({r['criterion']}; {100 * r['least']:.0f} % asked)"
    size = r["rows"]["float32"].get("bytes")
    lines = [
        f'<a id="{r["key"]}"></a>',
        f"## {r['title']}",
        "",
        f"{r['about'][0].upper()}{r['about'][1:]}; {r['float']['parameters']:,} parameters"
        + (f", {size:,} bytes as float32" if size else "")
        + f". The float network reaches {trained}.",
        "",
        _row(
            [
                "file",
                "converts",
                "stays float",
                "largest",
                "mean",
                "top-1",
                "counted",
                "score",
                "GPU",
                "bytes",
                "latency",
            ]
        ),
        _row(["---", "---", "---", *["--:"] * 6, "---", "--:", "--:"]),
    ]
    notes = []
    for key, name in ROWS:
        row = r["rows"][key]
        lines.append(_row([name, *_cells(row), _gpu(row), _bytes(row, r), _latency(r, key)]))
        notes += [f"- {name}: {note}" for note in _notes(row)]
    for key, name in STOCK:
        row = r["stock"][key]
        lines.append(_row([f"*{name}*", *_cells(row), "", _bytes(row, r), ""]))
        notes += [f"- {name}: {note}" for note in _notes(row)]
    return [*lines, *([""] if notes else []), *notes, ""]


def _cells(row: dict) -> list[str]:
    if not row.get("converts"):
        return ["no" if row.get("converts") is False else "-", *[""] * 7]
    return [
        "yes", _floats(row), _largest(row), _mean(row), _percent(row.get("within one"), 2), _percent(row["agreement"]), _percent(row["counted"]),
        f"{100 * row['score']:.1f} %",
    ]  # fmt: skip


def _notes(row: dict) -> list[str]:
    if not row.get("converts"):
        return [row["reason"]] if row.get("reason") else []
    notes = list(row.get("fall-backs", []))
    if row.get("calibrated"):
        notes.append(f"range by calibration, not trained: {', '.join(row['calibrated'][:8])}"
                     + (f" and {len(row['calibrated']) - 8} more" if len(row["calibrated"]) > 8 else ""))  # fmt: skip
    notes += [note for note in row.get("notes", []) if "by calibration instead" in note][:3]
    if row.get("gpu reasons"):
        notes.append("GPU delegate: " + "; ".join(row["gpu reasons"]))
    return notes


def _short(row: dict) -> str:
    if not row.get("converts"):
        return "fails" if row.get("converts") is False else "-"
    both = f"{_largest(row)} / {_mean(row)}" if row["largest"] is not None else _largest(row)
    return both + (f", {_percent(row['agreement'])}" if row["agreement"] is not None else "")


def _largest(row: dict) -> str:
    return f"{row['largest']:.1f}" if row["largest"] is not None else f"{100 * row['relative']:.2g} %"


def _mean(row: dict) -> str:
    return f"{row['mean']:.2f}" if row["mean"] is not None else ""


def _percent(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{100 * value:.{digits}f} %"


def _floats(row: dict) -> str:
    if not row.get("converts"):
        return ""
    if row.get("holds") in ("float32", "float16", "dynamic"):
        return "all"
    return ", ".join(f"{n} {kind}" for kind, n in row["float"].items()) or "none"


def _gpu(row: dict) -> str:
    return "" if row.get("gpu") is None else "yes" if row["gpu"] else "no"


def _bytes(row: dict, r: dict) -> str:
    whole = r["rows"]["float32"].get("bytes")
    if not row.get("converts"):
        return ""
    return f"{row['bytes']:,}" + (f" ({100 * row['bytes'] / whole:.0f} %)" if whole else "")


def _latency(r: dict, key: str) -> str:
    one = r["latency"].get(key)
    return f"{one['ratio']:.2f} [{one['low']:.2f}, {one['high']:.2f}]" if one else ""


def _row(cells) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
