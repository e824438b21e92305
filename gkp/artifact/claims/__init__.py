"""The paper's statements as claims, and the verdict of the data on each: the last table of `make reproduce`.

    gkp.artifact.claims.verdicts("cifar10")                       # every claim
    gkp.artifact.claims.verdicts("cifar10", item="Table 2")       # those of one table
    gkp.artifact.claims.verdicts("quick", results)                # digits: everything runs, but no verdict is given

There are three kinds of questions, called boards, each with its own verdicts; see `decision`. claims.toml has the statements,
each with the name of a rule and its parameters; `rules`, `protocol`, `counts`, `printed` and `training_log` have the rules;
`evidence` and `case` find the experiments that a rule needs. Cost: seconds; finished experiments are read, none is computed.
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
