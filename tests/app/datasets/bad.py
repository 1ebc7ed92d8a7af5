"""The bad-input matrix, rows 30 to 46, by number: how to make each dataset, and what is said of it.

Refused in a dry run, in inspect and in a job, each by the code and with all the words given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.app.datasets.make import SECOND, START_S, table, write

# Small enough that one page of 12 MiB is too large.
SMALL_BUDGET = 32 * 2**20

# Each writes set/bad.parquet below the root, some set/good.parquet beside it.


def raw(content: bytes) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        write(root, "set/good.parquet", table(200))
        (root / "set/bad.parquet").write_bytes(content)

    return make


def damaged(damage: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A file of two row groups of 20 kB: time, label, a, b."""

    def make(root: Path) -> None:
        options: dict[str, Any] = {"use_dictionary": False, "compression": "none", "row_group_size": 1000}
        whole = write(root, "spare/a.parquet", table(2000), **options)
        (root / "set").mkdir()
        (root / "set/bad.parquet").write_bytes(damage(whole.read_bytes()))

    return make


def flipped(content: bytes) -> bytes:
    return content[:2000] + bytes([content[2000] ^ 1]) + content[2001:]


def bad(**columns: Any) -> Callable[[Path], None]:
    return lambda root: (write(root, "set/bad.parquet", table(200, **columns)), None)[1]


def beside(start_s: int = START_S + 200, **columns: Any) -> Callable[[Path], None]:
    """A file like the good one but for some columns."""

    def make(root: Path) -> None:
        write(root, "set/good.parquet", table(200))
        write(root, "set/bad.parquet", table(200, start_s=start_s, **columns))

    return make


def empty(root: Path) -> None:
    write(root, "set/bad.parquet", table(0))


def nothing(root: Path) -> None:
    (root / "set").mkdir()


def named(*names: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        rows = table(200)
        for name in names:
            rows = rows.append_column(name, pa.array([1] * 200))
        write(root, "set/bad.parquet", rows)

    return make


def one_page(root: Path) -> None:
    """A row group whose features are one page of 12 MiB."""
    rows = table(6144, features=pa.array([bytes(2048)] * 6144, pa.binary(2048)))
    options: dict[str, Any] = {"data_page_size": 2**30, "use_dictionary": False, "compression": "zstd"}
    write(root, "set/bad.parquet", rows, metadata={"dtype": "float32", "shape": [4, 128]}, **options)


def bomb(root: Path) -> None:
    """A million rows of 4 KiB in a few hundred kilobytes."""
    rows = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(1_000_000, np.int32)), pa.array([bytes(4096)], pa.binary(4096))
    )
    same = np.full(1_000_000, START_S * SECOND)
    columns = {
        "timestamp": pa.array(same, pa.timestamp("ns")),
        "label": pa.array(np.zeros(1_000_000, np.int8)),
        "features": rows,
    }
    write(
        root,
        "set/bad.parquet",
        pa.table(columns),
        metadata={"dtype": "float32", "shape": [8, 128]},
        write_statistics=False,
    )


def codec_of(column: str) -> Callable[[Path], None]:
    """A file that says a column is compressed with LZO."""

    def make(root: Path) -> None:
        path = write(root, "set/bad.parquet", table(200), compression="none")
        content, name = path.read_bytes(), column.encode()
        # Thrift: a list of one text, then field 4, the codec: 0 none, 3 LZO (zigzag 6).
        said = b"\x19\x18" + bytes([len(name)]) + name + b"\x15"
        assert content.count(said + b"\x00") == 1
        path.write_bytes(content.replace(said + b"\x00", said + b"\x06"))

    return make


def encrypted(root: Path) -> None:
    pe = pytest.importorskip("pyarrow.parquet.encryption")

    class Kms(pe.KmsClient):  # type: ignore[name-defined,misc]
        def wrap_key(self, key: bytes, _: str) -> bytes:
            return key

        def unwrap_key(self, key: bytes, _: str) -> bytes:
            return bytes(key)

    factory = pe.CryptoFactory(lambda _: Kms())
    how = pe.EncryptionConfiguration(footer_key="k", column_keys={"k": ["timestamp"]}, plaintext_footer=True)
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), how)
    write(root, "set/bad.parquet", table(200), encryption_properties=properties)


def lists(length: int, *, of: int = 2) -> Any:
    """Lists of `of` numbers, but for row 57: so many there that a page of a few bytes unpacks to memory."""
    lengths = [length if row == 57 else of for row in range(200)]
    values = pa.array(np.zeros(sum(lengths), np.int8))
    return pa.LargeListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)])), values)


def seconds(*special: tuple[int, int | None], unit: str = "s") -> Any:
    values: list[int | None] = [START_S + row for row in range(200)]
    for row, value in special:
        values[row] = value
    return pa.array(values, pa.timestamp(unit) if unit != "plain" else pa.int64())


def labels(value: Any, kind: Any = None) -> Any:
    values = [row % 4 for row in range(200)]
    values[57] = value
    return pa.array(values, kind or pa.int16())


REFUSED: dict[str, tuple[Callable[[Path], None], dict[str, Any], str, list[str]]] = {
    "30 zero bytes": (raw(b""), {}, "not_parquet", ["set/bad.parquet", "empty"]),
    "30 four bytes": (raw(b"abcd"), {}, "not_parquet", ["set/bad.parquet"]),
    "30 text": (raw(b"time,price\n" * 40), {}, "not_parquet", ["set/bad.parquet", "b'time'"]),
    "30 a made-up footer": (
        raw(b"PAR1" + b"z" * 60 + (40).to_bytes(4, "little") + b"PAR1"),
        {},
        "not_parquet",
        ["set/bad.parquet"],
    ),
    "30 a footer longer than the file": (
        damaged(lambda good: good[:-8] + b"\xff\xff\xff\x7fPAR1"),
        {},
        "not_parquet",
        ["set/bad.parquet", "2,147,483,647 bytes"],
    ),
    "31 cut short": (damaged(lambda good: good[: len(good) // 2]), {}, "truncated", ["set/bad.parquet"]),
    "32 a flipped byte": (damaged(flipped), {}, "corrupt_file", ["set/bad.parquet", "checksum"]),
    "33 no rows": (empty, {}, "no_rows", ["'set'"]),
    "33 no files": (nothing, {}, "no_files", ["'set'", "GET /datasets"]),
    "33 an empty glob": (nothing, {"path": "set/*.parquet"}, "no_files", ["set/*.parquet"]),
    "34 a column missing": (bad(label=None), {}, "schema_mismatch", ["'label'", "data.label"]),
    "34 a wrong type": (bad(timestamp=pa.array(["x"] * 200)), {}, "schema_mismatch", ["expected a time"]),
    "34 lists of another length than the shape": (
        bad(features=pa.array([[0.5] * 4] * 200, pa.list_(pa.float32(), 4))),
        {"shape": [2, 3]},
        "schema_mismatch",
        ["4 elements", "data.shape"],
    ),
    "35 a type differs": (
        beside(b=pa.array([1.0] * 200)),
        {},
        "schema_mismatch",
        ["set/bad.parquet", "set/good.parquet", "'b' is"],
    ),
    "35 a column too many": (
        beside(c=pa.array([1] * 200)),
        {},
        "schema_mismatch",
        ["set/bad.parquet", "'c' is"],
    ),
    "36 a name twice": (named("x", "x"), {}, "bad_column_name", ["appears twice"]),
    "36 no name": (named(""), {}, "bad_column_name", ["is empty"]),
    "36 a dot in a name": (named("a.b"), {}, "bad_column_name", ["'a.b'"]),
    "36 a terminal code as a name": (named("\x1b[31m"), {}, "bad_column_name", ["cannot be printed"]),
    "36 a name of 10 kB": (named("n" * 10_000), {}, "bad_column_name", ["longer than 256"]),
    "37 back in time": (
        bad(timestamp=seconds((57, START_S + 3))),
        {},
        "not_chronological",
        ["set/bad.parquet, row 57", "2023-11-14T22:13:23Z comes after 2023-11-14T22:14:16Z"],
    ),
    "38 files overlap": (
        beside(start_s=START_S + 100),
        {},
        "files_overlap",
        ["set/good.parquet", "set/bad.parquet"],
    ),
    "40 a time missing": (bad(timestamp=seconds((57, None))), {}, "bad_timestamp", ["row 57"]),
    "40 before 1970": (bad(timestamp=seconds((0, -5))), {}, "bad_timestamp", ["row 0", "before 1970"]),
    "40 two units": (
        bad(timestamp=seconds((57, (START_S + 57) * 1000), unit="plain")),
        {},
        "bad_timestamp",
        ["row 57", "looks like ms; others are s"],
    ),
    "40 two time zones": (
        beside(timestamp=pa.array((START_S + 200 + np.arange(200)) * SECOND, pa.timestamp("ns"))),
        {},
        "bad_timestamp",
        ["set/bad.parquet", "time zone"],
    ),
    "40 two units in two files": (
        beside(timestamp=pa.array((START_S + 200 + np.arange(200)) * 1000, pa.timestamp("ms", tz="UTC"))),
        {},
        "bad_timestamp",
        ["timestamp[ms, tz=UTC] in set/bad.parquet", "timestamp[ns, tz=UTC] in set/good.parquet"],
    ),
    "40 plain integers of two units in two files": (
        lambda root: (
            beside(timestamp=pa.array((START_S + 200 + np.arange(200)) * 1000))(root),
            write(root, "set/good.parquet", table(200, timestamp=seconds(unit="plain"))),
        )[0],
        {},
        "bad_timestamp",
        ["counts ms in", "set/bad.parquet", "but s in"],
    ),
    "40 the year 9999": (
        bad(timestamp=seconds((199, 253402300799))),
        {},
        "bad_timestamp",
        ["row 199", "2262"],
    ),
    "42 a label too large": (bad(label=labels(999)), {}, "label_out_of_range", ["row 57 is 999", "0: 50"]),
    "42 a label missing": (bad(label=labels(None)), {}, "label_out_of_range", ["row 57 is missing"]),
    "42 a label below 0": (bad(label=labels(-3)), {}, "label_out_of_range", ["row 57 is -3"]),
    "42 float labels": (bad(label=labels(1.0, pa.float32())), {}, "label_out_of_range", ["float"]),
    "43 a page larger than memory": (
        one_page,
        {"features": "features"},
        "row_group_too_large",
        ["set/bad.parquet, row group 0", "'features' unpacks to 12 MiB", "data_page_size"],
    ),
    "45 a decompression bomb": (
        bomb,
        {"features": "features"},
        "row_group_too_large",
        ["set/bad.parquet", "1,000,000 rows", "GiB when decoded"],
    ),
    "45 a list that unpacks to memory": (
        bad(features=lists(20_000_000)),
        {"shape": [2]},
        "schema_mismatch",
        ["set/bad.parquet, row group 0", "20,000,398 elements in 200 rows", "data.shape"],
    ),
    "45 a list that unpacks to memory, without a shape": (
        bad(features=lists(20_000_000)),
        {},
        "row_group_too_large",
        ["set/bad.parquet, row group 0", "20,000,398 elements in 200 rows", "data.shape"],
    ),
    "46 encrypted columns": (encrypted, {}, "unsupported_feature", ["set/bad.parquet", "encrypted"]),
    "46 an unknown codec of the label": (
        codec_of("label"),
        {},
        "unsupported_feature",
        ["set/bad.parquet", "zstd"],
    ),
    "46 an unknown codec of a feature": (codec_of("b"), {}, "unsupported_feature", ["set/bad.parquet"]),
    "46 nested lists": (
        bad(features=pa.array([[[1.0]]] * 200)),
        {},
        "unsupported_feature",
        ["nested", "data.shape"],
    ),
    "46 an extension type": (
        bad(features=pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"\0" * 16] * 200, pa.binary(16)))),
        {"shape": [4]},
        "unsupported_feature",
        ["features"],
    ),
}


ONLY_FEATURES: dict[str, tuple[Callable[[Path], None], dict[str, Any], str, list[str]]] = {
    "32 a flipped byte of a feature": (
        damaged(lambda good: good[:34_000] + bytes([good[34_000] ^ 1]) + good[34_001:]),
        {},
        "corrupt_file",
        ["set/bad.parquet", "checksum"],
    ),
    "34 a feature missing": (
        bad(a=pa.array([None if row == 57 else 1.0 for row in range(200)], pa.float32())),
        {},
        "schema_mismatch",
        ["set/bad.parquet, row 57", "'a' is missing"],
    ),
    "34 a list missing": (
        bad(features=pa.array([None if row == 57 else [1.0, 2.0] for row in range(200)])),
        {},
        "schema_mismatch",
        ["row 57"],
    ),
    "34 an element missing": (
        bad(features=pa.array([[1.0, None if row == 57 else 2.0] for row in range(200)])),
        {},
        "schema_mismatch",
        ["row 57", "element 1 is missing"],
    ),
    "34 a list too long": (
        bad(features=pa.array([[1.0] * (3 if row == 57 else 2) for row in range(200)])),
        {},
        "schema_mismatch",
        ["row 57", "3 elements, expected 2"],
    ),
    "41 not a number": (
        bad(a=pa.array([np.nan if row == 57 else row for row in range(200)], pa.float32())),
        {},
        "non_finite",
        ["set/bad.parquet, row 57: a is nan", "1 values are not: a 1", "data.non_finite"],
    ),
    "41 infinite": (
        bad(a=pa.array([np.inf if row > 150 else row for row in range(200)], pa.float16())),
        {},
        "non_finite",
        ["row 151: a is inf", "a 49"],
    ),
    "41 beyond float32": (
        bad(a=pa.array([1e300 if row == 57 else row for row in range(200)], pa.float64())),
        {},
        "non_finite",
        ["row 57: a is 1e+300"],
    ),
}


WARNED: dict[str, tuple[Callable[[Path], None], str, list[str]]] = {
    "32 no page checksums": (
        lambda root: (write(root, "set/a.parquet", table(200), write_page_checksum=False), None)[1],
        "no_page_checksums",
        ["set/a.parquet", "write_page_checksum=True"],
    ),
    "41 beyond float16": (
        bad(a=pa.array(np.arange(200) * 1000.0, pa.float32())),
        "beyond_float16",
        ["1 feature(s)", "largest a with 1.99e+05", "fp16"],
    ),
    "42 one class": (bad(label=pa.array([0] * 200)), "single_class", ["class 0"]),
    "42 a class missing from train": (
        bad(label=pa.array([0, 1] * 90 + [2] * 20)),
        "class_missing_from_train",
        ["class 2"],
    ),
    "44 tiny row groups": (
        lambda root: (write(root, "set/a.parquet", table(1500), row_group_size=1), None)[1],
        "tiny_row_groups",
        ["1,500 row groups", "s more for every pass"],
    ),
    "constant features": (
        bad(b=pa.array([3.0] * 200, pa.float32())),
        "constant_features",
        ["1 of 2 features never change: b"],
    ),
    "scales apart": (
        bad(b=pa.array(np.sin(np.arange(200)) / 1000, pa.float32())),
        "scales_differ",
        ["a varies by 57.7", "b by 0.000706"],
    ),
}
