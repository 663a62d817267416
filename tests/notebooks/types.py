"""Reads CSV as analysts do, each file by itself and several put together, and looks at the types that pandas finds."""

import sys
from pathlib import Path

import pandas as pd

TEXT = {"vm", "comm", "kind", "reason", "detail", "culprit", "advisor_mode", "runq_groups"}
FRACTIONS = {"interval_s", "create_s", "start_s"}
PERHAPS_FRACTIONS = {
    "cpu_some_percent",
    "memory_some_percent",
    "wait_percent",
    "load",
    "switches_per_s",
    "exits_per_s",
}
# There may be no such figure: of no waits, of nobody who waits, of a kernel that does not have it.
MISSING = {
    "runqlat": {"min_ns", "max_ns", "p50_ns", "p90_ns", "p99_ns", "p999_ns", "longest_waiting_ns", "preempted"},
    "vcpulag": {"p50_ns", "p99_ns", "max_ns", "waiting_ns", "culprit", "culprit_ns", "vcpu"},
    "kvmexits": set(),
    "runqlat-buckets": set(),
    "ramp": PERHAPS_FRACTIONS
    | {"runq_p50_ns", "runq_p99_ns", "runq_p999_ns", "runq_max_ns", "runq_groups", "longest_waiting_ns"},
}


def check(name, table, missing):
    for column, type_ in table.dtypes.items():
        if column == "time":
            right = str(type_) == "datetime64[ns, UTC]"
        elif column in missing and table[column].isna().any():
            right = type_ == "float64" or column in TEXT
        elif column in TEXT:
            right = type_ == "object" and table[column].map(lambda value: isinstance(value, str)).all()
        else:
            right = type_ == ("float64" if column in FRACTIONS | PERHAPS_FRACTIONS else "int64")
        assert right, (name, column, type_, table[column])


for path in map(Path, sys.argv[1:]):
    table = pd.read_csv(path, parse_dates=["time"])
    assert len(table), path
    name = path.stem
    # This kernel's own gaps are in every row; whatever else is there is a whole number.
    missing = MISSING.get(name, {column for column in table if table[column].isna().any()})
    # A ramp without --churn has none of it.
    missing = missing | {column for column in table if column.startswith("churn_") and table[column].isna().all()}
    check(path, table, missing)
    # As the files of two hosts, or of two days: one of them with a single row.
    one = path.with_suffix(".one")
    one.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    both = pd.concat([pd.read_csv(one, parse_dates=["time"]), table])
    one.unlink()
    check(path, both, missing)
    assert len(both) == len(table) + 1, path
    text = sorted(TEXT & set(table))
    print(len(table), *(name for column in text for name in sorted(set(table[column].dropna()))), sep="\t")
