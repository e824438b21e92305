"""The line at the foot of a notebook."""

from __future__ import annotations

from collections.abc import Sequence

from gkp.grid.report import Result


def provenance(runs: Sequence[Result]) -> str:
    """One line for the foot of a notebook: what was cached and what computed, on what, with which versions, in how long.

    runs: results of `gkp.grid.run`.
    """
    records = [result.run for result in runs]
    cached = sum(result.cached for result in runs)
    seconds = sum(float(record.get("seconds", 0)) for record in records)
    commits = sorted({str(record.get("git_commit", "unknown"))[:10] for record in records})
    machines = sorted({str(record.get("hardware", {}).get("processor", "unknown")) for record in records})
    versions = records[0].get("versions", {}) if records else {}
    named = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "torchvision", "numpy") if name in versions)
    return (
        f"{len(runs)} cells, {cached} cached and {len(runs) - cached} computed here; {seconds:.0f} s of computing in all; "
        f"commit {', '.join(commits)}; {named}; {', '.join(machines)}"
    )
