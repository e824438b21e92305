"""NPPM: gates, operations, memory and predictor by hand; the frozen network; the order of a step; the plan; the way back."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from method_checks import assert_usable, largest_difference, lived_in, pictures
from torch import nn
from torch.nn import functional as F
from torchvision.models import DenseNet

from gkp.checkpoints import save_model
from gkp.errors import BadInput, ModelWarning
from gkp.networks.build import build_model
from gkp.pruning.cost import cost
from gkp.pruning.filters import FilterSpec
from gkp.pruning.methods.nppm.gates import EVEN, Work, combined, draw, excess, gumbel, hard, opening
from gkp.pruning.methods.nppm.predictor import Memory, Predictor
from gkp.pruning.methods.nppm.search import Search
from gkp.pruning.plan import Plan
from gkp.pruning.prune import layers_for, prune
from gkp.pruning.registry import make_method, methods
from gkp.pruning.twin import PrunedModel

NPPM = methods()["nppm"]
INNER = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)]
GOAL = 23_391_498  # paper_macs that grouped kernel pruning at 7/16 leaves of ResNet-20
QUICK = {"steps": 4, "batch_size": 8, "share": 1.0, "base": -0.2}  # the gates begin where the budget is


def started(net=None, data=None, **options):
    net = net or lived_in_net()
    method = make_method("nppm", data=data or pictures(16, 8), **{**QUICK, **options})
    return method.search(net, layers_for(NPPM, net, None)[0])


def lived_in_net(name="resnet20"):
    """A network in eval mode with statistics of BatchNorm as after a training."""
    return lived_in(build_model(name)).eval()


# --- gates --------------------------------------------------------------------------------------------------------------


def test_a_gate_is_open_as_often_as_its_logit_says_and_the_noise_is_a_single_gumbel_number():
    logits = torch.tensor([2.0, 1, 0, -1, -3])
    by_hand = [0.99938, 0.93401, 0.63212, 0.30780, 0.04857]
    assert opening(logits).tolist() == pytest.approx(by_hand, abs=1e-5)
    assert 1 - opening(torch.tensor(3.0, dtype=torch.float64)).item() == pytest.approx(1.9e-9, rel=0.02)
    assert opening(torch.tensor(EVEN)).item() == pytest.approx(0.5) and pytest.approx(-0.36651, abs=1e-5) == EVEN
    generator = torch.Generator().manual_seed(0)
    drawn = [hard(draw(torch.full((100_000,), u), gumbel(100_000, generator), 0.4)).mean().item() for u in logits.tolist()]
    assert drawn == pytest.approx(by_hand, abs=5e-3)


def test_hard_gates_are_exactly_zero_and_one_and_have_the_gradient_of_soft_ones():
    soft = torch.tensor([0.1, 0.5, 0.9], requires_grad=True)
    gates = hard(soft)
    assert gates.tolist() == [0, 1, 1]
    (gates * torch.tensor([1.0, 2, 3])).sum().backward()
    assert soft.grad.tolist() == [1, 2, 3]


def test_the_operations_of_a_network_are_counted_as_the_authors_do_and_are_linear_in_each_width():
    for name, dense in (("resnet20", 40_624_128), ("resnet56", 126_590_976)):
        net = build_model(name)
        convs = layers_for(NPPM, net, None)[0]
        assert Work(net, list(convs), (3, 32, 32)).dense == dense
    work = started(input_shape=(3, 32, 32)).work
    one = torch.ones(336)
    for filters, macs in ((range(16), 297_984), (range(48, 80), 111_360), (range(80, 112), 148_224)):
        for gone in (1, 5):  # k^2 c_in HW + 3 HW + k^2 c_out HW for each filter; the first block of stage 2 reads 16 channels
            assert work.dense - work(one.index_fill(0, torch.tensor(filters[:gone]), 0)).item() == gone * macs
    at_half = one.double().requires_grad_()
    work(at_half / 2).backward()
    assert at_half.grad[0].item() == 297_984 / 2


def test_where_one_gated_layer_reads_another_the_operations_fall_with_both():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.Flatten())
    work = Work(net, ["0", "2"], (3, 5, 5))
    gates = torch.cat([torch.tensor([1.0, 0, 0.5, 1]), torch.tensor([1.0, 1, 0, 0, 0, 1])])
    first, second = 2.5, 3
    assert work(gates).item() == 9 * (first * (27 + 3) + second * (first + 3) + 2 * (second + 3))


def test_the_cost_is_flat_once_the_goal_is_met():
    share = torch.tensor(0.6, requires_grad=True)
    assert excess(share, 0.5).item() == pytest.approx(0.18232, abs=1e-5)
    assert torch.autograd.grad(excess(share, 0.5), share)[0].item() == pytest.approx(1 / 0.6)
    for met in (0.5, 0.3):
        share = torch.tensor(met, requires_grad=True)
        assert excess(share, 0.5).item() == 0 == torch.autograd.grad(excess(share, 0.5), share)[0].item()


def test_of_the_predictor_s_gradient_only_what_is_orthogonal_to_the_loss_counts():
    loss, cost_, predicted = torch.tensor([1.0, 0]), torch.tensor([0.0, 1]), torch.tensor([1.0, 1])
    assert combined(loss, cost_, predicted).tolist() == [1, 2]
    assert combined(loss, cost_, None).tolist() == [1, 1]
    assert combined(0 * loss, cost_, predicted).tolist() == [1, 2]  # released: 0 / 0


# --- memory and predictor -------------------------------------------------------------------------------------------------


def test_pairs_are_means_of_two_batches_stored_with_the_next_one_and_averaged_into_the_nearest_when_full():
    memory = Memory(2)
    sizes = []
    for i, accuracy in enumerate((0.2, 0.4, 0.6, 0.8, 0.9)):
        memory.insert(torch.tensor([float(i % 2), 1.0]), accuracy)
        sizes.append(len(memory))
    assert sizes == [0, 0, 1, 1, 2] and memory.accuracies.tolist() == pytest.approx([0.3, 0.7])
    assert memory.architectures.tolist() == [[0.5, 1], [0.5, 1]]
    full = Memory(2, capacity=1)
    for i, accuracy in enumerate((0.3, 0.3, 0.5, 0.5, 0.1)):
        full.insert(torch.tensor([float(i >= 2), 0.0]), accuracy)
    assert full.accuracies.tolist() == pytest.approx([0.4]) and full.architectures.tolist() == [[0.5, 0]]
    again = Memory(2, capacity=1)
    again.restore(full.state())
    again.insert(torch.zeros(2), 0.1)
    assert len(again) == 1 and again.accuracies.tolist() == pytest.approx([0.4])  # the one that waited waits for its second


def test_every_range_of_accuracies_is_drawn_as_often():
    memory = Memory(1)
    memory.accuracies = torch.tensor([0.9] * 9 + [0.1])
    memory.architectures = torch.arange(10.0)[:, None]
    weights = memory.weights()
    assert (weights / weights.sum()).tolist() == pytest.approx([0.5 / 9] * 9 + [0.5])
    drawn, accuracies = memory.sample(10_000, torch.Generator().manual_seed(0))
    assert (accuracies < 0.5).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(drawn.flatten() == 9, accuracies < 0.5)
    memory.accuracies = torch.full((10,), 0.5)
    assert memory.weights().unique().tolist() == [0.1]


def test_the_predictor_is_a_recurrent_network_over_layers():
    sizes = [16] * 3 + [32] * 3 + [64] * 3
    for blocks, numbers in ((3, 119_040), (9, 207_360)):
        predictor = Predictor([width for width in (16, 32, 64) for _ in range(blocks)])
        assert sum(p.numel() for p in predictor.parameters()) == numbers
    predictor = Predictor(sizes, seed=3)
    architectures = torch.rand(5, 336)
    with torch.no_grad():
        found = predictor(architectures)
        assert found.shape == (5, 1) and ((found > 0) & (found < 1)).all()
        torch.testing.assert_close(predictor(architectures[2]), found[2:3])
        rows = predictor.embed[0].parametrizations.weight
        assert rows.original0.shape == (128, 1)  # a length for each unit
        swapped = architectures.clone()
        swapped[:, :16], swapped[:, 16:32] = architectures[:, 16:32], architectures[:, :16]
        assert not torch.allclose(predictor(swapped), found, atol=1e-6)  # it matters which layer is which
    assert all(torch.equal(*pair) for pair in zip(predictor.parameters(), Predictor(sizes, 3).parameters(), strict=True))


# --- the search -----------------------------------------------------------------------------------------------------------


def test_the_network_is_frozen_while_gates_and_predictor_learn():
    net, before = lived_in_net().train(), {}
    search = started(net, steps=40)
    before = copy.deepcopy(net.state_dict())
    first, learned = search.logits.clone(), copy.deepcopy(search.predictor.state_dict())
    search.memory.accuracies, search.memory.architectures = torch.rand(70), torch.rand(70, 336).round()
    search.run()
    for one in (net, search.net):
        assert all(torch.equal(before[name], value) for name, value in one.state_dict().items())
        assert all(p.grad is None for p in one.parameters())
    assert net.training and net.bn1.training and not any(m._forward_hooks for m in net.modules())
    assert (search.logits - first).abs().min() > 0
    assert not all(torch.equal(learned[name], value) for name, value in search.predictor.state_dict().items())


def test_hard_gates_compute_what_the_compact_network_does():
    net, x = lived_in_net(), torch.rand(4, 3, 32, 32)
    search = started(net)
    pruned = prune(net, "nppm", data=pictures(16, 8), **QUICK)
    gates = torch.cat(
        [torch.zeros(w).index_fill(0, pruned.plan[n].kept_filters, 1) for n, w in zip(INNER, search.sizes, strict=True)]
    )
    with torch.no_grad():
        gated = search.gated(x, gates)
        assert (gated - pruned.compact()(x)).abs().max() < 1e-5 * max(1, gated.abs().max())
        assert torch.allclose(search.gated(x, torch.ones(336)), net(x), atol=1e-5)
    exact = started(copy.deepcopy(net).double())
    with torch.no_grad():
        assert (
            exact.gated(x.double(), gates.double()) - copy.deepcopy(pruned).double().compact()(x.double())
        ).abs().max() < 1e-6


def test_hard_gates_compute_what_the_compact_network_does_where_several_norms_read_a_filter():
    torch.manual_seed(0)
    net = lived_in(DenseNet(8, (2, 2), num_init_features=16, bn_size=2, num_classes=10)).eval()
    x, layers = torch.rand(4, 3, 32, 32), layers_for(NPPM, net, None, input_shape=(3, 32, 32))[0]
    search = make_method("nppm", data=pictures(16, 8), tolerance=0.05, **QUICK).search(net, layers)
    plan, gates = {}, []
    for i, (name, width) in enumerate(zip(layers, search.sizes, strict=True)):
        plan[name] = FilterSpec(torch.arange(i % 2, width, 2))
        gates.append(torch.zeros(width).index_fill(0, plan[name].kept_filters, 1))
    pruned = PrunedModel(net, Plan(plan, (3, 32, 32)))
    with torch.no_grad():
        gated = search.gated(x, torch.cat(gates))
        assert (gated - pruned(x)).abs().max() < 1e-5 * max(1, gated.abs().max())
        torch.testing.assert_close(search.gated(x, torch.ones(sum(search.sizes))), net(x), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    nets = [lived_in(build_model("resnet20", seed=seed)).eval() for seed in (0, 1)]
    prune(nets[0], "nppm", data=pictures(16, 8), checkpoint=tmp_path / "kept", **QUICK)
    with pytest.raises(BadInput, match="belongs to a training with another network"):
        prune(nets[1], "nppm", data=pictures(16, 8), checkpoint=tmp_path / "kept", **QUICK)


def test_a_step_is_that_of_the_released_algorithm(monkeypatch):
    """Against autograd through the whole formula, with one draw of noise; then the predictor's step; then the memory's."""
    net, x, y = lived_in_net(), torch.rand(8, 3, 8, 8), torch.arange(8)
    search = started(net, temperature=0.5, noise=0.3)
    search.memory.accuracies, search.memory.architectures = torch.rand(70), torch.rand(70, 336).round()
    twin, predictor = started(net, temperature=0.5), copy.deepcopy(search.predictor)
    order, generator = [], torch.Generator()
    generator.set_state(search.generator.get_state())
    w = search.weights.detach().clone().requires_grad_()
    u = w - 0.2
    v = torch.sigmoid((u - torch.empty(336).exponential_(generator=generator).log()) / 0.5)
    h = (v > 0.5).float() + v - v.detach()
    left = search.work(h) / search.work.dense
    near = (v + 0.3 * torch.randn(336, generator=generator)).clamp(0, 1)
    logits = twin.gated(x, v)
    losses = F.cross_entropy(logits, y), 4 * torch.log(left.clamp(min=search.goal) / search.goal), -predictor(near).log().sum()
    parts = [torch.autograd.grad(loss, w, retain_graph=True)[0].split(search.sizes) for loss in losses]
    expected = torch.cat([a + r + q - (a @ q) / (a @ a) * a for a, r, q in zip(*parts, strict=True)])
    for name in ("_step_gates", "_train_predictor"):
        original = getattr(Search, name)
        monkeypatch.setattr(Search, name, lambda s, *a, name=name, original=original: order.append(name) or original(s, *a))
    monkeypatch.setattr(Memory, "insert", lambda _, architecture, accuracy: order.append((architecture.detach(), accuracy)))
    search.step(x, y, acts=True)
    torch.testing.assert_close(search.weights.grad, expected, rtol=1e-4, atol=1e-6)
    moved = (search.weights - w * (1 - 0.05 * 1e-2)).detach()  # a first step of AdamW
    torch.testing.assert_close(moved, -0.05 * expected / (expected.abs() + 1e-8), rtol=1e-3, atol=1e-5)
    assert order[:2] == ["_step_gates", "_train_predictor"]
    architecture, accuracy = order[2]
    assert torch.equal(architecture, (v > 0.5).float()) and accuracy == (logits.argmax(1) == y).float().mean().item()


def test_the_predictor_acts_once_the_memory_holds_more_than_64_pairs_and_the_rate_falls_late():
    acted, rates = [], []

    class Watched(Search):
        def step(self, x, y, *, acts):
            acted.append((len(self.memory), acts))
            super().step(x, y, acts=acts)
            rates.append(self.gate_optimizer.param_groups[0]["lr"])

    def watched(data, **options):
        search = started(data=data, **options)
        search.__class__ = Watched
        acted.clear()
        rates.clear()
        search.run()
        return list(acted)

    seen = watched(pictures(8, 8), steps=140)
    assert [acts for _, acts in seen] == [size > 64 for size, _ in seen] and seen[-1][0] > 66
    assert rates == [0.05] * 112 + [0.05 * 0.1] * 28
    seen = watched(pictures(80, 8), steps=140)  # ten steps a pass, and it is asked when a pass begins
    assert [acts for _, acts in seen] == [seen[i // 10 * 10][0] > 64 for i in range(140)]
    assert not any(acts for _, acts in watched(pictures(8, 8), steps=140, predictor=False))


def test_a_filter_that_helps_stays_and_one_that_harms_goes():
    """Two classes told apart by the first input; half of the filters carry it, the others add noise."""
    conv = nn.Conv2d(3, 8, 1, bias=False)
    conv.weight.data.zero_()
    conv.weight.data[::2, 0] = conv.weight.data[1::2, 1] = 1.0
    net = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(8, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net[2].weight.data[0], net[2].weight.data[1] = 1.0, -1.0
    data = pictures(64, 4, classes=2)
    data.images[:, 0] = (255 * (1 - data.labels)).to(torch.uint8)[:, None, None]
    net = nn.Sequential(Centred(), *net)
    options = {"layers": ["1"], "input_shape": (3, 4, 4), "budget": 0.5, "tolerance": 0.2}
    # without a penalty on the operations: of the filters that help some are redundant
    pruned = prune(net, "nppm", data=data, steps=150, share=1.0, penalty=0.0, **options)
    assert pruned.plan["1"].kept_filters.tolist() == [0, 2, 4, 6]


class Centred(nn.Module):
    def forward(self, x):
        return torch.cat([x[:, :1] - 0.5, x[:, 1:]], dim=1)


# --- the plan, seeds, and the way back ------------------------------------------------------------------------------------


def test_filters_of_the_lowest_logits_go_until_the_budget_is_met(tmp_path):
    net, data = lived_in_net(), pictures(16, 8)
    for rate, goal, share, base in ((7 / 16, GOAL, 0.567, -0.2), (10 / 16, None, 0.381, -0.7)):
        options = {**QUICK, "data": data, "rate": rate, "base": base}
        method = make_method("nppm", **options)
        convs = layers_for(NPPM, net, None)[0]
        search = method.search(net, convs)
        assert search.goal == pytest.approx(share, abs=2e-3)
        pruned = prune(net, "nppm", **options)
        assert list(pruned.plan) == INNER and pruned.off_budget is None
        assert goal is None or cost(pruned).paper_macs == pytest.approx(goal, rel=0.01)
        logits = method.scores(net, convs)
        gone = torch.cat([logits[n][s.removed_filters(convs[n])] for n, s in pruned.plan.items()])
        kept = torch.cat([logits[n][s.kept_filters] for n, s in pruned.plan.items()])
        assert gone.max() <= kept.min()
    assert_usable(pruned, tmp_path)


def test_a_last_draw_decides_only_if_it_is_asked_for():
    net, data = lived_in_net(), pictures(16, 8)
    mean, sampled = (prune(net, "nppm", data=data, final=final, **QUICK) for final in ("mean", "sampled"))
    assert mean.plan != sampled.plan
    assert cost(sampled).paper_macs == pytest.approx(GOAL, rel=0.01)


def test_the_seed_decides_and_labels_count():
    net, data = lived_in_net(), pictures(16, 8)
    convs = layers_for(NPPM, net, None)[0]
    permuted = replace(data, labels=data.labels.flip(0))
    found = [
        make_method("nppm", data=given, seed=seed, **QUICK).scores(net, convs)["layer2.1.conv1"].tolist()
        for given, seed in ((data, 0), (data, 0), (data, 1), (permuted, 0))
    ]
    assert found[0] == found[1] and found[0] not in found[2:]


@pytest.mark.parametrize("full", [False, True])
def test_the_same_bytes_come_out_also_after_a_kill(full, tmp_path, monkeypatch):
    net, data = lived_in_net(), pictures(24, 8)
    options = {**QUICK, "data": data, "steps": 12 if not full else 152}
    if full:  # so long that the predictor takes part
        options["batch_size"] = 24
        options["data"] = pictures(24, 4)

    def bytes_of(name, **more):
        pruned = prune(net, "nppm", input_shape=(3, 8, 8), **options, **more)
        return (save_model(pruned.compact(), tmp_path / name) / "model.safetensors").read_bytes()

    whole, original, count = bytes_of("whole"), Search.step, []

    def killed(self, *given, **more):
        if len(count) == options["steps"] - 2:
            raise KeyboardInterrupt
        count.append(1)
        original(self, *given, **more)

    monkeypatch.setattr(Search, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        bytes_of("killed", checkpoint=tmp_path / "half")
    made = []
    monkeypatch.setattr(Search, "step", lambda self, *given, **more: made.append(1) or original(self, *given, **more))
    assert bytes_of("resumed", checkpoint=tmp_path / "half") == whole and 0 < len(made) < 6
    assert bytes_of("finished", checkpoint=tmp_path / "half") == whole and len(made) < 6
    with pytest.raises(BadInput, match="belongs to a training with another method"):
        bytes_of("other", checkpoint=tmp_path / "half", seed=1)
    (tmp_path / "half").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="cannot be read as a training checkpoint"):
        bytes_of("damaged", checkpoint=tmp_path / "half")


def test_a_search_that_has_not_reached_the_budget_says_so():
    net = lived_in_net()
    with pytest.warns(ModelWarning, match=r"after 2 steps the gates keep \d+% of the operations, 57% are asked for"):
        pruned = prune(net, "nppm", data=pictures(16, 8), steps=2, batch_size=8)
    assert cost(pruned).paper_macs == pytest.approx(GOAL, rel=0.01)


def test_the_search_sees_a_tenth_of_the_training_images():
    assert len(started(data=pictures(160, 8), share=0.1).data) == 16
    assert NPPM.options["share"] == 0.1 and NPPM.options["batch_size"] == 256
    first, again, other = (started(data=pictures(160, 8), share=0.1, seed=seed).data.images for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None}, "nppm looks at images; give data="),
        ({"data": torch.rand(4, 3, 8, 8)}, "nppm takes images and labels in a gkp.Dataset, not a Tensor"),
        ({"data": replace(pictures(16, 8), labels=0 * pictures(16, 8).labels)}, "all 16 images of 'pictures' have the label 0"),
        ({"budget": 0.05}, "the nearest plan has .* ask for another budget"),
        ({"budget": 60e6}, "the budget must lie between 0 and"),
        ({"steps": 0}, "steps of nppm must be a whole number of 1 or more, not 0"),
        ({"share": 0.0}, "share of nppm must be above 0"),
        ({"lr": math.nan}, "nppm: lr is nan; give a number"),
        ({"noise": -1.0}, "noise of nppm must be 0 or more"),
        ({"final": "best"}, "final of nppm must be mean or sampled, not 'best'"),
    ],
)  # fmt: skip
def test_what_nppm_cannot_do_is_refused_in_one_line(options, message, monkeypatch):
    monkeypatch.setattr(Search, "step", lambda *_, **__: pytest.fail("a step was made"))
    with pytest.raises(BadInput, match=message) as refused:
        prune(lived_in_net(), "nppm", **{"data": pictures(16, 8), **QUICK, **options})
    assert "\n" not in str(refused.value)


def test_filters_of_vgg_have_gates_too():
    net = lived_in_net("vgg16_bn")
    pruned = prune(net, "nppm", data=pictures(4, 32), **{**QUICK, "steps": 1})
    assert largest_difference(pruned, pruned.compact(), torch.rand(2, 3, 32, 32)) < 1e-4
