"""What the benchmark programs print, the verdicts on it (case C32), and text that was damaged."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from android_bench import judge, logs, parsers
from android_bench.errors import BenchError

LOGS = [
    "benchmark_model_cpu.txt",
    "benchmark_model_gpu.txt",
    "benchmark_model_gpu_partial.txt",
    "benchmark_model_gpu_none.txt",
    "benchmark_model_throttled.txt",
    "benchmark_apk_debug.txt",
    "benchmark_model_litert.txt",
    "benchmark_litert_model_stdout.txt",
]
TABLES = ["op_profile_f32.txt", "op_profile_int8.txt"]


def test_cpu_log(sample):
    (run,) = parsers.parse(sample("benchmark_model_cpu.txt"))
    assert run.dialect == "tflite"
    assert (run.warmup.count, run.warmup.median) == (87, 5702)
    assert run.run == parsers.Counts(174, 5702, 5604, 6377, 5731.06, 92, 5631, 5709, 5902)
    assert (run.init_us, run.first_us) == (12418, 8123)
    assert run.peak_bytes == round(17.832 * 2**20)
    assert "sampled" in run.memory_kind
    assert run.delegations["xnnpack"].outcome == "complete"
    assert run.debug is None


def test_old_build_prints_no_percentiles(sample):
    (run,) = parsers.parse(sample("benchmark_model_gpu.txt"))
    assert run.asked == ["gpu"]
    assert (run.run.avg, run.run.median, run.run.p95) == (7320.71, None, None)
    record = logs.read(sample("benchmark_model_gpu.txt"))
    latency = record.cases[0]["latency"]
    assert (latency["median_ms"], latency["mean_ms"], latency["intervals"]) == (None, pytest.approx(7.32071), {})
    assert "mean-only" in [flag["code"] for flag in record.cases[0]["flags"]]


def test_partial_delegation_is_reported(sample):
    (run,) = parsers.parse(sample("benchmark_model_gpu_partial.txt"))
    assert run.delegations["gpu"] == judge.Delegation("partial", partitions=3)
    record = logs.read(sample("benchmark_model_gpu_partial.txt"))
    assert record.cases[0]["status"] == "ok"
    assert record.cases[0]["flags"][0]["code"] == "partly-delegated"


def test_both_litert_forms(sample):
    (cpp,) = parsers.parse(sample("benchmark_model_litert.txt"))
    assert cpp.dialect == "litert"
    assert (cpp.run.count, cpp.run.avg, cpp.run.min, cpp.run.median) == (60, 16880, 16110, None)
    assert cpp.init_us == pytest.approx(845310)
    assert cpp.peak_bytes == round(92.51 * 2**20)
    (python,) = parsers.parse(sample("benchmark_litert_model_stdout.txt"))
    assert (python.run.count, python.run.median, python.run.p95) == (20, 210, 680)
    assert python.delegations["any"].outcome == "complete"


def test_litert_json(sample):
    text = sample("benchmark_litert_model_result.json")
    run = parsers.parse_litert_json(text)
    truth = json.loads(text)["latency"]
    assert run.run.median == truth["median_ms"] * 1000
    assert run.run.count == truth["num_runs"]
    assert run.asked == ["cpu"]
    for broken in ("", "[]", "{}", '{"latency": 3}', text.replace("50", '"x"')):
        assert parsers.parse_litert_json(broken) is None


@pytest.mark.parametrize(
    ("line", "nodes", "of", "partitions"),
    [
        ("Replacing 28 out of 31 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 2 partitions.", 28, 31, 2),
        (
            "VERBOSE: Replacing 31 of 31 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 1 partition",
            31,
            31,
            1,
        ),
        ("I tflite: Replacing 0 out of 31 node(s) with delegate (TfLiteGpuDelegateV2) node", 0, 31, None),
    ],
)
def test_number_of_delegated_nodes(line, nodes, of, partitions):
    (run,) = parsers.parse(f"Min num runs: [1]\n{line}\ncount=3 curr=5")
    found = run.delegations["gpu"]
    assert (found.nodes, found.of, found.partitions) == (nodes, of, partitions)


def test_lines_of_the_tables_are_no_latency(sample):
    for name in TABLES:
        assert all(parsers.counts(line) is None for line in sample(name).splitlines())


def test_counts_of_equal_and_empty_runs():
    assert parsers.counts("count=7 curr=250") == parsers.Counts(7, 250, 250, 250, 250, 0, 250, 250, 250)
    assert parsers.counts("count=0").count == 0
    assert parsers.counts("account=7 x") is None
    assert parsers.counts("count=2 avg=1e400 min=1") == parsers.Counts(2, min=1)


def test_processes_of_one_log_stay_apart(sample):
    runs = parsers.parse(sample("benchmark_model_throttled.txt"))
    assert [run.run.median for run in runs] == [5702, 5688, 5711, 6020, 6630, 7180, 7890, 7990, 8010]
    assert all(run.warmup.count == 80 for run in runs)
    without_banner = sample("benchmark_model_throttled.txt").replace("STARTING!", "")
    assert [run.run.median for run in parsers.parse(without_banner)] == [run.run.median for run in runs]


def test_dialects():
    assert parsers.dialect("nothing of the kind") is None
    assert parsers.dialect("--use_xnnpack\t--enable_op_profiling") == "tflite"
    assert parsers.dialect("--require_full_delegation --use_npu") == "litert"


def test_latency_is_never_taken_from_a_profiled_run(sample):
    case = logs.read(sample("benchmark_model_cpu.txt") + sample("op_profile_int8.txt")).cases[0]
    assert (case["status"], case["latency"]) == ("refused", None)
    assert "profiled" in case["reason"]
    assert [row["kind"] for row in case["profile"]["operators"]] == ["delegate"] * 10 + ["operator"]


def test_the_json_of_litert_is_read_like_a_log(sample):
    record = logs.read(sample("benchmark_litert_model_result.json"))
    assert record.cases[0]["latency"]["median_ms"] == pytest.approx(0.22)
    assert record.device["harness"] == "benchmark_model of LiteRT"


@pytest.mark.parametrize("name", TABLES)
def test_profile_table_against_the_totals_that_the_same_text_prints(sample, name):
    text = sample(name)
    rows = parsers.profile_table(text)
    observed = int(text.rsplit(" nodes observed", 1)[0].split()[-1])
    assert len(rows) == observed
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-3)
    # The summary by type is another table of the same run.
    convolutions = [row for row in rows if "Convolution" in row["name"] and "IGEMM" in row["name"]]
    summary = next(line for line in text.split("Summary by node type")[1].splitlines() if "IGEMM" in line)
    assert len(convolutions) == 2
    assert f"{100 * sum(row['share'] for row in convolutions):.3f}%" in summary
    assert {row["kind"] for row in rows} <= {"delegate", "operator"}


def test_profile_table_finds_columns_by_header(sample):
    """Older releases had neither [mem KB] nor the same order."""
    old = (
        "===== Run Order =====\n\t             [node type]\t          [start]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]"
        "\t[times called]\t[Name]\n"
        "\t         CONV_2D\t            0.000\t    4.269\t    4.182\t 41.500%\t 41.500%\t        7\t[Net/conv]:3\n\n"
    )
    (row,) = parsers.profile_table(old)
    assert (row["name"], row["calls"], row["mean_us"], row["share"]) == ("CONV_2D", 7, 4182.0, 0.415)


def test_c32_gpu_without_a_node_is_a_failed_run(sample):
    record = logs.read(sample("benchmark_model_gpu_none.txt"), accelerator="gpu")
    case = record.cases[0]
    assert case["status"] == "failed"
    assert "0 of 31 nodes" in case["reason"]
    assert case["delegated"] == {"nodes": 0, "of": 31, "partitions": 0}
    assert case["latency"] is None
    assert not record.ok


def test_c32_gpu_is_recognized_from_the_log_itself(sample):
    assert logs.read(sample("benchmark_model_gpu_none.txt")).cases[0]["status"] == "failed"


def test_c32_gpu_asked_for_but_never_mentioned_is_a_failed_run(sample):
    case = logs.read(sample("benchmark_model_cpu.txt"), accelerator="gpu").cases[0]
    assert case["status"] == "failed"
    assert "nothing says that a delegate took any node" in case["reason"]


def test_c32_throttling_by_40_percent_is_flagged(sample):
    record = logs.read(sample("benchmark_model_throttled.txt"))
    case = record.cases[0]
    assert (case["status"], record.ok) == ("ok", True)
    (flag,) = [flag for flag in case["flags"] if flag["code"] == "throttled"]
    assert "40 %" in flag["why"]
    assert case["latency"]["processes"] == 9
    assert case["latency"]["median_ms"] == pytest.approx(6.63)


def test_c32_steady_log_is_not_flagged_as_throttled():
    assert judge.throttled([10, 10.2, 9.9, 10.1, 10, 11]) == []
    assert judge.throttled([14, 12, 10]) == []


def test_c32_debug_build_is_refused(sample):
    case = logs.read(sample("benchmark_apk_debug.txt")).cases[0]
    assert case["status"] == "refused"
    assert "DEBUGGABLE" in case["reason"]
    assert case["latency"] is None


@pytest.mark.parametrize(
    "line",
    [
        "***WARNING*** Library was built as DEBUG. Timings may be affected.",
        "==411==AddressSanitizer: libc interceptors initialized",
        "compilation_mode: dbg",
        "Build type: Debug",
    ],
)
def test_c32_other_signs_of_a_debug_build(sample, line):
    assert logs.read(f"{line}\n{sample('benchmark_model_cpu.txt')}").cases[0]["status"] == "refused"


def test_a_process_that_printed_nothing_fails_the_log(sample):
    text = sample("benchmark_model_cpu.txt")
    cut = text[: text.index("INFO: Running benchmark for at least 50")]
    case = logs.read(f"{text}\nINFO: STARTING!\n{cut.replace('count=87', 'count=0')}").cases[0]
    assert (case["status"], case["reason"]) == ("failed", "process 2 of 2 printed no timed run")


def test_text_of_no_benchmark_program_is_refused():
    with pytest.raises(BenchError, match="no output of a benchmark program"):
        logs.read("hello\nworld", name="a.txt")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_text_never_crashes_a_parser(sample, data):
    text = sample(data.draw(st.sampled_from(LOGS + TABLES)))
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 40)))
        text = text[:start] + data.draw(st.text(max_size=12)) + text[end:]
    parsers.profile_table(text)
    parsers.parse_litert_json(text)
    runs = parsers.parse(text)
    if runs:
        record = logs.read(text)
        assert type(record).from_json(record.to_json()).cases[0]["status"] in ("ok", "failed", "refused")
    else:
        with pytest.raises(BenchError):
            logs.read(text)
