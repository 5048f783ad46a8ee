#!/usr/bin/env python
"""Speed and size of the codecs against raw bytes, deflate (what a zip does) and zstandard.

    python tools/bench_codecs.py [--elements 10000000] [--repeat 3] [--json FILE] [--write]

Each tensor is what one family of methods leaves behind; seconds are the best of the repeats, megabytes are those of the
plain array. "entropy" is the zero-order entropy of the elements' bit patterns with each distinct value written once, in
bytes: no coder without context can be smaller (it says nothing where nearly all values differ).
"""

import argparse
import json
import pathlib
import sys
import time
import zlib

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from tfcompress import codecs
from tfcompress.codecs.coding import decode
from tfcompress.codecs.entropy import entropy_bytes


def tensors(n: int) -> dict[str, np.ndarray]:
    """Synthetic weights of n elements each."""
    rng = np.random.default_rng(0)
    dense = (rng.standard_normal(n) * 0.05).astype(np.float32)
    kept = rng.random(n) < 0.1
    shared = rng.standard_normal(16).astype(np.float32)
    return {
        "dense float": dense,
        "90% zeros": np.where(kept, dense, np.float32(0)),
        "90% zeros, 16 values": np.where(kept, rng.choice(shared, n), np.float32(0)),
        "ternary": rng.choice(np.float32([-0.3, 0, 0.3]), n, p=[0.25, 0.5, 0.25]),
        "binary": rng.choice(np.float32([-0.3, 0.3]), n),
        "int8": np.clip(np.rint(dense / 0.05 * 32), -127, 127).astype(np.int8),
    }


def timed(call, repeat: int):
    """(result, best seconds)."""
    best, result = float("inf"), None
    for _ in range(repeat):
        start = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
    return result, best


def rivals():
    """{name: (encode array -> bytes, decode (bytes, array) -> anything)}."""
    import zstandard

    def ours(array):
        coding, data = codecs.smallest(codecs.Tensor(array))
        return bytes([coding.code]) + data

    def zstd(level):
        compressor = zstandard.ZstdCompressor(level=level)
        return lambda array: compressor.compress(array.tobytes())

    return {
        "raw": (lambda a: a.tobytes(), lambda d, a: np.frombuffer(d, a.dtype).copy()),
        "deflate 6": (lambda a: zlib.compress(a.tobytes(), 6), lambda d, a: zlib.decompress(d)),
        "zstd 3": (zstd(3), lambda d, a: zstandard.ZstdDecompressor().decompress(d)),
        "zstd 19": (zstd(19), lambda d, a: zstandard.ZstdDecompressor().decompress(d)),
        "tfcompress": (ours, lambda d, a: decode(d[0], d[1:], a.shape, a.dtype)),
    }


def measure(n: int, repeat: int) -> list[dict]:
    """One row for each tensor and coder."""
    rows = []
    for name, array in tensors(n).items():
        values, counts = np.unique(array, return_counts=True)
        floor = entropy_bytes(counts) + values.nbytes if values.size < n // 4 else None
        for coder, (encode, back) in rivals().items():
            # The slow rivals are slow enough to be timed once.
            data, seconds = timed(lambda encode=encode, array=array: encode(array), 1 if "1" in coder else repeat)
            _, again = timed(lambda back=back, data=data, array=array: back(data, array), repeat)
            rows.append(
                {
                    "tensor": name,
                    "coder": coder,
                    "bytes": len(data),
                    "ratio": array.nbytes / len(data),
                    "entropy_bytes": floor,
                    "encode_seconds": seconds,
                    "decode_seconds": again,
                    "encode_mb_per_second": array.nbytes / seconds / 1e6,
                    "decode_mb_per_second": array.nbytes / again / 1e6,
                }
            )
            print(line(rows[-1]), flush=True)
    return rows


HEAD = (
    f"{'tensor':22} {'coder':11} {'bytes':>12} {'ratio':>7} {'of entropy':>10} {'encode MB/s':>12} {'decode MB/s':>12}"
)


def line(row: dict) -> str:
    """A row of the table."""
    share = f"{row['bytes'] / row['entropy_bytes']:.3f}" if row["entropy_bytes"] else "-"
    return (
        f"{row['tensor']:22} {row['coder']:11} {row['bytes']:>12,} {row['ratio']:>7.2f} {share:>10} "
        f"{row['encode_mb_per_second']:>12.1f} {row['decode_mb_per_second']:>12.1f}"
    )


def markdown(rows: list[dict]) -> str:
    """The table for docs/performance.md."""
    lines = [
        "| tensor | coder | bytes | ratio | of entropy | encode MB/s | decode MB/s |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        share = f"{row['bytes'] / row['entropy_bytes']:.3f}" if row["entropy_bytes"] else "-"
        lines.append(
            f"| {row['tensor']} | {row['coder']} | {row['bytes']:,} | {row['ratio']:.2f} | {share} | "
            f"{row['encode_mb_per_second']:.0f} | {row['decode_mb_per_second']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the arguments, print the table, write the JSON and with --write the section of docs/performance.md."""
    from bench_training import write

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=10_000_000, help="of each tensor (default: 10,000,000)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of which the fastest counts (default: 3)")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the rows to")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md")
    arguments = parser.parse_args()
    if arguments.elements < 1 or arguments.repeat < 1:
        parser.error("--elements and --repeat have to be at least 1")
    print(HEAD)
    rows = measure(arguments.elements, arguments.repeat)
    if arguments.json:
        arguments.json.write_text(json.dumps({"elements": arguments.elements, "rows": rows}, indent=1) + "\n")
    if arguments.write:
        write(f"{arguments.elements:,} elements a tensor.\n\n{markdown(rows)}", "codecs")


if __name__ == "__main__":
    main()
