"""What running a recipe gave: the model, what each step did to it, and the files."""

import dataclasses
import pathlib
from typing import Any


@dataclasses.dataclass
class StepResult:
    """One step that was run.

    Args:
        name: of the method. epochs: that it trained. seconds: that it took. figures: what `evaluate` gave after it, by name.
        accuracy: the one of them that `max_drop` looks at, a share from 0 to 1, or None. done, skipped: how many weights
            or layers the method took and left. reasons: {layer: why it was left}.
    """

    name: str
    epochs: int
    seconds: float
    figures: dict[str, float]
    accuracy: float | None
    done: int
    skipped: int
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Outcome:
    """The result of `Recipe.run`.

    Args:
        recipe: its name. model: the attached model, for more training. plain: the finalized one. metric: what `accuracy`
            is. base: accuracy before the first step. steps: those that were run. kept: how many of them are in `model`.
        stopped: why the recipe did not go on to its end, or "". notes: sentences. files: {kind: path}. export, packed,
            report: the reports of what was written, or None.
    """

    recipe: str
    model: Any
    plain: Any
    metric: str | None
    base: float | None
    steps: list[StepResult]
    kept: int
    stopped: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)
    files: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    export: Any = None
    packed: Any = None
    report: Any = None

    @property
    def accuracy(self) -> float | None:
        """Accuracy of the model."""
        return self.steps[self.kept - 1].accuracy if self.kept else self.base

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        import json

        return {
            "recipe": self.recipe,
            "metric": self.metric,
            "base": self.base,
            "accuracy": self.accuracy,
            "steps": [dataclasses.asdict(step) for step in self.steps],
            "kept": self.kept,
            "stopped": self.stopped,
            "notes": list(self.notes),
            "files": {kind: str(path) for kind, path in self.files.items()},
            "export": self.export.to_dict() if self.export else None,
            "packed": self.packed.to_dict() if self.packed else None,
            "report": json.loads(self.report.to_json()) if self.report else None,
        }
