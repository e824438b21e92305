"""Table 8: what the paper says of its methods, and what the registry says of ours."""

from __future__ import annotations

import pandas as pd

from gkp.methods import methods
from gkp.published import published
from gkp.tables.table import Table


def method_checklist() -> Table:
    """Table 8, as published and as the registry has it: type, procedure and needs of every method, ours added below."""
    printed = published(8)
    known = methods()
    rows = []
    for row in printed.to_dict("records"):
        info = known.get(row["name_here"])
        rows.append(
            {
                "method": row["method"],
                "type, published": row["type"],
                "type, here": info.family if info else "not implemented",
                "procedure, published": row["procedure"],
                "procedure, here": info.procedure if info else "",
                "set-up, published": row["special_setup"],
                "needs, here": ", ".join(info.needs) if info else "",
                "fidelity": info.fidelity if info else "",
            }
        )
    for name in sorted(set(known) - set(printed["name_here"])):
        info = known[name]
        rows.append(
            {
                "method": name,
                "type, here": info.family,
                "procedure, here": info.procedure,
                "needs, here": ", ".join(info.needs),
                "fidelity": info.fidelity,
            }
        )
    frame = pd.DataFrame(rows).fillna("")
    return Table("Table 8 · method checklist, published and here", frame.set_index("method"), frame)
