"""The script that makes the fixtures runs in an environment of its own."""

collect_ignore = ["fixtures/make.py"]
