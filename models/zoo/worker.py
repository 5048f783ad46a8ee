"""One model's steps in a process of their own: python -m models.zoo.worker KEY --root build/zoo ..."""

import argparse
import json
import pathlib
import sys

from models.experiments import worker as records
from models.zoo import steps
from tfcompress.errors import CompressionError
from tfcompress.files import replacing


def main(arguments=None) -> int:
    """Run the steps that have no record yet; before each, its name goes to standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("key")
    parser.add_argument("--root", type=pathlib.Path, required=True)
    parser.add_argument("--steps", nargs="+", choices=list(steps.STEPS), default=list(steps.STEPS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args(arguments)
    try:
        model = steps.Model(options.key, options.root.resolve(), options.quick)
        for step in options.steps:
            # What the parent reads after a crash.
            model.path("running").write_text(step)
            model.run(step, options.keep, lambda text: print(text, flush=True))
        model.path("running").unlink()
        with replacing(model.path("about.json")) as part:
            about = {"commit": records.commit(), "versions": records.versions(), "machine": records.machine()}
            part.write_text(json.dumps(about, indent=1))
    except CompressionError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
