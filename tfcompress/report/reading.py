"""Reading what `tfcompress.export` and `tfcompress.codecs` report about a file, as figures of a report's row."""

import pathlib
from typing import Any

from tfcompress.errors import CompressionError
from tfcompress.report.rows import Verification


def from_export(export: Any) -> dict[str, Any]:
    """The figures of a row that an export gives: file, its bytes, its multiply-accumulates, verification and notes.

    Args:
        export: an `ExportReport` or a `VerifyReport`, or the dictionary that its `to_dict` gives.
    """
    data = _dictionary(export)
    try:
        checked = data["verification"] if "precision" in data else data
        figures: dict[str, Any] = {"file": pathlib.Path(data["path"]).name, "file_bytes": data["size"]}
        figures["notes"] = (*data.get("fallbacks", ()), *data.get("notes", ()))
        if checked is not None:
            figures["macs"] = checked["census"]["macs"] or None
            figures["verification"] = verification(checked)
        return figures
    except (KeyError, TypeError) as error:
        raise CompressionError(f"This is no report of an export: {error!r} is missing or of another type.") from error


def from_pack(pack: Any) -> dict[str, Any]:
    """The figures of a row that packing gives: the bytes of the .tfcz.

    Args:
        pack: a `PackReport`, or the dictionary that its `to_dict` gives.
    """
    data = _dictionary(pack)
    if not isinstance(data.get("file_bytes"), int):
        raise CompressionError("This is no report of packing: it has no `file_bytes`.")
    return {"packed_bytes": data["file_bytes"]}


def verification(checked: dict[str, Any]) -> Verification:
    """A `VerifyReport` (as a dictionary) in the words of a report.

    It passed when a runtime runs the file and the target's rules allow it; a file that answers with something else than
    what was trained is not written in the first place.
    """
    census, runs, refusals = checked["census"], checked["runs"], checked["target"]["refusals"]
    figures: dict[str, Any] = {
        "compared with": f"{checked['compared_with']} on {checked['samples']} samples",
        "run by": checked["runtime"],
        "with XNNPACK, without": ", ".join(f"{name}: {outcome}" for name, outcome in runs.items()),
    }
    for output in checked["outputs"]:
        name = f"{output['name']}: " if len(checked["outputs"]) > 1 else ""
        figures[f"{name}largest error"] = f"{output['largest']:.3g} ({output['relative']:.2%} of the output's range)"
        if output["largest_steps"] is not None:
            figures[f"{name}largest error in output steps"] = round(output["largest_steps"], 3)
            figures[f"{name}outputs within one step"] = f"{output['within_one']:.2%}"
        if output["agreement"] is not None:
            figures[f"{name}top-1 agreement"] = f"{output['agreement']:.2%}"
    if census["macs"]:
        figures["multiply-accumulates on integers"] = f"{census['integer_share']:.1%}"
    for kind, number in checked["read_back"].items():
        if number:
            figures[f"{kind} read back as trained"] = number
    gpu = checked["gpu"]["compatible"]
    figures["GPU delegate"] = (
        "not checked" if gpu is None else "compatible" if gpu else "; ".join(checked["gpu"]["reasons"])
    )
    floats = [
        f"{one['kind']} stays float" + (f" (layer {one['layer']})" if one["layer"] else "") + _share(one, census)
        for one in census["float_operators"]
    ]
    return Verification(
        passed="ok" in runs.values() and not refusals,
        figures=figures,
        operators=dict(census["operators"]),
        warnings=(*refusals, *floats, *checked["warnings"]),
    )


def _share(operator: dict[str, Any], census: dict[str, Any]) -> str:
    return f": {operator['macs'] / census['macs']:.1%} of the multiply-accumulates" if census["macs"] else ""


def _dictionary(report: Any) -> dict[str, Any]:
    data = report.to_dict() if hasattr(report, "to_dict") else report
    if not isinstance(data, dict):
        raise CompressionError(
            f"Expected a report or the dictionary that its to_dict gives; received {type(data).__name__}."
        )
    return data
