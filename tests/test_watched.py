"""Networks whose way depends on numbers, whose outputs hide much, or whose habits disturb those who ask them."""

import copy
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_graph_checked import FOLLOWED, MIXED, WIDTH, block
from torch import nn
from torch.nn import functional as F

import gkp
from gkp.errors import BadInput
from gkp.pruning.tracing import trace
from gkp.pruning.watched import Watched, turns

# Questions that no grey or random image answers with yes, as forward passes ask them.
QUESTIONS = {
    "brightness": lambda image: image.mean() > 0.9,
    "a number": lambda image: image.max().item() > 1.5,
    "a count": lambda image: int((image > 0.99999).all()) == 1,
    "sign": lambda image: bool((image < 0).any()),
    "not a number": lambda image: torch.isnan(image).any(),
}
YES = {"brightness": 2.0, "a number": 2.0, "a count": 1.0, "sign": -1.0, "not a number": float("nan")}
HIDING = {
    "largest class": lambda logits: logits.argmax(1),
    "certain": lambda logits: (1e6 * logits).softmax(1),
    "not a number": lambda logits: logits * float("nan"),
    "nothing": lambda logits: logits * 0,
}


class Asks(nn.Module):
    """Where the answer is yes, channels go through another block."""

    def __init__(self, question, name, hides=None):
        super().__init__()
        torch.manual_seed(0)
        self.question, self.hides = question, hides
        self.stem, self.body = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.other, self.fc = block(name), nn.Linear(WIDTH, 5)

    def forward(self, image):
        asked = self.question is None or QUESTIONS[self.question](image)
        x = F.relu(self.stem(image))
        x = self.body(self.other(x) if asked else x)
        logits = self.fc(F.relu(x).mean((2, 3)))
        return HIDING[self.hides](logits) if self.hides else logits


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([*QUESTIONS]), st.sampled_from([*MIXED, *FOLLOWED]))
def test_a_way_that_only_other_images_take_is_followed_too(question, name):
    net = Asks(question, name).eval()
    pruned = gkp.prune(net, "l2", rate=0.5, tolerance=0.9, input_shape=(3, 8, 8)).eval()
    assert ("stem" in pruned.plan) == (name in FOLLOWED)
    small = pruned.compact()
    for image in (torch.rand(2, 3, 8, 8), torch.full((2, 3, 8, 8), YES[question])):
        torch.testing.assert_close(small(image), pruned(image), rtol=1e-4, atol=1e-4, equal_nan=True)


class Counts(nn.Module):
    """Divides by the number of its channels, which no operation shows, if the image is bright or always."""

    def __init__(self, always, hides=None):
        super().__init__()
        torch.manual_seed(0)
        self.always, self.hides = always, hides
        self.stem, self.body, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, image):
        bright = image.mean() > 0.9
        x = F.relu(self.stem(image))
        x = self.body(x / len(x[0]) if self.always or bright else x)
        logits = self.fc(F.relu(x).mean((2, 3)))
        return HIDING[self.hides](logits) if self.hides else logits


@pytest.mark.parametrize("hides", HIDING)
def test_outputs_that_say_little_hide_no_difference(hides):
    pruned = gkp.prune(Counts(True, hides), "l2", rate=0.5, tolerance=0.9, input_shape=(3, 16, 16))
    assert "stem" not in pruned.plan and "differ in body" in pruned.left_out["stem"]


def test_both_forms_are_compared_on_the_other_way_too():
    pruned = gkp.prune(Counts(False), "l2", rate=0.5, tolerance=0.9, input_shape=(3, 16, 16))
    assert "stem" not in pruned.plan and "masked and compact differ" in pruned.left_out["stem"]


def test_numbers_that_are_read_are_noted_and_one_is_turned():
    x = torch.tensor([0.25, 3.0])
    with Watched() as seen:
        found = x[0].item(), int(x[1].long()), bool(x[0] > 1)
    assert seen.read == [*found] == [0.25, 3, False]
    assert [*turns(seen.read)] == [(0, -1e3), (0, 1e3), (1, 0), (1, 4), (2, True)]
    with Watched((2, True)) as turned:
        assert (x[0].item(), int(x[1].long()), bool(x[0] > 1)) == (0.25, 3, True)
    assert turned.read == seen.read


def test_a_pass_that_does_not_end_is_ended(monkeypatch):
    class Endless(Counts):
        def forward(self, image):
            x = self.stem(image)
            while bool(x.isfinite().all()):
                x = x.clone()
            return x

    monkeypatch.setattr("gkp.pruning.watched.Watched.__init__.__defaults__", (None, 0.3))
    monkeypatch.setattr("gkp.pruning.probe._SEARCH", 0.5)  # it tries many sizes, none of which ends
    with pytest.raises(BadInput, match=r"one pass takes more than 0\.3 seconds"):
        gkp.prune(Endless(True), "l2")
    with pytest.raises(BadInput, match=r"one pass takes more than 0\.3 seconds"):
        gkp.cost(Endless(True))


def test_the_search_for_a_size_takes_no_longer_than_it_may(monkeypatch):
    class Slow(Counts):
        tried = 0

        def forward(self, image):
            Slow.tried += 1
            time.sleep(0.05)
            raise ValueError("another image, please")

    monkeypatch.setattr("gkp.pruning.probe._SEARCH", 0.2)
    with pytest.raises(BadInput, match=r"passes through Slow \(3x32x32: another image, please"):
        gkp.pruning.find_input_shape(Slow(True))
    assert Slow.tried <= 12


def test_a_size_is_looked_for_once(monkeypatch):
    from gkp.pruning import probe

    calls, find = [], probe._first_that_passes
    monkeypatch.setattr(probe, "_first_that_passes", lambda *given: calls.append(1) or find(*given))
    gkp.prune(Habits(""), "l2-gkp", rate=0.5)
    assert len(calls) == 1


class Habits(nn.Module):
    """A network with one of the habits below."""

    def __init__(self, habit):
        super().__init__()
        torch.manual_seed(0)
        self.habit = habit
        self.stem, self.body, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 5)
        if habit == "a generator of its own":
            self.generator = torch.Generator()
        if habit == "a part in double":
            self.body.double()

    def train(self, mode=True):
        result = super().train(mode)
        return None if self.habit == "train returns nothing" else result

    def forward(self, image):
        if self.habit == "leaves the program" and image.shape[-1] != 28:
            raise SystemExit("images of 28 pixels, please")
        if self.habit == "one image at a time":
            image = image.view(1, *image.shape[1:])
        x = F.relu(self.stem(image))
        x = F.relu(self.body(x.to(self.body.weight.dtype))).to(image.dtype)
        if self.habit == "a generator of its own":
            x = x * torch.rand((), generator=self.generator).to(x)
        return self.fc(F.relu(self.last(1 - x)).mean((2, 3)))


HABITS = [
    "train returns nothing", "leaves the program", "one image at a time", "a generator of its own", "a part in double",
]  # fmt: skip


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("method", ["l2", "l2-gkp"])
def test_habits_that_disturb_who_asks_are_no_obstacle(habit, method, tmp_path):
    net = Habits(habit)
    net.eval()
    options = {"tolerance": 0.9} if method == "l2" else {}
    pruned = gkp.prune(net, method, rate=0.5, **options)
    assert {"body", "last"} <= {*pruned.plan}
    small, image = pruned.compact(), torch.rand(1, 3, 28, 28)
    expected = copy.deepcopy(pruned)(image) if habit != "a generator of its own" else None
    if expected is None:
        pruned.net.generator.manual_seed(1), small.generator.manual_seed(1)
        expected = pruned(image)
    torch.testing.assert_close(small(image), expected, rtol=1e-4, atol=1e-4)
    again = gkp.load_model(gkp.save_model(small, tmp_path / "small"), into=Habits(habit))
    assert not again.training
    assert gkp.cost(again, input_shape=(3, 28, 28)) == gkp.cost(pruned, input_shape=(3, 28, 28))


def test_a_network_that_always_leaves_the_program_is_one_line():
    class Leaves(Counts):
        def forward(self, image):
            raise SystemExit(3)

    with pytest.raises(BadInput, match=r"passes through Leaves \(3x32x32: it ends the program \(exit 3\)\)"):
        gkp.prune(Leaves(True), "l2")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_scripted_networks_are_sent_back_to_their_module():
    with pytest.raises(BadInput, match="prune the network it was made from"):
        gkp.prune(torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))), "l2-gkp")


def test_functions_that_torch_does_not_call_pointwise_are_followed():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(inplace=True), nn.Conv2d(8, 8, 3), nn.Flatten())
    assert not trace(net, (3, 8, 8)).reasons.get("0")
