"""Evaluations that are killed and go on, and networks that cannot be evaluated as they are."""

from __future__ import annotations

import inspect
import io
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import Net, noise

from gkp.artifact.experiments import stages
from gkp.artifact.experiments.compute import Context
from gkp.attacks.gradient import pgd
from gkp.attacks.options import ATTACKS
from gkp.checkpoints import save_model
from gkp.data.dataset import Dataset
from gkp.data.sources import CIFAR10_MEAN, CIFAR10_STD, load_dataset
from gkp.errors import BadInput, ModelWarning
from gkp.evaluation import attacked as evaluation
from gkp.evaluation import protocols
from gkp.evaluation.benchmark import benchmark
from gkp.evaluation.outcomes import AttackSpec, Outcomes
from gkp.evaluation.protocols import PAPER_BOX
from gkp.evaluation.resume import Pieces
from gkp.networks.build import build_model

L2 = {"attack": "pgd", "eps": 0.3, "options": {"norm": "l2", "steps": 2}}
ROWS = ["fgsm", {"attack": "pgd", "options": {"steps": 3}}, L2]  # what the evaluations below run, at 2/255


class Mortal(Net):
    """`Net` that is killed at the `life`-th batch it sees."""

    def __init__(self, life: int = 10**9):
        super().__init__()
        self.life = life

    def forward(self, x: Tensor) -> Tensor:
        self.life -= 1
        if self.life < 0:
            raise KeyboardInterrupt
        return super().forward(x)


def run(net: nn.Module, data: Dataset, **options) -> Outcomes:
    return benchmark(net, data, **{"eps": "2/255", "attacks": ROWS, "seed": 4, "batch_size": 16, **options})


def npz(out: Outcomes, folder: Path) -> bytes:
    return (out.save(folder) / "outcomes.npz").read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


@pytest.fixture(autouse=True)
def no_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks run on the network itself, which counts its passes and dies; that a twin changes nothing is tested elsewhere."""
    monkeypatch.setattr(protocols, "folded", lambda net, x: net)


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 7 images, so that small evaluations have many."""
    monkeypatch.setattr(evaluation, "_FEWEST", 7)
    monkeypatch.setattr(evaluation, "_SECONDS", 0)


# --- killed and continued -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["pixel", "paper"])
def test_an_evaluation_killed_anywhere_goes_on_to_the_same_bytes(protocol, few_at_once, tmp_path):
    data = noise(14)
    options = {"protocol": protocol, **({"eps": None, "attacks": None, "true_labels": True} if protocol == "paper" else {})}
    net = Mortal()
    net.from_normalised = None  # so that the paper's protocol passes through `forward` too
    expected, batches = npz(run(net, data, **options), tmp_path / "whole"), 0
    for life in range(4, 10**9):
        killed = Mortal(life)
        killed.from_normalised = None
        try:
            run(killed, data, checkpoint=tmp_path / str(life), **options)
        except KeyboardInterrupt:
            batches += 1
        else:
            break
        out = run(net, data, checkpoint=tmp_path / str(life), batch_size=(5, 200)[life % 2], **options)
        assert npz(out, tmp_path / "again") == expected
    assert batches > 15


def test_an_evaluation_that_is_killed_over_and_over_comes_to_its_end(few_at_once, tmp_path):
    data, deaths = noise(40), 0
    while True:
        try:
            out = run(Mortal(life=14), data, checkpoint=tmp_path / "kept", batch_size=(3, 16, 200)[deaths % 3])
            break
        except KeyboardInterrupt:
            deaths += 1
    assert deaths > 3
    assert npz(out, tmp_path / "out") == npz(run(Net(), data), tmp_path / "whole")


def test_what_is_finished_is_not_attacked_again(few_at_once, monkeypatch, tmp_path):
    seen: list[int] = []

    def watched(model, x, y, *, ids, **options):
        if len(seen) > 15:
            raise KeyboardInterrupt
        seen.extend(ids.tolist())
        return pgd(model, x, y, ids=ids, **options)

    watched.__signature__ = inspect.signature(pgd)
    monkeypatch.setitem(ATTACKS, "pgd", watched)
    data = noise(50)
    with pytest.raises(KeyboardInterrupt):
        run(Net(), data, attacks="pgd", checkpoint=tmp_path / "kept")
    before, seen[:] = list(seen), []
    monkeypatch.setattr(evaluation, "_FEWEST", 16)
    with pytest.raises(KeyboardInterrupt):
        run(Net(), data, attacks="pgd", checkpoint=tmp_path / "kept")
    assert len(before) == 21 and not set(before) & set(seen)
    assert sorted(before + seen) == [i for i in range(50) if i % 5][: len(before) + len(seen)]  # every fifth is misclassified


def test_a_finished_evaluation_costs_three_batches_and_leaves_the_checkpoint_as_it_was(tmp_path):
    data = noise(40)
    first = run(Net(), data, checkpoint=tmp_path / "kept")
    before, net = contents(tmp_path / "kept"), Mortal(life=5)  # asked before anything else
    assert np.array_equal(run(net, data, checkpoint=tmp_path / "kept").right, first.right)
    assert contents(tmp_path / "kept") == before


@pytest.mark.parametrize("counts", [(20, 45), (45, 20)])
def test_a_checkpoint_serves_more_or_fewer_images(counts, tmp_path):
    data = noise(45)
    for n in counts:
        out = run(Net(), data, n_examples=n, checkpoint=tmp_path / "kept")
        assert npz(out, tmp_path / "out") == npz(run(Net(), data, n_examples=n), tmp_path / "whole")
    part = run(Net(), data, indices=[44, 3, 17], checkpoint=tmp_path / "kept")
    assert np.array_equal(part.right, run(Net(), data).right[:, [3, 17, 44]])


@pytest.mark.parametrize(
    ("seconds", "sizes"),  # of an image; of the pieces
    [(17, [16] * 30), (0.5, [16, 32, 64, 120, 120, 120, 8]), (1e-4, [16, 32, 64, 100, 100, 100, 68])],
)
def test_a_piece_takes_about_a_minute_or_sixteen_images(seconds, sizes, monkeypatch, tmp_path):
    clock, found, save = [0.0], [], Pieces.save

    def kept(self: Pieces, row: int, **arrays: np.ndarray) -> None:
        if row == 1:
            found.append(len(arrays["indices"]))
        save(self, row, **arrays)

    def dear(model, x, y, *, eps):
        clock[0] += seconds * len(x)
        return x

    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(Pieces, "save", kept)
    monkeypatch.setitem(ATTACKS, "dear", dear)
    data = noise(480, wrong=480)
    data.labels[0] = Net().eval()(data.pixels([0])).argmax(1)
    batch = 10 if seconds < 0.1 else 200  # no piece is larger than ten batches
    benchmark(Net(), data, attacks=AttackSpec("dear", 0.1), batch_size=batch, checkpoint=tmp_path)
    assert found == sizes


# --- another evaluation's checkpoint --------------------------------------------------------------------------------


class Elsewhere(Net):
    """The weights of `Net` to the bit, and another function."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * 8).round() / 8)


def other_weights() -> nn.Module:
    net = Net()
    net.body[8].bias.data[0] += 1e-3
    return net


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": other_weights()}, "model_sha256 is '.* in one, '"),
        ({"model": Elsewhere()}, "another network, of the same weights but with other logits"),
        ({"data": noise(21)}, "data_sha256 is '.* in one, '"),
        ({"data": noise(20, name="noisy")}, "dataset is 'noise' in one, 'noisy' in the other"),
        ({"seed": 5}, "seed is 4 in one, 5 in the other"),
        ({"eps": "3/255"}, r"rows is \['fgsm-2/255', .* in one, \['fgsm-3/255', .* in the other"),
        ({"attacks": ["fgsm", "pgd", L2]}, r"row pgd-2/255 is \{.* in one, \{.* in the other"),
        ({"attacks": "fgsm"}, "rows is "),
        ({"protocol": "paper", "eps": None, "attacks": None}, "protocol is 'pixel' in one, 'paper' in the other"),
        ({"allow_nondeterministic": True}, "allow_nondeterministic is False in one, True in the other"),
    ],
)
def test_a_checkpoint_of_another_evaluation_is_refused_and_left_alone(changed, message, tmp_path):
    run(Net(), noise(20), checkpoint=tmp_path / "kept")
    before, call = contents(tmp_path / "kept"), {"model": Net(), "data": noise(20), **changed}
    with pytest.raises(BadInput, match=message) as caught:
        run(call.pop("model"), call.pop("data"), checkpoint=tmp_path / "kept", **call)
    assert "give another folder, or delete it to start anew" in str(caught.value) and "\n" not in str(caught.value)
    assert contents(tmp_path / "kept") == before


@pytest.mark.parametrize("part", ["mean", "std"])
def test_in_the_papers_protocol_images_normalised_by_other_numbers_are_another_evaluation(part, tmp_path):
    data = replace(noise(20), name="cifar10", mean=CIFAR10_MEAN, std=CIFAR10_STD)
    other = replace(data, **{"mean": {"mean": (0.5, 0.4822, 0.4465)}, "std": {"std": (0.247, 0.2435, 0.2616)}}[part])
    first, second = (benchmark(Net(), d, protocol="paper", attacks="fgsm-0.1", seed=4) for d in (data, other))
    ends = [((0 - m) / s, (1 - m) / s) for m, s in zip(other.mean, other.std, strict=True)]
    assert first.bounds == PAPER_BOX["cifar10"] and second.bounds == (min(a for a, _ in ends), max(b for _, b in ends))
    with pytest.raises(BadInput, match="bounds is "):
        first.merge(second)
    benchmark(Net(), data, protocol="paper", attacks="fgsm-0.1", seed=4, checkpoint=tmp_path / "kept")
    with pytest.raises(BadInput, match=r"(bounds|mean|std) is .* in one"):
        benchmark(Net(), other, protocol="paper", attacks="fgsm-0.1", seed=4, checkpoint=tmp_path / "kept")


def test_a_checkpoint_made_with_another_version_of_torch_is_refused(monkeypatch, tmp_path):
    run(Net(), noise(20), checkpoint=tmp_path / "kept")
    monkeypatch.setattr(torch, "__version__", "9.9")
    with pytest.raises(BadInput, match=r"versions is .* in one, .*9\.9.* in the other"):
        run(Net(), noise(20), checkpoint=tmp_path / "kept")


def test_pieces_that_strayed_in_from_another_evaluation_are_not_merged(tmp_path):
    data, other = noise(30), Net()
    other.body[8].weight.data.neg_()  # wrong where `Net` is right
    run(other, data, attacks="fgsm", checkpoint=tmp_path / "other")
    run(Net(), data, attacks="fgsm", n_examples=1, checkpoint=tmp_path / "kept")
    for name, piece in contents(tmp_path / "other").items():
        if name.endswith(".npz"):
            (tmp_path / "kept" / name).write_bytes(piece)
    out = run(Net(), data, attacks="fgsm", checkpoint=tmp_path / "kept")
    assert npz(out, tmp_path / "out") == npz(run(Net(), data, attacks="fgsm"), tmp_path / "whole")


def test_a_checkpoint_is_a_folder_that_can_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place, message in ((tmp_path / "file", "is a file; give a folder"), (tmp_path / "file" / "in", "cannot be written")):
        with pytest.raises(BadInput, match=message):
            run(Net(), noise(20), checkpoint=place)
    assert (tmp_path / "file").read_text() == "mine"


# --- damage ---------------------------------------------------------------------------------------------------------


def test_pieces_that_are_cut_off_or_changed_are_computed_again(few_at_once, tmp_path):
    data = noise(20)
    expected = npz(run(Net(), data, checkpoint=tmp_path / "kept"), tmp_path / "whole")
    whole = contents(tmp_path / "kept")
    assert len(whole) > 6
    for name, piece in whole.items():
        for damaged in (b"", piece[:-1], piece[:60] + bytes([piece[60] ^ 1]) + piece[61:], None):
            for other, content in whole.items():
                (tmp_path / "kept" / other).write_bytes(content)
            if damaged is None:
                (tmp_path / "kept" / name).unlink()
            else:
                (tmp_path / "kept" / name).write_bytes(damaged)
            try:
                out = run(Net(), data, checkpoint=tmp_path / "kept")
            except BadInput:  # it may only be what says whose evaluation it is, changed into another's
                assert name == "evaluation.json" and damaged
                continue
            assert npz(out, tmp_path / "out") == expected
            if name == "evaluation.json":
                assert contents(tmp_path / "kept") == whole


def test_a_full_disk_ends_the_evaluation_and_keeps_what_was_finished(few_at_once, monkeypatch, tmp_path):
    data, write, left = noise(30), Path.write_bytes, [4]  # room for evaluation.json and three pieces

    def full(self: Path, content: bytes) -> int:
        if left[0] == 0:
            write(self, content[:10])
            raise OSError(28, "No space left on device")
        left[0] -= 1
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BadInput, match="No space left on device"):
        run(Net(), data, checkpoint=tmp_path / "kept")
    monkeypatch.undo()
    assert len(os.listdir(tmp_path / "kept")) == 4 and not list((tmp_path / "kept").glob("*.partial"))
    out = run(Net(), data, checkpoint=tmp_path / "kept")
    assert npz(out, tmp_path / "out") == npz(run(Net(), data), tmp_path / "whole")


def test_pieces_can_be_read_without_this_package_and_hold_no_pickle(tmp_path):
    run(Net(), noise(20), checkpoint=tmp_path / "kept")
    for name, piece in contents(tmp_path / "kept").items():
        if name.endswith(".npz"):
            with np.load(io.BytesIO(piece), allow_pickle=False) as arrays:
                assert arrays["right"].dtype == bool and arrays["right"].shape[1] == len(arrays["indices"])


# --- attacks on all images together ---------------------------------------------------------------------------------


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """An "autoattack" whose outcome for an image depends on its place in the call; the ids of each call."""
    calls: list[list[int]] = []

    def autoattack(model, x, y, *, eps, norm="linf", seed=0, ids=None, bounds=(0.0, 1.0), batch_size=None, version="standard"):
        calls.append(ids.tolist())
        turn = torch.arange(len(x)) % batch_size == 0
        return torch.where(turn[:, None, None, None], 1 - x, x)

    monkeypatch.setitem(ATTACKS, "autoattack", autoattack)
    return calls


def test_autoattack_gets_all_images_in_one_call_and_its_batch_size_is_written_down(together, few_at_once, tmp_path):
    data = noise(50)
    for size in (2, 3):
        out = run(Net(), data, attacks="autoattack", batch_size=size, checkpoint=tmp_path / str(size))
        assert together.pop() == [i for i in range(50) if i % 5]  # those that are classified correctly
        assert out.attacks == (AttackSpec("autoattack", 2 / 255, options={"batch_size": size}),)
        assert list(out.accuracy()) == ["clean", "autoattack-2/255", "worst-case-2/255"]
        assert Outcomes.load(out.save(tmp_path / "out")).attacks == out.attacks
        again = run(Net(), data, attacks="autoattack", batch_size=size, checkpoint=tmp_path / str(size))
        assert not together and np.array_equal(again.right, out.right)
    assert not np.array_equal(out.right, run(Net(), data, attacks="autoattack", batch_size=2).right)


def test_autoattack_of_other_images_or_another_batch_size_is_not_taken_for_this_one(together, tmp_path):
    data = noise(50)
    few = run(Net(), data, attacks="autoattack", n_examples=30, checkpoint=tmp_path / "kept")
    more = run(Net(), data, attacks="autoattack", checkpoint=tmp_path / "kept")
    assert [len(call) for call in together] == [24, 40]
    assert np.array_equal(more.right, run(Net(), data, attacks="autoattack").right)
    with pytest.raises(BadInput, match="row autoattack-2/255 is"):
        run(Net(), data, attacks="autoattack", batch_size=7, checkpoint=tmp_path / "kept")
    with pytest.raises(BadInput, match="depends on which images are attacked together"):
        few.merge(more)
    assert few.merge(run(Net(), data, attacks="pgd", n_examples=30)).right.shape == (3, 30)


def test_an_autoattack_that_is_killed_goes_on_and_its_parts_are_gone_when_the_row_is_finished(tmp_path):
    custom = {"attack": "autoattack", "options": {"version": "custom", "attacks_to_run": ["apgd-ce"]}}
    data, folder = noise(16), tmp_path / "kept"
    options = {"attacks": [custom], "batch_size": 4, "eps": "2/255"}
    counted = Mortal()
    whole = npz(run(counted, data, **options), tmp_path / "whole")
    assert 0 < run(Net(), data, **options).accuracy()["autoattack-2/255"] < 0.8
    passes = 10**9 - counted.life

    def killed(life: int) -> int:
        with pytest.raises(KeyboardInterrupt):
            run(Mortal(life), data, checkpoint=folder, **options)
        return len(list(folder.glob("part-*")))

    first = killed(passes // 2)
    assert 0 < first < killed(passes // 2)  # the second run had only the rest to do
    part = min(folder.glob("part-*"))
    part.write_bytes(part.read_bytes()[:-1])  # damaged, so it is attacked again
    assert npz(run(Net(), data, checkpoint=folder, **options), tmp_path / "out") == whole
    assert not list(folder.glob("part-*"))


def test_a_cascade_that_ends_in_autoattack_is_run_on_all_images_together(together, monkeypatch):
    def cascade(model, x, y, *, eps, attacks, batch_size=None, ids=None):
        return ATTACKS["autoattack"](model, x, y, eps=eps, batch_size=batch_size, ids=ids)

    monkeypatch.setitem(ATTACKS, "cascade", cascade)
    steps = ["fgsm", {"attack": "autoattack", "version": "custom"}]
    out = run(Net(), noise(50), attacks={"attack": "cascade", "options": {"attacks": steps}}, batch_size=3)
    assert len(together) == 1 and out.attacks[0].together and out.attacks[0].options == {"batch_size": 3, "attacks": steps}
    assert not AttackSpec("cascade", 0.1, options={"attacks": ["fgsm", {"attack": "pgd"}]}).together


# --- a cell of the grid ---------------------------------------------------------------------------------------------


def test_an_evaluation_cell_that_was_killed_goes_on_from_its_scratch_folder(monkeypatch, tmp_path):
    digits = load_dataset("digits", "test")
    save_model(build_model("resnet20", mean=digits.mean, std=digits.std), tmp_path / "parent" / "model")
    (tmp_path / "parent" / "result.json").write_text('{"figures": {"dataset": "digits"}}')
    attacks = ["fgsm", {"attack": "pgd", "options": {"steps": 2}}]
    params = {"protocol": "pixel", "examples": 20, "seed": 0, "batch_size": 16, "eps": ["1/255"], "attacks": attacks,
              "true_labels": False}  # fmt: skip

    def cell(name: str) -> dict:
        (tmp_path / name).mkdir(exist_ok=True)
        context = Context("cell", 1, tmp_path / f"{name}-scratch", io.StringIO())
        return stages.evaluate(params, {"net": tmp_path / "parent"}, tmp_path / name, context)

    whole, adversarial = cell("whole"), evaluation.adversarial

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "adversarial", killed)
    with pytest.raises(KeyboardInterrupt):
        cell("killed")
    monkeypatch.setattr(evaluation, "adversarial", adversarial)
    monkeypatch.setattr(evaluation, "single_step", killed)  # FGSM is finished
    assert cell("killed") == whole and contents(tmp_path / "killed") == contents(tmp_path / "whole")


# --- networks that cannot be evaluated as they are ------------------------------------------------------------------


class Probabilities(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class Shaky(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * torch.randn(1)


class Dropping(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, training=True)


class NotANumber(Net):
    """NaN for the images whose first pixel is black."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / (x[:, :1, 0, 0] > 0)


@pytest.mark.parametrize("protocol", ["pixel", "paper"])
def test_a_network_that_returns_probabilities_is_evaluated_with_a_warning(protocol):
    with pytest.warns(ModelWarning, match="seems to return probabilities .* return the logits") as caught:
        out = benchmark(Probabilities(), noise(20), protocol=protocol)
    assert out.accuracy()["clean"] == 0.8 and len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        benchmark(Net(), noise(20), eps="1/255", attacks="fgsm")


@pytest.mark.parametrize("net", [Shaky(), Dropping()])
def test_a_network_that_is_not_deterministic_is_refused_unless_told(net, tmp_path):
    with pytest.raises(
        BadInput, match=r"is not deterministic: logits .* differ by .* pass allow_nondeterministic=True"
    ) as caught:
        run(net, noise(20))
    assert "\n" not in str(caught.value)
    for _ in range(2):
        with pytest.warns(ModelWarning, match="outcomes are one draw"):
            out = run(net, noise(20), allow_nondeterministic=True, checkpoint=tmp_path / "kept")
    assert out.right.shape == (4, 20)


def test_nan_for_a_single_image_is_found_wherever_it_is(few_at_once, tmp_path):
    data = noise(60)
    data = replace(data, images=data.images.clamp(min=10))
    data.images[50, 0, 0, 0] = 0
    assert run(NotANumber(), data, n_examples=50, checkpoint=tmp_path / "kept").n == 50
    for checkpoint in (None, tmp_path / "kept"):
        with pytest.raises(BadInput, match="logits with NaN or Inf"):
            run(NotANumber(), data, checkpoint=checkpoint)


def test_images_without_labels_are_refused():
    data = noise(20)
    for labels, message in ((None, "labels are a NoneType"), (data.labels * 0 - 1, "labels run from -1 to -1"),
                            (data.labels[:19], "20 images but 19 labels")):  # fmt: skip
        with pytest.raises(BadInput, match=message):
            Dataset("mine", "test", data.images, labels, 4, data.mean, data.std)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": "1/255,8"}, "eps '8' is above 1, the whole range of a pixel; .* write \"8/255\""),
        ({"eps": "1/255,"}, "eps '' is not a number"),
        ({"eps": "-8/255"}, "eps '-8/255' is negative"),
        ({"eps": 1.01}, "eps 1.01 is above 1"),
        ({"eps": None, "attacks": {"eps": 0.1}}, 'has no field "attack"'),
        ({"attacks": {"attack": "pgd", "steps": 3}}, "has the unknown field 'steps'"),
        ({"attacks": "fgsm,pdg"}, "unknown attack 'pdg'; known: "),
        ({"attacks": "fgsm,fgsm"}, "two rows would be called 'fgsm-2/255'"),
        ({"attacks": [7]}, "an attack is a int; give its name"),
        ({"attacks": AttackSpec("pgd", 0.1, key="worst-case-1/255")}, "two rows would be called 'worst-case-1/255'"),
        ({"indices": [1, 1]}, "each image once"),
        ({"indices": [1, 20]}, r"indices run from 1 to 20; give positions in 0\.\.19"),
        ({"indices": [0.5]}, "at least one whole number"),
        ({"indices": [1], "n_examples": 1}, "both say which images"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(options, message):
    with pytest.raises(BadInput, match=message) as caught:
        run(Net(), noise(20), **options)
    assert "\n" not in str(caught.value)


def test_attacks_are_named_in_a_string_a_list_a_dict_or_a_spec():
    net, data, pair = Net(), noise(30), ["fgsm-1/255", "fgsm-2/255", "pgd-1/255", "pgd-2/255"]
    expected = run(net, data, attacks=["fgsm", "pgd"], eps=["1/255", 2 / 255])
    same = ("fgsm, pgd", ["fgsm,pgd"], [{"attack": "fgsm"}, {"attack": "pgd", "options": {}}], [AttackSpec("fgsm", "1/255"),
            {"attack": "fgsm", "eps": "2/255"}, "pgd"])  # fmt: skip
    for attacks in same:
        out = run(net, data, attacks=attacks, eps="1/255, 2/255")
        assert [spec.key for spec in out.attacks] == pair and np.array_equal(out.right, expected.right)
    l2 = run(net, data, attacks={"attack": "fgsm", "options": {"norm": "l2"}}, eps=None)
    assert list(l2.accuracy()) == ["clean", "fgsm-l2-0.5", "worst-case-l2-0.5"]
    paper = benchmark(net, data, protocol="paper", attacks="pgd-8/255,fgsm-0.1")
    assert list(paper.accuracy()) == ["clean", "pgd-8/255", "fgsm-0.1"]
