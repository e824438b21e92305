"""The paper's statements as claims that data decide, and what the data say: one row for each, `make reproduce`'s last table.

    gkp.artifact.claims.verdicts("cifar10")                       # every claim
    gkp.artifact.claims.verdicts("cifar10", item="Table 2")       # those of one table
    gkp.artifact.claims.verdicts("quick", results)                # digits: the arithmetic runs, no verdict is given

They stand on three boards, each with its own words; see `decision`. claims.toml has the statements, each with the name of a
rule and its parameters; `rules`, `protocol`, `counts` and `printed` have the rules; `evidence` and `case` find the experiments
that a rule looks at. Costs seconds: finished experiments are read and none is computed.
"""

from gkp.artifact.claims.claim import Claim, claims
from gkp.artifact.claims.decision import BOARDS, KINDS, NO_VERDICT, NOT_RUN, VERDICTS, Decision, NotRun
from gkp.artifact.claims.verdicts import (
    MAIN,
    as_read,
    cannot_say,
    headlines,
    in_full,
    main_rows,
    on_board,
    rows_of,
    says,
    verdicts,
)

__all__ = [
    "BOARDS",
    "KINDS",
    "MAIN",
    "NOT_RUN",
    "NO_VERDICT",
    "VERDICTS",
    "Claim",
    "Decision",
    "NotRun",
    "as_read",
    "cannot_say",
    "claims",
    "headlines",
    "in_full",
    "main_rows",
    "on_board",
    "rows_of",
    "says",
    "verdicts",
]
