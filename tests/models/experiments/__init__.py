"""Experiments for the tests of the harness."""
