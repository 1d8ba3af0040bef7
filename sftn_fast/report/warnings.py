"""What a stage's training said of itself that its figures do not show."""

from __future__ import annotations

from collections.abc import Sequence

from sftn_fast.report.results import Row, label


def warnings(rows: Sequence[Row]) -> list[str]:
    """A sentence for each stage that diverged, and for each doubt about a teacher that came from a file."""
    return [
        f"**Warning**, {label(row.name)}, seed {result['seed']}: {line}."
        for row in rows
        for result in row.results
        for line in [*([result["diverged"]] if result.get("diverged") else []), *(result.get("doubts") or [])]
    ]
