"""From data.path and footers to a dataset: columns, features, order, fingerprint, and what is refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.datasets.errors import DataError
from app.datasets.schema import Dataset, Features, open_dataset
from app.jobs.config import DataConfig
from tests.app.datasets.make import START_S, table, write


def opened(root: Path, **fields: Any) -> Dataset:
    return open_dataset(root, DataConfig.model_validate({"path": "set", **fields}))


def refusal(root: Path, **fields: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        opened(root, **fields)
    for problem in caught.value.problems:
        assert str(root.resolve()) not in problem.message
    return caught.value


def codes(warned: Dataset) -> list[str]:
    return [code for code, _ in warned.warnings]


def lists(num_rows: int, length: int, kind: Any) -> Any:
    return pa.array([[0.5] * length] * num_rows, kind)


METADATA = {"version": 1, "dtype": "float32", "shape": [2, 3], "classes": ["down", "up"], "horizon_s": 60}


# Columns


def test_without_a_features_column_every_numeric_column_but_the_roles_is_one(tmp_path: Path) -> None:
    rows = table(
        10,
        label_end=pa.array([START_S] * 10, pa.timestamp("s")),
        sym=pa.array([1] * 10),
        note=pa.array(["x"] * 10),
        n=pa.array([1] * 10, pa.int16()),
    )
    write(tmp_path, "set/a.parquet", rows)
    found = opened(tmp_path, group="sym")
    assert found.features == Features("columns", ("a", "b", "n"), "float32", (3,))
    assert (found.label_end, found.group) == ("label_end", "sym")


def test_a_column_called_features_comes_first(tmp_path: Path) -> None:
    write(tmp_path, "set/a.parquet", table(10, features=lists(10, 6, pa.list_(pa.float16(), 6))))
    assert opened(tmp_path).features == Features("list", ("features",), "float16", (6,))
    assert opened(tmp_path, shape=[2, 3]).features.shape == (2, 3)
    assert opened(tmp_path, features=["b", "a"]).features == Features("columns", ("b", "a"), "float32", (2,))
    assert opened(tmp_path, features="a").features == Features("columns", ("a",), "float32", (1,))


def test_the_length_of_a_plain_list_is_that_of_the_first_row(tmp_path: Path) -> None:
    write(tmp_path, "set/a.parquet", table(10, book=lists(10, 5, pa.list_(pa.float64()))))
    assert opened(tmp_path, features="book").features == Features("list", ("book",), "float64", (5,))
    assert opened(tmp_path, features="book", shape=[5, 1]).features.shape == (5, 1)


def test_fixed_size_binary_takes_its_type_from_the_metadata(tmp_path: Path) -> None:
    column = pa.array([b"\0" * 24] * 10, pa.binary(24))
    write(tmp_path, "set/a.parquet", table(10, features=column), metadata=METADATA)
    found = opened(tmp_path)
    assert found.features == Features("binary", ("features",), "float32", (2, 3))
    assert (found.classes, found.horizon_s) == (("down", "up"), 60.0)
    assert codes(found) == []
    assert opened(tmp_path, horizon_s=5.0, classes=["a", "b"]).horizon_s == 5.0
    assert opened(tmp_path, classes=["a", "b"]).classes == ("a", "b")


@pytest.mark.parametrize(
    ("shape", "dtype"), [([2, 3], "float32"), ([12], "float16"), ([3], "float64")], ids=str
)
def test_fixed_size_binary_takes_its_type_from_the_shape(
    tmp_path: Path, shape: list[int], dtype: str
) -> None:
    write(tmp_path, "set/a.parquet", table(10, features=pa.array([b"\0" * 24] * 10, pa.binary(24))))
    assert opened(tmp_path, shape=shape).features == Features("binary", ("features",), dtype, tuple(shape))


def test_fixed_size_binary_of_unknown_type_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "set/a.parquet", table(10, features=pa.array([b"\0" * 24] * 10, pa.binary(24))))
    assert refusal(tmp_path).problems[0].pointer == "/data/shape"
    assert "no float" in refusal(tmp_path, shape=[5]).message


def test_another_choice_of_features_does_not_take_the_shape_of_the_dataset(tmp_path: Path) -> None:
    rows = table(10, features=pa.array([b"\0" * 24] * 10, pa.binary(24)))
    write(tmp_path, "set/a.parquet", rows, metadata=METADATA)
    assert opened(tmp_path, features=["a", "b"]).features.shape == (2,)


def test_a_horizon_is_missed_only_when_there_is_no_label_end(tmp_path: Path) -> None:
    write(tmp_path, "set/a.parquet", table(10))
    assert codes(opened(tmp_path)) == ["no_horizon"]
    assert codes(opened(tmp_path, horizon_s=0.0)) == []
    write(tmp_path, "set/a.parquet", table(10, known=pa.array([START_S] * 10, pa.timestamp("s"))))
    assert codes(opened(tmp_path, label_end="known")) == []
    assert opened(tmp_path, label_end="known").features.columns == ("a", "b")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_the_unit_of_integer_times_is_detected_and_said(tmp_path: Path, unit: Any) -> None:
    scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    write(
        tmp_path, "set/a.parquet", table(10, timestamp=pa.array([(START_S + i) * scale for i in range(10)]))
    )
    found = opened(tmp_path, horizon_s=1.0)
    assert (found.timestamp_unit, found.is_unit_detected) == (unit, True)
    assert codes(found) == ["timestamp_unit_detected"]


BAD_COLUMNS: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "no timestamp": ({}, {"timestamp": "time"}, "schema_mismatch", "/data/timestamp"),
    "text timestamp": ({"timestamp": pa.array(["x"] * 9)}, {}, "schema_mismatch", "/data/timestamp"),
    "no label": ({"label": None}, {}, "schema_mismatch", "/data/label"),
    "float label": ({"label": pa.array([1.0] * 9)}, {}, "label_out_of_range", "/data/label"),
    "text label": ({"label": pa.array(["up"] * 9)}, {}, "schema_mismatch", "/data/label"),
    "no label_end": ({}, {"label_end": "end"}, "schema_mismatch", "/data/label_end"),
    "float label_end": ({"label_end": pa.array([1.0] * 9)}, {}, "schema_mismatch", "/data/label_end"),
    "no group": ({}, {"group": "sym"}, "schema_mismatch", "/data/group"),
    "float group": ({"sym": pa.array([1.0] * 9)}, {"group": "sym"}, "schema_mismatch", "/data/group"),
    "no features": ({}, {"features": "book"}, "schema_mismatch", "/data/features"),
    "nothing numeric": ({"a": None, "b": None}, {}, "schema_mismatch", "/data/features"),
    "text feature": ({"a": pa.array(["x"] * 9)}, {"features": ["a"]}, "schema_mismatch", "/data/features"),
    "label_end as feature": (
        {"label_end": pa.array([START_S] * 9)},
        {"features": ["a", "label_end"]},
        "schema_mismatch",
        "/data/features",
    ),
    "wrong shape": ({}, {"shape": [3]}, "schema_mismatch", "/data/shape"),
    "wrong list": (
        {"features": lists(9, 4, pa.list_(pa.float32(), 4))},
        {"shape": [3]},
        "schema_mismatch",
        "/data/shape",
    ),
    "list of text": ({"features": pa.array([["x"]] * 9)}, {}, "schema_mismatch", "/data/features"),
    "nested list": ({"features": pa.array([[[1.0]]] * 9)}, {}, "unsupported_feature", "/data/features"),
    "empty list": (
        {"features": pa.array([[]] * 9, pa.list_(pa.float32()))},
        {},
        "schema_mismatch",
        "/data/features",
    ),
}


@pytest.mark.parametrize(("columns", "fields", "code", "pointer"), BAD_COLUMNS.values(), ids=BAD_COLUMNS)
def test_a_column_that_does_not_fit_is_named(
    tmp_path: Path, columns: dict[str, Any], fields: dict[str, Any], code: str, pointer: str
) -> None:
    write(tmp_path, "set/a.parquet", table(9, **columns))
    error = refusal(tmp_path, **fields)
    assert (error.code, error.problems[0].pointer) == (code, pointer)


def test_all_columns_that_do_not_fit_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, "set/a.parquet", table(9))
    found = refusal(tmp_path, timestamp="t", label="l", group="g").problems
    assert [problem.pointer for problem in found] == ["/data/timestamp", "/data/label", "/data/group"]


# Files


def test_files_are_ordered_by_their_first_time_whatever_their_names(tmp_path: Path) -> None:
    for place, name in enumerate(["c", "a", "d", "b"]):
        write(tmp_path, f"set/{name}.parquet", table(10, start_s=START_S + place * 10), row_group_size=3)
    found = opened(tmp_path)
    assert [file.name for file in found.files] == [f"set/{name}.parquet" for name in "cadb"]
    assert found.files[0].row_groups == (3, 3, 3, 1)
    assert found.rows == 40


@pytest.mark.parametrize("is_grouped", [False, True], ids=["plain", "grouped"])
@pytest.mark.parametrize("has_statistics", [False, True], ids=["read", "statistics"])
def test_order_needs_no_statistics(tmp_path: Path, has_statistics: bool, is_grouped: bool) -> None:
    for place, name in enumerate(["b", "a"]):
        rows = table(10, start_s=START_S + place * 10, sym=pa.array(["x"] * 10))
        write(tmp_path, f"set/{name}.parquet", rows, write_statistics=has_statistics)
    found = opened(tmp_path, group="sym" if is_grouped else None)
    assert [file.name for file in found.files] == ["set/b.parquet", "set/a.parquet"]


def test_of_files_with_the_same_first_time_the_one_that_ends_first_comes_first(tmp_path: Path) -> None:
    write(tmp_path, "set/a.parquet", table(3))
    write(tmp_path, "set/b.parquet", table(2, step_s=0), write_statistics=False)
    assert [file.name for file in opened(tmp_path).files] == ["set/b.parquet", "set/a.parquet"]


def test_a_group_may_begin_later_in_a_file_than_its_first_row(tmp_path: Path) -> None:
    late = table(10, start_s=START_S + 500, sym=pa.array(["x"] * 10))
    write(tmp_path, "set/a.parquet", pa.concat_tables([late, table(10, sym=pa.array(["y"] * 10))]))
    write(tmp_path, "set/b.parquet", table(10, start_s=START_S + 100, sym=pa.array(["y"] * 10)))
    assert [file.name for file in opened(tmp_path, group="sym").files] == ["set/a.parquet", "set/b.parquet"]


def test_the_fingerprint_is_that_of_names_sizes_and_footers(tmp_path: Path) -> None:
    lines = []
    for name in ("b", "a"):
        content = write(tmp_path, f"set/{name}.parquet", table(10, start_s=START_S + ord(name))).read_bytes()
        footer = content[-8 - int.from_bytes(content[-8:-4], "little") : -8]
        lines.append(f"set/{name}.parquet\0{len(content)}\0{hashlib.sha256(footer).hexdigest()}\n")
    fields = {"group": None, "features": ["a"]}
    before = opened(tmp_path, path="set/a.parquet", **fields).fingerprint
    assert before == hashlib.sha256(lines[1].encode()).hexdigest()
    os.rename(tmp_path / "set/a.parquet", tmp_path / "set/c.parquet")
    assert opened(tmp_path, path="set/c.parquet", **fields).fingerprint != before
    write(tmp_path, "set/c.parquet", table(10, start_s=START_S + ord("b") + 10))
    together = opened(tmp_path).fingerprint
    write(tmp_path, "set/c.parquet", table(11, start_s=START_S + ord("b") + 10))
    assert opened(tmp_path).fingerprint != together


def test_columns_may_come_in_another_order(tmp_path: Path) -> None:
    write(tmp_path, "set/a.parquet", table(10))
    write(tmp_path, "set/b.parquet", table(10, start_s=START_S + 10).select(["b", "a", "label", "timestamp"]))
    assert opened(tmp_path).features.columns == ("a", "b")


DIFFERENT: dict[str, tuple[dict[str, Any], str, str]] = {
    "extra": ({"c": pa.array([1] * 10)}, "schema_mismatch", "'c' is extra"),
    "missing": ({"b": None}, "schema_mismatch", "'b' is missing"),
    "type": ({"b": pa.array([1.0] * 10)}, "schema_mismatch", "'b' is double instead of float"),
    "time unit": (
        {"timestamp": pa.array(range(10), pa.timestamp("us", "UTC"))},
        "bad_timestamp",
        "timestamp[us",
    ),
    "time zone": ({"timestamp": pa.array(range(10), pa.timestamp("ns"))}, "bad_timestamp", "timestamp[ns]"),
}


@pytest.mark.parametrize(("columns", "code", "words"), DIFFERENT.values(), ids=DIFFERENT)
def test_the_first_file_with_other_columns_is_named_with_the_difference(
    tmp_path: Path, columns: dict[str, Any], code: str, words: str
) -> None:
    write(tmp_path, "set/a.parquet", table(10))
    write(tmp_path, "set/b.parquet", table(10, start_s=START_S + 10, **columns))
    error = refusal(tmp_path)
    assert error.code == code
    assert words in error.message
    assert "set/a.parquet" in error.message
    assert "set/b.parquet" in error.message


def test_integer_times_of_two_units_are_refused(tmp_path: Path) -> None:
    for name, scale in (("a", 1), ("b", 1000)):
        rows = table(10, timestamp=pa.array([(START_S + i) * scale for i in range(10)]))
        write(tmp_path, f"set/{name}.parquet", rows)
    assert refusal(tmp_path).code == "bad_timestamp"


def test_metadata_of_two_builds_do_not_mix(tmp_path: Path) -> None:
    write(tmp_path, "set/a.parquet", table(10), metadata={"horizon_s": 5})
    write(tmp_path, "set/b.parquet", table(10, start_s=START_S + 10), metadata={"horizon_s": 6})
    error = refusal(tmp_path)
    assert error.code == "schema_mismatch"
    assert "horizon_s = 6.0" in error.message


@pytest.mark.parametrize(
    "metadata",
    [{"horizon_s": -1}, {"dtype": "object"}, {"shape": []}, [1]],
    ids=str,
)
def test_malformed_metadata_are_refused(tmp_path: Path, metadata: Any) -> None:
    write(tmp_path, "set/a.parquet", table(10), metadata=metadata)
    assert refusal(tmp_path).code == "bad_metadata"


# Damage


def parquet_bytes(tmp_path: Path) -> bytes:
    return write(tmp_path, "spare/a.parquet", table(1000)).read_bytes()


DAMAGE: dict[str, tuple[Any, str]] = {
    "empty": (lambda good: b"", "not_parquet"),
    "four bytes": (lambda good: b"abcd", "not_parquet"),
    "text": (lambda good: b"time,price\n" * 40, "not_parquet"),
    "magic alone": (lambda good: b"PAR1", "truncated"),
    "fake footer": (lambda good: b"PAR1" + b"z" * 60 + (40).to_bytes(4, "little") + b"PAR1", "not_parquet"),
    "huge footer": (lambda good: good[:-8] + b"\xff\xff\xff\x7fPAR1", "not_parquet"),
    "cut short": (lambda good: good[: len(good) // 2], "truncated"),
    "last byte gone": (lambda good: good[:-1], "truncated"),
    "encrypted footer": (lambda good: b"PARE" + good[4:-4] + b"PARE", "unsupported_feature"),
}


@pytest.mark.parametrize(("damage", "code"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Any, code: str) -> None:
    bad = damage(parquet_bytes(tmp_path))
    write(tmp_path, "set/good.parquet", table(10))
    (tmp_path / "set/bad.parquet").write_bytes(bad)
    error = refusal(tmp_path)
    assert error.code == code
    assert "set/bad.parquet" in error.message


def test_every_damaged_file_is_told_up_to_ten(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for index in range(12):
        (tmp_path / f"set/{index:02}.parquet").write_bytes(b"")
    assert len(refusal(tmp_path).problems) == 10


def test_no_rows_in_no_row_groups_is_no_rows(tmp_path: Path) -> None:
    write(tmp_path, "set/a.parquet", table(0))
    with pq.ParquetWriter(tmp_path / "set/b.parquet", table(0).schema):
        pass
    assert refusal(tmp_path).code == "no_rows"


def test_an_empty_file_among_others_is_left_out_and_said(tmp_path: Path) -> None:
    write(tmp_path, "set/a.parquet", table(0))
    write(tmp_path, "set/b.parquet", table(10))
    found = opened(tmp_path, horizon_s=1.0)
    assert [file.name for file in found.files] == ["set/b.parquet"]
    assert codes(found) == ["empty_files"]


@pytest.mark.parametrize(
    "names",
    [["x", "x"], [""], ["a.b"], ["\x1b[31m"], ["n" * 10_000]],
    ids=["twice", "empty", "dot", "ansi", "10 kB"],
)
def test_a_column_name_that_cannot_be_used_is_refused(tmp_path: Path, names: list[str]) -> None:
    rows = table(10)
    for name in names:
        rows = rows.append_column(name, pa.array([1] * 10))
    write(tmp_path, "set/a.parquet", rows)
    error = refusal(tmp_path)
    assert error.code == "bad_column_name"
    assert "\x1b" not in error.message
    assert len(error.message) < 250


def test_an_encrypted_file_is_unsupported(tmp_path: Path) -> None:
    pe = pytest.importorskip("pyarrow.parquet.encryption")

    class Kms(pe.KmsClient):  # type: ignore[name-defined,misc]
        def wrap_key(self, key: bytes, _: str) -> bytes:
            return key

        def unwrap_key(self, key: bytes, _: str) -> bytes:
            return bytes(key)

    factory = pe.CryptoFactory(lambda _: Kms())
    for plain_footer in (True, False):
        how = pe.EncryptionConfiguration(
            footer_key="k", column_keys={"k": ["timestamp"]}, plaintext_footer=plain_footer
        )
        properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), how)
        write(tmp_path, "set/a.parquet", table(10), encryption_properties=properties)
        assert refusal(tmp_path).code == "unsupported_feature"


def test_a_file_without_page_checksums_is_a_warning(tmp_path: Path) -> None:
    for dictionary in (True, False):
        write(tmp_path, "set/a.parquet", table(10), write_page_checksum=False, use_dictionary=dictionary)
        assert codes(opened(tmp_path, horizon_s=1.0)) == ["no_page_checksums"]
        write(tmp_path, "set/a.parquet", table(10), use_dictionary=dictionary)
        assert codes(opened(tmp_path, horizon_s=1.0)) == []


def test_many_tiny_row_groups_are_a_warning_with_their_cost(tmp_path: Path) -> None:
    write(tmp_path, "set/a.parquet", table(1500), row_group_size=1)
    assert codes(opened(tmp_path, horizon_s=1.0)) == ["tiny_row_groups"]


def test_an_extension_type_is_unsupported(tmp_path: Path) -> None:
    column = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"\0" * 16] * 10, pa.binary(16)))
    write(tmp_path, "set/a.parquet", table(10, features=column))
    assert refusal(tmp_path, shape=[4]).code == "unsupported_feature"


def test_dictionary_columns_are_what_they_hold(tmp_path: Path) -> None:
    rows = table(
        10,
        label=pa.array(np.arange(10) % 2).dictionary_encode(),
        a=pa.array([0.5] * 10, pa.float32()).dictionary_encode(),
        sym=pa.array(["x"] * 10).dictionary_encode(),
    )
    write(tmp_path, "set/a.parquet", rows)
    assert opened(tmp_path, group="sym").features == Features("columns", ("a", "b"), "float32", (2,))


def test_times_before_1970_do_not_break_the_order(tmp_path: Path) -> None:
    write(tmp_path, "set/a.parquet", table(10, timestamp=pa.array(np.arange(10) - 5, pa.timestamp("s"))))
    assert opened(tmp_path).timestamp_unit == "ms"  # Parquet has no seconds
