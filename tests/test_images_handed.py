"""Images handed to a network: in its units and its type, left as they are, and each of them alone."""

import copy
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gkp
from gkp.attacks.network import apart_from_others, asked, climb, cross_entropy, logits_of
from gkp.attacks.options import parse_eps
from gkp.data.dataset import Dataset
from gkp.errors import BadInput, ModelWarning
from gkp.evaluation.audit import Effort, audit
from gkp.evaluation.batches import bytes_per_image
from gkp.evaluation.benchmark import benchmark, predict


class Net(nn.Module):
    """Five classes of 3 x 8 x 8 images; `prepare` is what it does to them first."""

    def __init__(self, prepare=lambda x: (x - 0.5) / 0.25):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 5))
        self.prepare = prepare

    def forward(self, x):
        return self.body(self.prepare(x))


def images(n=20, seed=0):
    return torch.randint(256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed)).float() / 255


def dataset(net, n=20):
    x = images(n)
    with torch.no_grad():
        labels = net(x.clone().to(next(net.parameters()).dtype)).argmax(1)
    return Dataset("mine", "test", (x * 255).round().to(torch.uint8), labels, 5, (0.5,) * 3, (0.25,) * 3)


SHORT = Effort(steps=3, apgd_steps=3, queries=20, draws=2, probes=4)
ATTACKS = {"fgsm": {}, "pgd": {"steps": 4}, "apgd-ce": {"steps": 4}, "square": {"queries": 20}}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("low", [0.0, -1.0])
@pytest.mark.parametrize("scale", [255.0, 2.0])
def test_the_same_attack_in_other_units_finds_the_same_images(name, low, scale):
    net, x = Net().eval(), images()
    other = Net(lambda x: ((x - low) / scale - 0.5) / 0.25).eval()
    y = net(x).argmax(1)
    inside = gkp.attack(net, x, y, name, eps=4 / 255, **ATTACKS[name])
    found = gkp.attack(other, x * scale + low, y, name, eps=4 / 255 * scale, bounds=(low, low + scale), **ATTACKS[name])
    assert 0 < (found - (x * scale + low)).abs().max() <= 4 / 255 * scale * 1.0001
    assert torch.equal(net(inside).argmax(1) == y, other(found).argmax(1) == y)


def test_eps_is_held_against_the_bounds():
    assert parse_eps(8, bounds=(0.0, 255.0)) == 8.0
    with pytest.raises(BadInput, match=r"eps 300 is above 255, the whole range of images in \[0, 255\]"):
        parse_eps(300, bounds=(0.0, 255.0))
    with pytest.raises(BadInput, match='for 8 of 255 levels write "8/255"'):
        gkp.attack(Net(), images(2), torch.tensor([0, 1]), "pgd", eps=8)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.0,), 1.0, (0.0, float("inf")), ("a", "b")])
def test_bounds_that_are_none_are_refused_in_one_line(bounds):
    with pytest.raises(BadInput, match=r"^bounds are .*give two"):
        gkp.attack(Net(), images(2), torch.tensor([0, 1]), "pgd", eps=0.1, bounds=bounds)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([torch.float16, torch.bfloat16]),
    st.sampled_from([*ATTACKS]),
    st.sampled_from([("linf", 0.25 / 255), ("linf", 1 / 255), ("l2", 0.1)]),
    st.booleans(),
)
def test_attacks_on_networks_in_half_precision_stay_in_the_ball(dtype, name, ball, half_images):
    norm, eps = ball
    net, x = Net().eval().to(dtype), images()
    x = x.to(dtype) if half_images else x
    y = net(x.to(dtype)).argmax(1)
    found = gkp.attack(net, x, y, name, eps=eps, norm=norm, **ATTACKS[name])
    moved = (found.double() - x.double()).flatten(1)
    size = moved.norm(dim=1).max() if norm == "l2" else moved.abs().max()
    assert found.dtype == torch.float32 and 0 < size <= eps * 1.0001 and found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("protocol", ["pixel", "paper"])
def test_networks_in_half_precision_are_evaluated(dtype, protocol):
    net = Net().eval().to(dtype)
    data = dataset(net)
    found = benchmark(net, data, protocol=protocol, progress=False).accuracy()
    assert predict(net, data).dtype == torch.float32
    assert found["clean"] >= 0.9 and all(0 <= value <= found["clean"] + 1e-9 for value in found.values())


IN_PLACE = {
    "sub_": lambda x: x.sub_(0.5).div_(0.25),
    "slices": lambda x: torch.stack([x[:, i].sub_(0.5).div_(0.25) for i in range(3)], 1),
    "copy_": lambda x: x.copy_((x - 0.5) / 0.25),
}


@pytest.mark.parametrize("how", IN_PLACE)
def test_a_network_that_writes_into_its_input_leaves_the_images_and_is_attacked_like_any_other(how):
    plain, net, x = Net().eval(), Net(IN_PLACE[how]).eval(), images(40)
    y, keep = plain(x).argmax(1), x.clone()
    for name, options in ATTACKS.items():
        found = gkp.attack(net, x, y, name, eps="4/255", **options)
        assert torch.equal(found, gkp.attack(plain, x, y, name, eps="4/255", **options)) and torch.equal(x, keep)
    data = dataset(plain, 40)
    expected, got = (benchmark(one, data, eps="2/255", attacks=["fgsm", "square"], progress=False) for one in (plain, net))
    assert expected.accuracy() == got.accuracy()
    assert torch.equal(data.images.float() / 255, keep)


def test_what_is_asked_is_a_copy_and_the_gradient_goes_through_it():
    net, x = Net(IN_PLACE["sub_"]), images(20)
    y = torch.zeros(20, dtype=torch.long)
    expected, found = (climb(one, x, y, cross_entropy) for one in (Net(), net))
    assert all(map(torch.equal, expected, found))
    assert torch.equal(asked(net, x), Net()(x)) and torch.equal(logits_of(net, x[:3]), logits_of(Net(), x[:3]))


def with_norm(**options):
    """A network whose BatchNorm looks at the batch, or not."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, **options), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()


class Centred(nn.Module):
    """Logits relative to those of the batch, or of the image before it."""

    def __init__(self, how):
        super().__init__()
        self.net, self.how = Net(), how

    def forward(self, x):
        logits = self.net(x)
        return logits - (logits.mean(0) if self.how == "batch" else 0.5 * logits.roll(1, 0))


@pytest.mark.parametrize(
    "make",
    [lambda: with_norm(track_running_stats=False), lambda: Centred("batch"), lambda: Centred("neighbour")],
    ids=["batchnorm", "centred", "neighbour"],
)
def test_logits_that_depend_on_the_images_beside_are_said(make):
    net = make().eval()
    data = dataset(net)
    assert apart_from_others(net, images()) > 0.01
    with pytest.raises(BadInput, match=r"logits of an image depend on the images beside it"):
        benchmark(net, data, eps="2/255", progress=False)
    with pytest.warns(ModelWarning, match="depend on the images beside it"):
        benchmark(net, data, eps="2/255", progress=False, allow_nondeterministic=True)
    with pytest.warns(ModelWarning, match="what is found depends on the batch"):
        gkp.attack(net, images(), data.labels, "fgsm", eps=0.01)


def test_a_network_to_which_each_image_is_alone_is_not_warned_of():
    for net in (with_norm(), Net().eval(), Net().eval().to(torch.bfloat16)):
        assert apart_from_others(net, images()) <= 1e-5
        gkp.attack(net, images(), torch.zeros(20, dtype=torch.long), "fgsm", eps=0.01)  # warnings are errors here


@pytest.mark.parametrize(
    ("labels", "mend"),
    [
        (torch.zeros(4, 1, dtype=torch.long), r"y\.squeeze\(1\)"),
        (torch.eye(5)[:4], r"y\.argmax\(1\)"),
        (torch.zeros(4), "int64"),
        ([0, 1, 2, 3], "int64"),
    ],
)
def test_column_and_one_hot_labels_are_refused_in_one_line_that_says_how_to_mend_them(labels, mend):
    with pytest.raises(BadInput, match=f"^labels are .*{mend}"):
        gkp.attack(Net().eval(), images(4), labels, "pgd", eps=0.1)
    with pytest.raises(BadInput):
        Dataset("mine", "test", (images(4) * 255).to(torch.uint8), labels, 5, (0.5,) * 3, (0.25,) * 3)


def test_images_that_are_misclassified_are_moved_too_when_adversarial_images_are_asked_for():
    net, x = gkp.load_model("resnet20").eval(), torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    right = net(x).argmax(1)
    y = (right + torch.arange(12) % 3) % 10  # a third is classified correctly
    found = gkp.attack(net, x, y, "pgd", eps=0.02, steps=3, seed=3)
    moved = (found - x).abs().flatten(1).amax(1)
    assert moved.min() > 0 and moved.max() <= 0.02 + 1e-6
    alone = gkp.attack(net, x[4:5], y[4:5], "pgd", eps=0.02, steps=3, seed=3, ids=[4])
    assert torch.allclose(alone, found[4:5], atol=1e-6)  # an image's result is independent of its neighbours


class Says(Net):
    """Raises, or gives what is no logits."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(super().forward(x), x)


def fails(error):
    def answer(logits, x):
        raise error

    return answer


class NoDerivative(torch.autograd.Function):
    """Goes forward only."""

    @staticmethod
    def forward(ctx, logits):
        return logits.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("not\nnow")


def one_size(logits, x):
    assert len(x) == 16, f"16 images, please,\nnot {len(x)}"
    return logits


ANSWERS = {
    "asserts": (fails(AssertionError("no such\nimages")), "does not take torch.float32 images of shape .*: no such images"),
    "key": (fails(KeyError("mask")), "does not take torch.float32 images .*'mask'"),
    "value": (fails(ValueError()), "does not take torch.float32 images .*ValueError"),
    "one size": (one_size, "20 at once: 16 images, please, not 20"),
    "whole": (lambda logits, x: logits.round().long(), "gives torch.int64 numbers; it must give logits"),
    "complex": (lambda logits, x: logits.to(torch.complex64), "gives torch.complex64 numbers"),
    "dictionary": (lambda logits, x: {"logits": logits}, "gives dict for a batch"),
    "no derivative": (lambda logits, x: NoDerivative.apply(logits), "gives no gradient of the images: not now"),
}


@pytest.mark.parametrize(("answer", "line"), ANSWERS.values(), ids=ANSWERS)
def test_what_a_network_says_to_images_is_said_in_one_line(answer, line):
    net = Says(answer).eval()
    for ask in (
        lambda: gkp.attack(net, images(), torch.zeros(20, dtype=torch.long), "pgd", eps=0.1, steps=2),
        lambda: benchmark(net, dataset(Net().eval()), eps="2/255", progress=False),
    ):
        with pytest.raises(BadInput, match=line) as refused:
            ask()
        assert "\n" not in str(refused.value)


REFUSED = {
    "sparse": (lambda x, y: {"x": x.to_sparse()}, r"images are torch.sparse_coo .*to_dense"),
    "meta": (lambda x, y: {"x": x.to("meta")}, "images are torch.strided on meta"),
    "labels elsewhere": (lambda x, y: {"y": y.to("meta")}, r"labels are on meta, images on cpu; .*y.to\('cpu'\)"),
    "bounds by channel": (
        lambda x, y: {"bounds": (torch.zeros(3, 1, 1), torch.ones(3, 1, 1))},
        "bounds are .*; give two numbers",
    ),
    "ids": (lambda x, y: {"ids": "abc"}, "ids are 'abc'; give 20 integers"),
    "no ids": (lambda x, y: {"ids": None}, "ids are None; give 20 integers"),
    "eps by channel": (lambda x, y: {"eps": torch.full((3, 1, 1), 0.1)}, "eps tensor.* is not a finite number"),
}


@pytest.mark.parametrize(("change", "line"), REFUSED.values(), ids=REFUSED)
def test_images_and_options_that_do_not_fit_are_refused_in_one_line(change, line):
    x, y = images(), torch.zeros(20, dtype=torch.long)
    given_ = {"x": x, "y": y, "eps": 0.1, "steps": 2, **change(x, y)}
    with pytest.raises(BadInput, match=line) as refused:
        gkp.attack(Net().eval(), given_.pop("x"), given_.pop("y"), "pgd", **given_)
    assert "\n" not in str(refused.value)


def test_a_radius_and_bounds_are_taken_in_every_form_that_is_a_number():
    net, x, y = Net().eval(), images(), torch.zeros(20, dtype=torch.long)
    expected = gkp.attack(net, x, y, "pgd", eps=8 / 255, steps=2)
    for eps in ("8/255", Fraction(8, 255), torch.tensor(8 / 255, dtype=torch.float64)):
        assert torch.equal(gkp.attack(net, x, y, "pgd", eps=eps, steps=2, bounds="01"), expected)
    assert torch.equal(gkp.attack(net, x, y, "pgd", eps=8 / 255, steps=2, bounds=torch.tensor([0, 1])), expected)


@pytest.mark.parametrize("name", [*ATTACKS, "apgd-t"])
def test_an_attack_is_the_same_in_every_context(name):
    net, x, y = Net().eval(), images(), torch.arange(20) % 5
    options = ATTACKS.get(name, {"steps": 2})
    expected = gkp.attack(net, x, y, name, eps="4/255", **options)
    with torch.inference_mode():
        found = [gkp.attack(net, x.clone(), y.clone(), name, eps="4/255", **options)]
        made = x.clone(), y.clone()
    found.append(gkp.attack(net, *made, name, eps="4/255", **options))
    with torch.device("meta"), torch.no_grad():
        found.append(gkp.attack(net, x, y, name, eps="4/255", **options))
    assert all(torch.equal(one, expected) for one in found)


def test_methods_that_take_gradients_take_networks_that_write_in_place():
    data = dataset(Net().eval())
    plans = []
    for net in (Net().eval(), Net(IN_PLACE["sub_"]).eval()):
        net.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *net.body)
        net.body[2] = nn.Conv2d(8, 8, 3)
        net.body[4] = nn.AdaptiveAvgPool2d(4)
        for seed, layer in enumerate((net.body[0], net.body[2])):
            nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(seed))
        plans.append(gkp.prune(net, "taylor-fo", rate=0.5, tolerance=0.9, data=data, input_shape=(3, 8, 8)).plan)
    assert plans[0] == plans[1]


# --- half precision -------------------------------------------------------------------------------------------------


class Confident(Net):
    """`Net` with logits so far apart that gradients of the cross-entropy are below what float16 can hold."""

    def forward(self, x):
        return 160 * super().forward(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_a_confident_network_in_half_precision_do_not_vanish(dtype):
    net, x = Confident().eval(), images(64)
    y = net(x).argmax(1)
    usual = climb(net, x, y, cross_entropy)[2]
    half = copy.deepcopy(net).to(dtype)
    found = climb(half, x, y, cross_entropy)[2]
    behind_a_function = climb(lambda z: asked(half, z), x, y, cross_entropy)[2]  # as the paper's protocol asks it
    assert found.dtype == torch.float32 and torch.equal(found, behind_a_function)
    casting = climb(lambda z: half(z.to(dtype)), x, y, cross_entropy)[2]  # whose type no parameter tells
    assert torch.equal(found, casting)
    large = usual.flatten(1).abs().amax(1)
    assert ((large > 1e-30) & (large < 1e-8)).sum() >= 10  # float16 holds 6e-8 and more
    felt = usual.abs() > 0.1 * large.view(-1, 1, 1, 1)
    felt &= (large > 1e-30).view(-1, 1, 1, 1)
    assert (found.sign() == usual.sign())[felt].float().mean() > 0.95
    assert (found / usual)[felt].log().abs().nanmedian() < 0.3  # as large as it is, not only its sign


def test_an_attack_on_a_network_in_half_precision_is_no_weaker():
    net, x = Confident().eval(), images(64)
    y = net(x).argmax(1)
    standing = []
    for asked_one in (net, copy.deepcopy(net).half()):
        found = gkp.attack(asked_one, x, y, "fgsm", eps=16 / 255)
        standing.append(int((net(found).argmax(1) == y).sum()))
    assert abs(standing[0] - standing[1]) <= 2 and standing[0] < 60


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_in_half_precision_are_audited_and_measured(dtype):
    net, usual = Net().to(dtype).eval(), Net().eval()
    flags = [audit(one, dataset(one), eps="8/255", effort=SHORT, progress=False).flags for one in (net, usual)]
    assert flags[0] == flags[1]  # so short an effort is found too weak for both
    kept = bytes_per_image(net, images(1))
    assert 0 < kept < bytes_per_image(Net().eval(), images(1))


# --- networks that normalise the images they are given ------------------------------------------------------------------


def test_a_network_that_normalises_in_place_is_audited_and_measured_like_any_other():
    usual, own = Net().eval(), Net(lambda x: x.sub_(0.5).div_(0.25)).eval()
    cards = [audit(net, dataset(usual), eps="8/255", effort=SHORT, progress=False) for net in (usual, own)]
    assert cards[0].accuracies == cards[1].accuracies
    assert bytes_per_image(own, images(1)) > 0
