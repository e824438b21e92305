"""Verdicts follow from hand-made cells as the arithmetic says; every table and figure has a claim; no digits give a verdict."""

import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student
from statsmodels.stats.weightstats import ztest, ztost

from gkp.artifact import profiles
from gkp.artifact.claims.case import Case, case_of
from gkp.artifact.claims.claim import FILE, RULES, claims, read_claims
from gkp.artifact.claims.decision import (
    BOARDS,
    CONSISTENCY,
    CONSISTENT,
    EXACTNESS,
    FAILS,
    HOLDS,
    INCONSISTENT,
    KINDS,
    NO_VERDICT,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    SAME,
    UNDECIDED,
    VERDICTS,
    NotRun,
)
from gkp.artifact.claims.evidence import BASELINE, SR, TMI, Index, Keys, Net
from gkp.artifact.claims.gpu_hours import gpu_hours
from gkp.artifact.claims.rules import Contrast, best_or_second, contrasts, equal_but_fragile, together
from gkp.artifact.claims.verdicts import decide, headlines, on_board, verdicts
from gkp.artifact.experiments.kinds import EvaluateCell, PretrainedCell, PruneCell, SpeedCell, TimingCell, TrainCell
from gkp.artifact.experiments.report import Result
from gkp.artifact.experiments.status import stated_minutes
from gkp.artifact.experiments.store import Store
from gkp.artifact.published import FIGURES, TABLES, names_here, published, superscores
from gkp.artifact.results import row_name, trained_for_robustness, variant_of
from gkp.checkpoints import save_model
from gkp.errors import BadInput
from gkp.evaluation.outcomes import AttackSpec, Outcomes
from gkp.evaluation.statistics import Estimate, Spread, difference, judge, quantile, tolerance
from gkp.networks.build import build_model
from gkp.pruning.prune import prune
from gkp.pruning.registry import methods

N = 2000
PAPER_KEYS = ("fgsm-0.01", "fgsm-0.1", "pgd-8/255", "fgsm-0.01-true", "fgsm-0.1-true")
NOTEBOOKS = {"00_start_here", "01_fragility", "02_cifar10_main", "03_ablations", "04_filter_pruning_transfer", "05_cost",
             "06_high_rate", "07_imagenet", "08_robustbench", "09_protocol_matters", "10_published_log",
             "99_verdict"}  # fmt: skip
SHARP = {"clean": 0.9, "fgsm-0.01": 0.7, "fgsm-0.1": 0.3, "pgd-8/255": 0.4, "fgsm-0.01-true": 0.6, "fgsm-0.1-true": 0.2}


def row(accuracy: float, n: int = N) -> np.ndarray:
    """The first images right, the others wrong: the row of a network that is right on exactly this share."""
    return np.arange(n) < round(accuracy * n)


class Lab:
    """Hand-made evidence: networks with the accuracies one wants, as finished cells."""

    def __init__(self, folder, *, model="resnet20", epochs=3, dataset="cifar10", n=N):
        self.folder, self.model, self.n = folder, model, n
        self.baseline = TrainCell(dataset=dataset, model=model, epochs=300)
        self.fields = {"net": self.baseline, "epochs": epochs, "log_examples": n}
        self.cells, self.results = [], {}
        self.add(self.baseline, {"paper_macs": 40_000_000, "params": 270_000})

    def add(self, cell, figures, **outcomes):
        where = self.folder / str(len(self.cells))
        where.mkdir()
        if outcomes:
            self._outcomes(**outcomes).save(where)
        self.cells.append(cell)
        self.results[cell.hash] = Result(cell, figures, where, True)
        return cell

    def net(self, method, accuracy=None, *, macs=23_000_000, log=(), finished=True, part="paper", **fields):
        """A network and its evaluation: accuracy: key -> share, the rest as in SHARP."""
        cell = self.baseline if method == "baseline" else PruneCell(method=method, **{**self.fields, **fields})
        evaluated = EvaluateCell(net=cell, protocol=part, examples=self.n)
        if not finished:
            self.cells += [cell, evaluated]
            return
        if method != "baseline":
            self.add(cell, {"paper_macs": macs, "params": 150_000, "epochs": list(log)})
        self.add(evaluated, {}, accuracy={**SHARP, **(accuracy or {})}, protocol=part)

    def seeds_agree(self):
        """Two trainings of the unpruned network, of one accuracy: so the spread over seeds is known, and none."""
        for seed in (0, 1):
            self.net("none", seed=seed)

    def _outcomes(self, accuracy, protocol):
        if protocol == "paper":
            specs = [AttackSpec("fgsm" if key[0] == "f" else "pgd", 0.1, key=key) for key in PAPER_KEYS]
        else:
            specs = [AttackSpec("pgd", "1/255"), AttackSpec("pgd", "8/255")]
        keys = [spec.key for spec in specs]
        right = np.array([row(accuracy.get(key, 0.3), self.n) for key in ("clean", *keys)])
        labels = np.zeros(self.n, dtype=np.int64)
        return Outcomes(right=right, indices=np.arange(self.n), labels=labels, predictions=(~right[0]).astype(np.int64),
                        attacks=tuple(specs), protocol=protocol, bounds=(0.0, 1.0), dataset="cifar10", split="test",
                        data_sha256="0", model_sha256="0", seed=0, versions={}, seconds=0.0)  # fmt: skip

    def case(self, model=None):
        return Case(Index(tuple(self.cells)), self.results, model or self.model)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def claim(name):
    (found,) = (c for c in claims() if c.id == name)
    return found


# ---- the arithmetic ----


def test_the_interval_of_one_pair_is_that_of_the_paired_difference():
    a, b = row(0.6, 1000), row(0.5, 1000)
    est = difference([a], [b])
    # 100 of 1,000 images are +1, the rest 0
    sd = math.sqrt((0.1 - 0.01) * 1000 / 999)
    assert (est.value, est.n, est.seeds) == (pytest.approx(0.1), 1000, 1)
    assert est.high - est.value == pytest.approx(1.959964 * sd / math.sqrt(1000), rel=1e-6)


def test_seeds_widen_the_interval_by_students_t_and_more_of_them_narrow_it():
    rows = [row(0.6, 10_000)]
    spread = Spread.pooled([[0.60, 0.62, 0.64], [0.50, 0.52], [0.7]])
    assert spread.df == 3 and spread.sd == pytest.approx(math.sqrt((2 * 0.02**2 + 0.0002) / 3))
    alone, seeded = difference(rows, rows), difference(rows, rows, spread=spread)
    assert alone.low == alone.high == 0
    assert seeded.high == pytest.approx(student.ppf(0.975, 3) * spread.sd * math.sqrt(2))
    assert difference(rows * 3, rows * 3, spread=spread).high == pytest.approx(seeded.high / math.sqrt(3))


def test_several_intervals_that_must_hold_together_are_wider():
    assert quantile(1) == pytest.approx(1.959964, rel=1e-6) and quantile(5) == pytest.approx(norm.ppf(1 - 0.005))


def test_fewer_images_widen_the_tolerance_by_the_square_root():
    assert tolerance(0.5, 10_000) == pytest.approx(1.959964 * 0.005, rel=1e-6)
    assert tolerance(0.5, 100) == pytest.approx(10 * tolerance(0.5, 10_000))
    assert tolerance(0.9, 400) == pytest.approx(1.959964 * math.sqrt(0.09 / 400), rel=1e-6)
    assert tolerance(0.5, 100, spread=Spread(0.03, 4)) == pytest.approx(
        math.hypot(tolerance(0.5, 100), student.ppf(0.975, 4) * 0.03)
    )


@pytest.mark.parametrize(
    ("low", "high", "margin", "holds"),
    [
        (0.01, 0.03, None, True),
        (-0.03, -0.01, None, False),
        (-0.01, 0.01, None, None),
        (-0.004, 0.01, 0.005, True),
        (-0.004, -0.001, 0.005, True),  # surely less, but not by more than allowed
        (-0.02, -0.006, 0.005, False),
        (-0.02, -0.001, 0.005, None),  # surely less, by more or less than allowed
        (-0.02, 0.01, 0.005, None),
    ],
)
def test_an_order_holds_fails_or_is_open(low, high, margin, holds):
    assert judge(Estimate((low + high) / 2, low, high, N, 1), margin=margin) is holds


def test_two_one_sided_tests_say_whether_a_difference_is_within_a_margin_as_statsmodels_does():
    rng = np.random.default_rng(0)
    a, b = (rng.random(400) < share for share in (0.60, 0.61))
    est, gaps = difference([a.astype(float)], [b.astype(float)]), a.astype(float) - b
    for margin in (0.02, 0.05, 0.2):
        expected = ztost(gaps, -margin, margin, usevar="pooled", ddof=1)[0]
        assert est.equivalence_p(margin) == pytest.approx(expected, rel=1e-6)
    assert est.p() == pytest.approx(ztest(gaps)[1], rel=1e-6)


@pytest.mark.parametrize(
    ("value", "half", "reported", "verdict"),
    [
        (0.02, 0.01, None, HOLDS),
        (-0.02, 0.01, None, FAILS),
        (0.001, 0.004, None, SAME),
        (0.001, 0.004, 0.03, SAME),  # a point counts as none however large the reported difference
        (0.001, 0.004, 0.006, UNDECIDED),  # half of the reported 0.6 points does
        (0.001, 0.0015, 0.006, SAME),
        (0.005, 0.02, None, UNDECIDED),
    ],
)
def test_no_difference_is_a_finding_within_a_point_or_half_of_what_is_reported(value, half, reported, verdict):
    part = Contrast("a minus b", (SR,), (TMI,), Keys.of("(c)"), reported=reported)
    assert part.verdict(Estimate(value, value - half, value + half, N, 3), 1) == verdict


def test_a_claim_of_parts_fails_with_one_and_is_open_with_one():
    assert together([HOLDS, HOLDS]) == HOLDS and together([HOLDS, UNDECIDED]) == UNDECIDED
    assert together([HOLDS, UNDECIDED, FAILS]) == FAILS
    assert together([SAME, SAME]) == SAME and together([HOLDS, SAME]) == FAILS  # not all are more


# ---- orders ----


def test_a_claim_holds_where_it_is_measured_and_says_how_far_that_is_from_the_paper(tmp_path):
    found = {}
    for name, model, epochs in (("paper", "resnet56", 300), ("shorter", "resnet56", 3), ("smaller", "resnet20", 300)):
        (tmp_path / name).mkdir()
        lab = Lab(tmp_path / name, model=model, epochs=epochs)
        lab.seeds_agree()
        lab.net("sr-gkp", {"pgd-8/255": 0.5})
        lab.net("tmi-gkp")
        found[name] = decide(claim("sr-over-tmi"), lab.case())[0]
    assert {d.verdict for d in found.values()} == {HOLDS}
    assert {name: d.setting for name, d in found.items()} == {
        "paper": "ResNet-56, 300 epochs (as in the paper), one seed of some rows",
        "shorter": "ResNet-56, 3 epochs (the paper: 300 epochs), one seed of some rows",
        "smaller": "ResNet-20, 300 epochs (the paper: ResNet-32, ResNet-56, ResNet-110), one seed of some rows",
    }
    d = found["paper"]
    assert d.value == pytest.approx(0.1 / 3) and d.low > 0 and (d.n, d.seeds) == (N, 1)


def test_the_opposite_difference_does_not_hold(lab):
    lab.seeds_agree()
    lab.net("sr-gkp", {"pgd-8/255": 0.3})
    lab.net("tmi-gkp")
    assert decide(claim("sr-over-tmi"), lab.case())[0].verdict == FAILS


def test_one_training_each_decides_nothing_about_methods_unless_their_spread_is_known(lab):
    lab.net("sr-gkp", {"pgd-8/255": 0.5})
    lab.net("tmi-gkp")
    alone = decide(claim("sr-over-tmi"), lab.case())[0]
    assert alone.verdict == UNDECIDED and alone.low > 0  # the images alone would tell them apart
    assert "one training each and no spread over trainings is known" in alone.reason
    for seed, accuracy in enumerate((0.30, 0.40, 0.50)):  # of another architecture, wide
        lab.net("cc", {"pgd-8/255": accuracy}, net=replace(lab.baseline, model="resnet32"), seed=seed)
    borrowed = decide(claim("sr-over-tmi"), lab.case())[0]
    assert borrowed.verdict == UNDECIDED and borrowed.low < 0
    assert "one training each, taken to spread as those of ResNet-32" in borrowed.reason
    assert not lab.case().spread("paper", ["clean"]).df  # what is held against a published number is not borrowed


def test_two_networks_of_the_same_outcomes_are_one(lab):
    lab.seeds_agree()
    for seed in range(3):
        lab.net("sr-gkp", {"pgd-8/255": 0.4 + 0.05 * seed}, seed=seed)
    lab.net("sr-gkp", {"pgd-8/255": 0.4}, options={"alpha": 0.1})
    found = decide(claim("csb-resnet32"), lab.case())[0]
    assert (found.verdict, found.value, found.low, found.high, found.seeds) == (SAME, 0, 0, 0, 1)


def test_a_method_whose_seeds_are_of_several_sizes_widens_no_interval_of_others(lab):
    for seed, accuracy in enumerate((0.40, 0.41)):
        lab.net("sr-gkp", {"pgd-8/255": accuracy}, seed=seed)
        lab.net("gal", {"pgd-8/255": 0.2 + 0.3 * seed}, macs=(22_000_000, 23_000_000)[seed], seed=seed)
    assert lab.case().spread("paper", ["pgd-8/255"]).sd == pytest.approx(0.01 / math.sqrt(2))


def test_where_the_longest_schedule_leaves_a_claim_open_a_shorter_one_is_told(lab):
    lab.seeds_agree()
    for seed in range(3):
        lab.net("sr-gkp", {"pgd-8/255": 0.49 + 0.01 * seed}, seed=seed)
        lab.net("tmi-gkp", seed=seed)
    for method, accuracy in (("none", 0.4), ("sr-gkp", 0.42), ("tmi-gkp", 0.4)):
        lab.net(method, {"pgd-8/255": accuracy}, epochs=30)
    found = decide(claim("sr-over-tmi"), lab.case())[0]
    assert found.verdict == UNDECIDED and found.setting.startswith("ResNet-20, 30 epochs")
    assert "; after 3 epochs, 3 seeds: holds (SR-GKP minus TMI-GKP: +3.3 points [" in found.setting


def test_a_difference_that_chance_explains_is_undecided(tmp_path):
    lab = Lab(tmp_path, n=50)
    lab.net("sr-gkp", {"pgd-8/255": 0.42})
    lab.net("tmi-gkp")
    found = decide(claim("sr-over-tmi"), lab.case())[0]
    assert found.verdict == UNDECIDED and found.n == 50
    assert "more images or seeds would decide" in found.reason


def test_seeds_are_averaged_and_their_spread_can_undo_an_order(lab):
    for seed, a, b in ((0, 0.50, 0.47), (1, 0.40, 0.42), (2, 0.45, 0.43)):
        lab.net("sr-gkp", {"pgd-8/255": a}, seed=seed)
        lab.net("tmi-gkp", {"pgd-8/255": b}, seed=seed)
    part = Contrast("pgd", (SR,), (TMI,), Keys.of("(c)"))
    found = contrasts.decide(lab.case(), contrasts=(part,))
    assert found.value == pytest.approx(0.01) and found.seeds == 3
    sd = math.sqrt((2 * 0.05**2 + 2 * np.var([0.47, 0.42, 0.43], ddof=1)) / 4)
    seeds_only = student.ppf(0.975, 4) * sd * math.sqrt(2 / 3)
    assert found.high - found.value > seeds_only and found.verdict == UNDECIDED


def test_networks_of_different_cost_give_no_order(lab):
    lab.net("sr-gkp", {"pgd-8/255": 0.5}, macs=40_000_000)  # a method that cheats: it returns the unpruned network
    lab.net("tmi-gkp")
    found = decide(claim("sr-over-tmi"), lab.case())[0]
    assert found.verdict == NOT_RUN and "not the same budget" in found.reason


def test_best_or_second_counts_who_is_ahead(lab):
    lab.seeds_agree()

    def decision(case, *more):
        return best_or_second.decide(case, against=[Net(name) for name in ("cc", "fpgm", "sfp", *more)], keys=Keys.of("(c)"))

    lab.net("sr-gkp", {"pgd-8/255": 0.50})
    lab.net("cc", {"pgd-8/255": 0.60})
    lab.net("fpgm", {"pgd-8/255": 0.40})
    with pytest.raises(NotRun, match="only 2 of the methods"):
        decision(lab.case())
    lab.net("sfp", {"pgd-8/255": 0.40})
    assert decision(lab.case()).verdict == HOLDS
    lab.net("l2", {"pgd-8/255": 0.55})
    found = decision(lab.case(), "l2")
    assert found.verdict == FAILS and found.ours == "(c) PGD 8/255: rank 3 of 5"
    assert "significantly behind CC, L2Norm" in found.reason


def test_fragility_needs_two_networks_of_equal_benign_accuracy_that_fall_apart(lab):
    lab.seeds_agree()

    def decision(case):
        return equal_but_fragile.decide(case, keys=Keys.of("(c)"))

    for method in ("sr-gkp", "cc", "fpgm", "l2", "lrf", "nppm"):
        lab.net(method)
    with pytest.raises(NotRun, match="only 6 pruned networks are finished"):  # fewer than half of the paper's methods
        decision(lab.case())
    lab.net("sfp", {"clean": 0.80, "pgd-8/255": 0.1})  # falls apart, but is another network without attack
    assert decision(lab.case()).verdict == FAILS
    lab.net("hrank", {"clean": 0.895, "pgd-8/255": 0.3})
    found = decision(lab.case())
    assert found.verdict == HOLDS and found.value == pytest.approx(0.1)
    assert "HRank, 90.0 and 89.5 % without attack" in found.reason


# ---- values, costs, protocols ----


def test_a_value_is_the_best_epoch_in_the_papers_setting_and_is_never_read_off_a_shorter_one(tmp_path):
    log = [{"clean": 0.9408, "fgsm-0.01": 0.70, "fgsm-0.1": 0.4517, "pgd-8/255": 0.44},
           {"clean": 0.90, "fgsm-0.01": 0.764, "fgsm-0.1": 0.40, "pgd-8/255": 0.4485}]  # fmt: skip
    (tmp_path / "long").mkdir()
    long = Lab(tmp_path / "long", model="resnet56", epochs=300)
    long.net("sr-gkp", log=log)
    found = decide(claim("value-table-10"), long.case())[0]
    assert found.verdict == REPRODUCED and found.ours == "94.08 / 76.40 / 45.17 / 44.85 %"
    worse = Lab(tmp_path, model="resnet56", epochs=300)
    worse.net("sr-gkp", log=[{**log[0], "fgsm-0.01": 0.70}])
    found = decide(claim("value-table-10"), worse.case())[0]
    assert found.verdict == NOT_REPRODUCED and "outside the tolerance: fgsm-0.01" in found.reason


def test_a_value_of_a_shorter_fine_tuning_is_not_run_and_says_what_it_needs(tmp_path):
    lab = Lab(tmp_path, model="resnet56", epochs=1)
    lab.net("sr-gkp", log=[dict.fromkeys(("clean", "fgsm-0.01", "fgsm-0.1", "pgd-8/255"), 0.9)])
    found = decide(claim("value-table-10"), lab.case())[0]
    assert found.verdict == NOT_RUN and "needs about 15 GPU-hours at most" in found.reason


def test_the_authors_own_network_must_agree_within_a_twentieth_of_a_point(tmp_path):
    official = PretrainedCell(weights="srgkp-official")
    reported = {"clean": 0.9199, "fgsm-0.01": 0.6715, "fgsm-0.1": 0.1980, "fgsm-0.01-true": 0.6191, "fgsm-0.1-true": 0.1509}
    for name, off, verdict in (("same", 0.0, REPRODUCED), ("near", 0.0005, REPRODUCED), ("far", 0.0006, NOT_REPRODUCED)):
        (tmp_path / name).mkdir()
        lab = Lab(tmp_path / name, n=10_000)
        lab.add(official, {})
        lab.add(
            EvaluateCell(net=official, protocol="paper"), {}, accuracy={**reported, "clean": 0.9199 + off}, protocol="paper"
        )
        found = decide(claim("official-unpruned"), lab.case())[0]
        assert (found.verdict, found.n) == (verdict, 10_000)


@pytest.mark.parametrize(("slow", "verdict"), [(0.5, HOLDS), (0.05, FAILS)])
def test_a_cost_ratio_is_that_of_the_recorded_seconds(lab, slow, verdict):
    took = {"layers": 18, "of": 18, "snaking": 0.001, "kpca": 0.0, "spectral": 0.0, "dbscan": slow}
    lab.add(TimingCell(net=lab.baseline), {"grouping": took})
    found = decide(claim("snaking-cheaper"), lab.case())[0]
    assert found.verdict == verdict and found.value == pytest.approx(slow / 0.001)


@pytest.mark.parametrize(
    ("ratios", "stock", "ours"),
    [((5.0, 0.45), FAILS, HOLDS), ((0.9, 0.6), HOLDS, FAILS), ((0.9, 0.45), HOLDS, HOLDS)],
)
def test_acceleration_is_judged_apart_in_stock_engines_and_in_ours(lab, ratios, stock, ours):
    took = {"dense": (1.0, 0.6), "grouped, 7/16": ratios}
    rows = [
        {"form": form, "engine": engine, "threads": 1, "batch_size": size, "seconds": ratio, "ratio": ratio}
        for form, two in took.items()
        for engine, ratio in zip(("torch", "gkp"), two, strict=True)
        for size in (1, 32)
    ]
    lab.add(SpeedCell(net=lab.baseline), {"model": lab.baseline.model, "speed": rows})
    found = {name: decide(claim(name), lab.case())[0] for name in ("faster-in-stock-engines", "faster-in-our-engine")}
    assert [decision.verdict for decision in found.values()] == [stock, ours]
    assert [decision.value for decision in found.values()] == pytest.approx([ratios[0], ratios[1] / 0.6])


def test_acceleration_at_some_batch_sizes_only_is_undecided(lab):
    rows = [
        {"form": form, "engine": "torch", "threads": 1, "batch_size": size, "seconds": 1.0, "ratio": ratio}
        for form, *ratios in (("dense", 1.0, 1.0), ("grouped, 7/16", 0.8, 1.2))
        for size, ratio in zip((1, 32), ratios, strict=True)
    ]
    lab.add(SpeedCell(net=lab.baseline), {"model": lab.baseline.model, "speed": rows})
    found = decide(claim("faster-in-stock-engines"), lab.case())[0]
    assert (found.verdict, found.low, found.high) == (UNDECIDED, 0.8, 1.2)
    assert decide(claim("faster-in-our-engine"), lab.case())[0].verdict == NOT_RUN


def test_fgsm_with_predicted_labels_is_found_to_flatter(lab):
    lab.net("baseline")
    lab.net("sr-gkp")
    found = decide(claim("fgsm-labels"), lab.case())[0]
    assert found.verdict == FAILS and found.value == pytest.approx(0.1)


def test_choosing_the_epoch_on_the_test_set_is_measured_from_the_logs(lab):
    peak = [{**SHARP, "fgsm-0.1": 0.36}, SHARP]
    for method in ("sr-gkp", "cc", "fpgm"):
        lab.net(method, log=peak)
    found = decide(claim("epoch-chosen-on-test"), lab.case())[0]
    assert found.verdict == FAILS and found.ours == "+2.00 points"


def test_pixel_space_leaves_an_undefended_network_nothing(lab):
    lab.net("sr-gkp")
    lab.net("baseline")
    lab.net("baseline", {"pgd-8/255": 0.0}, part="pixel")
    found = decide(claim("pgd-is-not-8-255-of-a-pixel"), lab.case())[0]
    assert found.verdict == FAILS and found.ours == "40.0 % in normalised units, 0.0 % in pixels"


# ---- which cells ----


def test_missing_cells_are_not_run_with_their_count_and_cost(lab):
    lab.net("sr-gkp")
    lab.net("tmi-gkp", finished=False)
    found, cells = decide(claim("sr-over-tmi"), lab.case())
    assert found.verdict == NOT_RUN and len(cells) == 4
    assert "2 of 4 cells are not finished, about " in found.reason and "TMI-GKP of resnet20 is not finished" in found.reason


def test_the_second_architecture_decides_where_the_first_has_nothing(tmp_path):
    lab = Lab(tmp_path, model="resnet20")
    lab.seeds_agree()
    for method in ("sr-gkp", "tmi-gkp", "cc", "fpgm"):
        lab.net(method)
    found = decide(claim("best-or-second-resnet56"), lab.case("resnet56"))[0]
    assert found.verdict == HOLDS and found.setting.startswith("ResNet-20, 3 epochs (the paper: ResNet-56, ")


def test_evidence_goes_by_options_rate_and_epochs_never_by_place(lab):
    lab.net("sr-gkp", options={"alpha": 0.1})
    lab.net("sr-gkp", rate=10 / 16)
    lab.net("sr-gkp", epochs=1)
    lab.net("sr-gkp", scratch=True)
    lab.net("sr-gkp", seed=5)
    index = lab.case().index
    assert {seed: cell.epochs for seed, cell in index.networks(SR, "resnet20").items()} == {5: 3}
    assert index.networks(Net("sr-gkp", (("alpha", 0.1),)), "resnet20")[0].options == (("alpha", 0.1),)
    assert index.networks(Net("sr-gkp", (), 10 / 16), "resnet20")[0].rate == 10 / 16
    assert index.networks(BASELINE, "resnet20") == {0: lab.baseline}
    assert index.networks(SR, "resnet56") == {}


def test_the_longest_complete_fine_tuning_decides_and_lengths_are_never_mixed(tmp_path):
    found = []
    for name, finished in (("half", False), ("whole", True)):
        (tmp_path / name).mkdir()
        lab = Lab(tmp_path / name)
        for method in ("sr-gkp", "tmi-gkp"):
            lab.net(method)
        lab.net("sr-gkp", {"pgd-8/255": 0.5}, epochs=30)
        lab.net("tmi-gkp", epochs=30, finished=finished)
        found.append(decide(claim("sr-over-tmi"), lab.case())[0])
    half, whole = found
    assert half.value == 0 and "3 epochs" in half.setting
    assert whole.value == pytest.approx(0.1 / 3) and "30 epochs" in whole.setting


def test_one_seed_of_a_long_fine_tuning_is_as_uncertain_as_the_seeds_of_a_short_one(lab):
    for seed, share in enumerate((0.3, 0.4, 0.5)):
        lab.net("sr-gkp", {"pgd-8/255": share}, seed=seed)
    short = lab.case().spread("paper", ["pgd-8/255"])
    lab.net("sr-gkp", {"pgd-8/255": 0.5}, epochs=30)
    case = lab.case()
    long = case.at(lab.model, (), case.index.by_schedule(lab.model)[0])
    assert long.epochs() == 30 and long.spread("paper", ["pgd-8/255"]) == short == Spread(pytest.approx(0.1), 2)


def test_digits_give_no_verdict_though_the_arithmetic_runs(tmp_path):
    lab = Lab(tmp_path, dataset="digits")
    lab.net("sr-gkp", {"pgd-8/255": 0.5})
    lab.net("tmi-gkp")
    found = decide(claim("sr-over-tmi"), lab.case())[0]
    assert found.verdict == NO_VERDICT and found.value == pytest.approx(0.1 / 3)
    assert not any(word in NO_VERDICT for board in BOARDS for word in VERDICTS[board])


# ---- every claim ----


@pytest.mark.parametrize(
    ("line", "wrong", "message"),
    [
        ('name = "best_or_second"', 'name = "best_or_secnd"', "there is no rule 'best_or_secnd'; the rules are contrasts, "),
        ('keys = "', 'kyes = "', "rule best_or_second has no parameter 'kyes'; it has against, keys, rate"),
        ('keys = "benign, ', 'rate = "7/16", keys = "benign, ', "rate is '7/16', and has to be float"),
        (', keys = "benign, (a), (b), (c)"', "", "rule best_or_second needs keys"),
        ('keys = "benign', 'keys = "bening', "'bening' is no column; give benign, (a), (b), (c), or an attack such as"),
        ('["cc", "fpgm"]', '"cc"', "against is 'cc', and has to be a list"),
        ('["cc"', '["ccc"', "no method is called 'ccc'; there are cc, "),
        ("statement = ", "statment = ", "there is no field 'statment'; the fields are item, statement, "),
        ("tolerance = ", "# ", "tolerance is missing"),
        ("gpu = { resnet56", "gpu = { resnet65", "there is no setting 'resnet65'; give resnet20, "),
        ("page = ", 'kind = "ordre"\npage = ', "there is no kind 'ordre'; give value, order at equal MACs, "),
    ],
)
def test_what_is_misspelt_in_the_claims_is_refused_in_one_line_that_names_the_claim(line, wrong, message):
    text = """
[tables]
page = "8"
[tables.sr-first]
item = "Table 10"
statement = "SR-GKP is best"
reported = "94.08 %"
tolerance = "none"
rule = { name = "best_or_second", against = ["cc", "fpgm"], keys = "benign, (a), (b), (c)" }
gpu = { resnet56 = 2 }
"""
    (found,) = read_claims(text, "claims.toml")
    assert (found.id, found.kind, found.page) == ("sr-first", "order at equal MACs", "8")
    assert found.parameters["against"] == (Net("cc"), Net("fpgm")) and line in text
    with pytest.raises(BadInput, match=r"^claims.toml, claim tables\.sr-first: .*") as refused:
        read_claims(text.replace(line, wrong), "claims.toml")
    assert str(refused.value).partition("sr-first: ")[2].startswith(message) and "\n" not in str(refused.value)


def test_a_contrast_that_cannot_be_read_and_a_file_that_is_no_toml_are_refused():
    text = FILE.read_text(encoding="utf-8")
    first = 'more = ["sr-gkp"], less = ["tmi-gkp"], keys = "(a), (b), (c)", printed = { table = 10 }'
    assert text.count(first) == 1
    for wrong, said in (
        (first.replace("more", "mroe"), "a contrast has no parameter 'mroe'; it has name, more, less, keys, part, "),
        (first.replace("printed", 'margin = "1", printed'), "margin is '1', and has to be float | None"),
        (
            first.replace("printed = { table", "printed = { tabel"),
            "the printed difference of SR-GKP minus TMI-GKP cannot be read",
        ),
        (first.replace("table = 10", 'table = 10, less = ["TMI"]'), "the printed difference of SR-GKP minus TMI-GKP cannot be"),
        (first.replace("table = 10", "table = 21"), "the paper has no table 21"),
    ):
        with pytest.raises(BadInput, match=re.escape(f"claims.toml, claim main.sr-over-tmi: {said}")):
            read_claims(text.replace(first, wrong), "claims.toml")
    with pytest.raises(BadInput, match=r"^claims.toml cannot be read: .*line 1"):
        read_claims("[main\n", "claims.toml")
    with pytest.raises(BadInput, match=r"claim values.fragility: there is another of this name"):
        read_claims(text.replace("[values.value-table-9]", "[values.fragility]"), "claims.toml")


def test_every_rule_decides_a_claim():
    assert {claim.rule.name for claim in claims()} == set(RULES)


def test_a_method_with_a_search_before_it_is_compared_with_those_that_are_fine_tuned_as_long(lab):
    lab.net("sr-gkp")
    lab.net("gal", epochs=8, soft_epochs=5)
    lab.net("l2", epochs=30)
    longer, shorter = lab.case().index.by_schedule(lab.model)
    assert [net.method for net in longer.methods(lab.model)] == ["l2"]
    assert [net.method for net in shorter.methods(lab.model)] == ["sr-gkp", "gal"]


def test_a_method_that_trains_its_small_network_for_longer_makes_no_schedule_of_its_own(lab):
    for method in ("none", "sr-gkp"):
        lab.net(method)
    lab.net("dhp", epochs=9, soft_epochs=3)  # three epochs of search, then six from scratch
    (only,) = lab.case().index.by_schedule(lab.model)
    assert [net.method for net in only.methods(lab.model)] == ["none", "sr-gkp"]
    assert lab.case().at(lab.model, (), only).epochs() == 3
    lab.net("none", epochs=30)
    lab.net("sr-gkp", epochs=30)
    assert [part.tuned(lab.model).finetuned for part in lab.case().index.by_schedule(lab.model)] == [30, 3]


def test_the_rivals_of_a_claim_are_the_methods_of_its_table_that_are_here_and_not_trained_for_robustness():
    here = {name: method for name, method in names_here().items() if not trained_for_robustness(method)}
    for c in claims():
        if c.rule is best_or_second:
            printed = superscores(int(c.items[0].removeprefix("Table "))).index
            rivals = [here[name] for name in printed if name in here and name not in ("SR-GKP", "Unpruned")]
            assert [net.method for net in c.parameters["against"]] == rivals, c.id


def test_every_number_that_a_claim_reports_is_printed_or_follows():
    """With two decimals or more it is in one of the tables; a difference in points is that of the claim's own contrasts."""
    printed = published()["value"]
    known = {f"{value:.{digits}f}" for value in printed for digits in (2, 3)}
    for c in claims():
        decimals = re.findall(r"(?<![\d+-])\d+\.\d\d+", c.reported)
        assert set(decimals) <= known, c.id
        parts = [part for part in c.parameters.get("contrasts", ()) if part.reported is not None]
        if "not reported" not in c.reported:
            for part in parts:
                assert len(c.parameters["contrasts"]) > 1 or f"{100 * part.reported:+.1f} points" in c.reported, c.id


def test_no_two_claims_have_one_statement():
    """Those of Tables 9 and 17, which have one network at two rates, read alike and had opposite verdicts."""
    told = [c.statement for c in claims()]
    assert len(set(told)) == len(told)


def test_every_table_and_figure_has_a_claim_and_ids_are_unique():
    items = {item for c in claims() for item in c.items}
    assert items == {*(f"Table {n}" for n in TABLES), *(f"Figure {n}" for n in FIGURES), "text"}
    assert len({c.id for c in claims()}) == len(claims())
    assert {c.kind for c in claims()} == set(KINDS)


@pytest.mark.parametrize("profile", ["quick", "cifar10", "paper"])
def test_all_seeds_of_a_network_are_evaluated_on_the_same_images(profile):
    index = Index.of(profile)
    several = 0
    for model in ("resnet20", "resnet56", "resnet32", "resnet110"):
        for net in index.methods(model):
            for part in ("paper", "pixel"):
                found = [index.evaluation(cell, part) for cell in index.networks(net, model).values()]
                assert len({cell.examples for cell in found if cell}) == 1
                several += len(found) > 1
    assert several


@pytest.mark.parametrize("profile", ["quick", "cifar10", "paper"])
def test_the_cells_of_every_claim_are_cells_of_the_profile(profile):
    index = Index.of(profile)
    known = {cell.hash for cell in index.cells}
    without = set()
    for c in claims():
        per_model = [c.find(part, model) for model in c.models for part in index.by_schedule(model)]
        assert known.issuperset(cell.hash for cells in per_model for cell in cells)
        if not any(per_model):
            without.add(c.id)
    decided_elsewhere = {c.id for c in claims() if not c.models}  # counted, computed, printed, or of other data sets
    costly = {c.id for c in claims() if c.gpu_hours}
    small = {c.id for c in claims() if c.id.endswith("half-a-level")} if profile == "quick" else set()  # digits fall later
    assert without <= decided_elsewhere | costly | {"official-unpruned", "official-one-shot"} | small
    if profile == "paper":
        assert without <= decided_elsewhere | {"official-unpruned", "official-one-shot"}


def test_gpu_hours_are_scaled_from_the_published_wall_time():
    assert gpu_hours("resnet20", 1) == pytest.approx(146 / 60)
    assert gpu_hours("resnet56", 2) == pytest.approx(2 * 146 / 60 * 126.561 / 40.938)
    assert claim("tiny-resnet-56").gpu_hours == pytest.approx(3 * 146 / 60 * 506.254 / 40.938 * 2)


@pytest.fixture(scope="module")
def table():
    return verdicts("cifar10")


def test_a_verdict_row_has_everything_and_every_number_its_n_seeds_and_interval(table):
    points = table.points
    wanted = {"id", "item", "statement", "reported", "ours", "n", "seeds", "interval", "tolerance", "verdict", "reason",
              "command", "minutes"}  # fmt: skip
    assert wanted <= set(points) and len(points) == len(claims()) == len(table.shown)
    assert all(row["verdict"] in VERDICTS[row["board"]] for _, row in points.iterrows())
    for column in ("item", "statement", "reported", "tolerance", "reason", "command", "page"):
        assert (points[column] != "").all(), column
    measured = points[points["ours"] != ""]
    assert (measured["n"] > 0).all() and (measured["seeds"] > 0).all() and (measured["interval"] != "").all()
    assert ((points["ours"] == "") == (points["verdict"] == NOT_RUN)).all()
    assert list(table.shown) == ["statement", "reported", "ours", "setting", "verdict"] and table.notes.keys() == set(
        points["id"]
    )
    assert (points["p_holm"].dropna() >= points["p"].dropna()).all() and points["p_holm"].notna().any()
    assert (points["setting"].map(bool) | (points["board"] != "claims") | (points["verdict"] == NOT_RUN)).sum() >= len(
        points
    ) - 1
    assert points["minutes"].ge(0).all()
    only = points["command"].str.extract(r"make reproduce PROFILE=cifar10 ONLY=(\S+)( COMPUTE=1)?$")
    assert set(only[0]) <= NOTEBOOKS
    assert only[1].notna().tolist() == [bool(claim.models) for claim in claims()]  # the others need no network


def test_a_notebook_shows_the_claims_that_name_it_and_those_of_its_tables():
    own = verdicts("cifar10", notebook="06_high_rate").points
    assert len(own) and own["command"].str.contains("ONLY=06_high_rate").all()
    both = verdicts("cifar10", item="Table 20", notebook="06_high_rate").points
    assert set(both["id"]) == set(own["id"]) | set(verdicts("cifar10", item="Table 20").points["id"]) > set(own["id"])
    with pytest.raises(BadInput, match=r"no claim is shown by '06'; the notebooks that show some: 01_fragility, "):
        verdicts("cifar10", notebook="06")


def test_what_no_profile_can_run_says_what_it_takes(table):
    rows = table.points.set_index("id")
    for name in ("imagenet-self-trained", "tiny-resnet-101", "best-or-second-resnet110", "value-table-12"):
        assert rows.loc[name, "verdict"] == NOT_RUN and "GPU-hours" in rows.loc[name, "reason"]


def test_counter_evidence_inside_the_paper_has_its_rows(table):
    rows = table.points.set_index("id")
    assert (rows.loc[rows["kind"] == "internal", "seeds"] == 1).all()
    reason = rows.loc["printed-best-or-second-11", "reason"]
    assert rows.loc["printed-best-or-second-11", "verdict"] == INCONSISTENT
    assert "(b) FGSM .1: FPGM 54.15, GAL 52.79, SFP 53.62; (c) PGD 8/255: FPGM 52.82, GAL 57.55, SFP 52.57" in reason
    assert rows.loc["printed-mean-ranks", "verdict"] == CONSISTENT
    for name in ("printed-text-rap", "printed-text-imagenet", "printed-labels", "printed-copies", "printed-1600",
                 "printed-high-frequencies", "printed-epoch-choice", "printed-mean-ranks-resnet110"):  # fmt: skip
        assert rows.loc[name, "verdict"] == INCONSISTENT, name
    assert rows.loc["printed-1600", "ours"] == "1,826 times"
    assert "Table 17, CC, Best (a): 69.99; Table 18, L1Norm-B, Best (b): 26.19" in rows.loc["printed-labels", "reason"]


def test_counts_are_reproduced_to_the_last_digit_but_for_the_misprint(table):
    rows = table.points.set_index("id")
    assert all(
        rows.loc[f"macs-{model}", "verdict"] == REPRODUCED for model in ("resnet20", "resnet32", "resnet56", "resnet110")
    )
    assert rows.loc["macs-vgg16_bn", "reason"] == "314.433 instead of 313.433"


def test_each_board_has_its_headline_and_its_table(table):
    points = table.points
    lines = headlines(points)
    assert [line.partition(":")[0] for line in lines] == ["Exactness", "Claims", "Consistency"]
    assert sum(int(number) for line in lines for number in re.findall(r"\d+", line)) == len(points)
    boards = [on_board(table, board) for board in BOARDS]
    assert sorted(i for board in boards for i in board.points["id"]) == sorted(points["id"])
    assert set(boards[0].points["board"]) == {EXACTNESS} and set(boards[2].points["kind"]) == {"internal"}
    assert set(points.loc[points["board"] == CONSISTENCY, "seeds"]) == {1}
    assert "<details>" in table._repr_html_() and "make reproduce" not in table.shown.to_string()
    with pytest.raises(BadInput, match="there is no board 'exact'; there are exactness, claims, consistency"):
        on_board(table, "exact")


def test_p_values_are_corrected_for_all_claims_of_one_table_of_claims(table):
    of_main = table.points[table.points["id"].isin([c.id for c in claims() if c.family == "main"])].dropna(subset="p")
    assert len(of_main) > 3
    p, corrected = of_main["p"].to_numpy(), of_main["p_holm"].to_numpy()
    order = np.argsort(p)
    by_hand = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    assert corrected[order] == pytest.approx(by_hand)


def test_a_notebook_can_ask_for_its_own_tables():
    found = verdicts("quick", item=["Table 5", "Figure 4"])
    assert all({"Table 5", "Figure 4"} & set(item.split(", ")) for item in found.points["item"]) and len(found.points) >= 4
    assert set(found.points["verdict"]) == {NO_VERDICT}
    with pytest.raises(BadInput, match="no claim is about 'Table 21'; give Table 1 to Table 20"):
        verdicts("quick", item="Table 21")


def test_results_of_a_run_count_whatever_the_store_holds(lab, monkeypatch, tmp_path):
    lab.seeds_agree()
    lab.net("sr-gkp", {"pgd-8/255": 0.5})
    lab.net("tmi-gkp")
    monkeypatch.setattr(profiles, "cells", lambda profile, *groups: lab.cells)
    empty = Store(tmp_path / "none")
    assert not case_of("cifar10", store=empty).results
    found = verdicts("cifar10", list(lab.results.values()), item="Table 2", store=empty).points.set_index("id")
    assert found.loc["sr-over-tmi", "verdict"] == HOLDS


def test_minutes_are_stated_for_the_cores_a_cell_takes_and_the_attacks_it_makes(lab):
    one = TrainCell(epochs=1)
    assert stated_minutes([one]) == pytest.approx(45_000 / 170 / 60)
    assert stated_minutes([replace(one, threads=2)]) == pytest.approx(45_000 / 340 / 60)
    paper = EvaluateCell(net=one, protocol="paper", examples=1000)
    frequency = EvaluateCell(net=one, examples=1000, attacks=(), variant="high-frequency-0.3")
    cost = [60 * (stated_minutes([cell]) - stated_minutes([one])) for cell in (paper, frequency)]
    assert cost == pytest.approx([8 * 1000 / 400, 1000 / 400])


@pytest.mark.parametrize("model", ["resnet20", "resnet32"])
def test_whether_a_balancer_selects_at_all_is_counted_from_the_plans(tmp_path, model):
    lab = Lab(tmp_path, model=model)
    for options in ({}, {"alpha": 0.1}):
        lab.net("sr-gkp", options=options)
    found, _ = decide(claim("csb-selects"), lab.case())
    assert found.verdict == NOT_RUN and "was kept without it" in found.reason  # their networks are not there
    nets = [result for result in lab.results.values() if isinstance(result.cell, PruneCell)]
    net = build_model(model)
    same, other = (prune(net, name).compact() for name in ("l2-gkp", "random-gkp"))
    for result in nets:
        save_model(same, result.folder / "compact")
    found, _ = decide(claim("csb-selects"), lab.case())
    assert (found.verdict, found.ours, found.value) == (FAILS, "0.0 % of the kernels are others", 0)
    shutil.rmtree(nets[1].folder / "compact")
    save_model(other, nets[1].folder / "compact")
    found, _ = decide(claim("csb-selects"), lab.case())
    assert found.verdict == HOLDS and found.value == pytest.approx(7 / 16, abs=0.02)


def test_a_method_names_those_of_its_options_that_fit_a_search():
    fitted = {name: set(info.fitted) for name, info in methods().items() if info.fitted}
    assert fitted["otov2-scratch"] == fitted["otov2"] == {"deadline", "sparsity", "warm_up"} and "sr-gkp" not in fitted
    assert all(names <= set(methods()[method].options) for method, names in fitted.items())


@pytest.mark.parametrize("profile", ["quick", "cifar10", "paper"])
def test_options_that_fit_a_search_to_its_length_make_no_variant_of_a_method(profile):
    main = [cell for cell in profiles.cells(profile, "main") if isinstance(cell, PruneCell)]
    assert any(cell.options for cell in main) and not any(variant_of(cell) for cell in main)
    variants = [cell for cell in profiles.cells(profile, "ablations") if isinstance(cell, PruneCell) and variant_of(cell)]
    assert {row_name(cell) for cell in variants} >= {"sr-gkp (alpha 0.75)", "sr-gkp (beta paper)", "tmi-gkp (grouping random)"}
    index = Index.of(profile)
    model = main[0].model
    assert {net.method for net in index.methods(model)} == {
        cell.method for cell in main if not trained_for_robustness(cell.method)
    }
    assert all(index.networks(net, model) for net in index.methods(model))
