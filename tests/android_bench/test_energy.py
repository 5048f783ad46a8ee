"""The powercap tree, as folders that look like it."""

import pathlib

import pytest

from android_bench import energy
from android_bench.energy import Zone


def zone(root, folder, name, microjoules, wraps=10_000):
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{wraps}\n")
    return path


def test_no_tree_is_no_meter(tmp_path):
    zones, reason = energy.read_powercap(tmp_path / "absent")
    assert zones == []
    assert reason.startswith("no meter: this machine has no")


def test_packages_are_read_and_their_parts_left_out(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 1500)
    zone(tmp_path, "intel-rapl:0:0", "core", 900)
    zone(tmp_path, "intel-rapl:1", "package-1", 20)
    zone(tmp_path, "intel-rapl:2", "psys", 5000)
    (tmp_path / "intel-rapl").mkdir()
    zones, reason = energy.read_powercap(tmp_path)
    assert reason is None
    assert [(z.name, z.microjoules) for z in zones] == [
        ("intel-rapl:0 package-0", 1500),
        ("intel-rapl:1 package-1", 20),
    ]


def test_damaged_zones_are_no_meter(tmp_path):
    (zone(tmp_path, "intel-rapl:0", "package-0", 1) / "energy_uj").write_text("much")
    assert energy.read_powercap(tmp_path) == ([], f"no meter: {tmp_path} holds no readable package counter")


def test_one_package_for_root_only_is_no_meter(tmp_path, monkeypatch):
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    closed = zone(tmp_path, "intel-rapl:1", "package-1", 1) / "energy_uj"
    plain = pathlib.Path.read_text

    def read_text(self, *args, **kwargs):
        if self == closed:
            raise PermissionError(13, "Permission denied")
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(pathlib.Path, "read_text", read_text)
    zones, reason = energy.read_powercap(tmp_path)
    assert zones == []
    assert "root only" in reason


def test_joules_of_two_packages_with_a_wrap():
    before = [Zone("a", 9_000_000, 10_000_000), Zone("b", 100, 10_000_000)]
    after = [Zone("a", 1_000_000, 10_000_000), Zone("b", 600, 10_000_000)]
    assert energy.joules_between(before, after) == pytest.approx(2.0005)


def test_joules_of_readings_that_do_not_fit():
    assert energy.joules_between([], []) is None
    assert energy.joules_between([Zone("a", 1, 10)], [Zone("b", 2, 10)]) is None
    assert energy.joules_between([Zone("a", 9, 0)], [Zone("a", 2, 0)]) is None


def test_per_inference_is_gross_and_needs_every_block():
    good = [
        {"count": 10, "energy": {"joules": 2.0, "reason": None}},
        {"count": 30, "energy": {"joules": 6.0, "reason": None}},
    ]
    assert energy.per_inference(good)["joules"] == pytest.approx(0.2)
    assert energy.per_inference(good)["kind"].startswith("gross")
    mixed = [good[0], {"count": 5, "energy": {"joules": None, "reason": "no meter: gone"}}]
    assert energy.per_inference(mixed) == {"joules": None, "kind": None, "reason": "no meter: gone"}
    still = [{"count": 10, "energy": {"joules": 0.0, "reason": None}}]
    assert energy.per_inference(still)["reason"] == "the counter did not move during the runs"
    assert energy.per_inference([])["joules"] is None
