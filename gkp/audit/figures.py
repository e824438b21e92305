"""The figures on a card: accuracies with intervals, paired tests. Free."""

from __future__ import annotations

from typing import Any

from statsmodels.stats.contingency_tables import mcnemar

from gkp.audit.evidence import WHITE, Evidence
from gkp.outcomes import wilson


def accuracies(evidence: Evidence) -> list[dict[str, Any]]:
    """One row a figure: attack, kind, accuracy, low, high (fractions, 95 % Wilson), n; last the worst case over all attacks."""
    rows = {"clean": ("", evidence.clean), **{name: (row.kind, row.right) for name, row in evidence.rows.items()}}
    others = [eps for eps in evidence.ladder if eps not in (0.0, evidence.threat["eps"])]
    rows |= {f"pgd at {eps * 255:.6g}/255": (WHITE, evidence.ladder[eps]) for eps in others}
    rows |= {name: ("changed images", right) for name, right in evidence.changed.items()}
    rows["worst case"] = ("", evidence.survivors())
    table = []
    for name, (kind, right) in rows.items():
        count, n = int(right.sum()), evidence.n
        low, high = wilson(count, n)
        table.append({"attack": name, "kind": kind, "accuracy": count / n, "low": low, "high": high, "n": n})
    return table


def paired_tests(evidence: Evidence) -> list[dict[str, Any]]:
    """Exact two-sided McNemar tests: first, second, and the images that only one of them left right."""
    rows = {"clean": evidence.clean, **{name: row.right for name, row in evidence.rows.items()}}
    if evidence.parent_clean is not None:
        rows["parent, clean"] = evidence.parent_clean
    pairs = (("pgd", "fgsm"), ("apgd-ce", "pgd"), ("apgd-ce", "apgd-dlr"), ("pgd", "pgd-scaled"), ("fgsm", "noise"),
             ("apgd-ce", "square"), ("pgd", "transfer-pgd"), ("clean", "parent, clean"))  # fmt: skip
    tests = []
    for first, second in pairs:
        if first in rows and second in rows:
            a, b = rows[first], rows[second]
            only = int((a & ~b).sum()), int((b & ~a).sum())
            p = float(mcnemar([[0, only[0]], [only[1], 0]], exact=True).pvalue)
            tests.append({"first": first, "second": second, "only_first": only[0], "only_second": only[1], "p": min(1.0, p)})
    return tests
