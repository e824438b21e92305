"""GAL, and the removal of whole residual blocks: what a block costs and leaves, the order of the updates, the end."""

import copy
from dataclasses import replace

import pytest
import torch
from method_checks import assert_same_function, assert_usable, largest_difference, lived_in, pictures
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet

from gkp.artifact import experiments as grid
from gkp.artifact.experiments.kinds import EvaluateCell, PruneCell, TrainCell
from gkp.artifact.tables.accuracy import methods_table
from gkp.checkpoints import load_model, save_model
from gkp.errors import BadInput
from gkp.evaluation.folding import folded
from gkp.networks.build import build_model
from gkp.networks.classifier import BasicBlock
from gkp.pruning.blocks import BlockSpec, last_norm, residual_blocks
from gkp.pruning.budget import grouped_kernel_macs
from gkp.pruning.cost import cost
from gkp.pruning.filters import FilterSpec
from gkp.pruning.methods.gal import search
from gkp.pruning.methods.gal.search import decay, discriminator_loss, make_discriminator, taken_for, update_due
from gkp.pruning.plan import Plan, plan_of
from gkp.pruning.prune import layers_for, prune, train_pruned
from gkp.pruning.registry import make_method, methods
from gkp.pruning.twin import PrunedModel
from gkp.training.loop import train
from gkp.training.recipe import Recipe

GAL = methods()["gal"]
RECIPE = Recipe(epochs=2, lr=0.05, batch_size=16)
GOAL = 23_390_858  # paper_macs that grouped kernel pruning at 7/16 leaves of ResNet-20


def without(*blocks):
    return Plan(dict.fromkeys(blocks, BlockSpec()))


def started(net, steps=10, **options):
    """The method's callback on `net`, before the first step."""
    callback = make_method("gal", **options).callback(layers_for(GAL, net, None)[0])
    callback.schedule(1, steps)
    callback.before_training(net)
    return callback


def decided(net, gates, **options):
    """The blocks that go by these gates."""
    callback = started(copy.deepcopy(net), **options)
    callback.fista.value = torch.tensor(gates)
    return list(callback.plan(net))


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shortcut", ["append", "centre", "projection"])
@pytest.mark.parametrize("blocks", [("layer1.1",), ("layer2.0",), ("layer1.0", "layer2.0", "layer2.2", "layer3.0")])
def test_a_network_without_blocks_is_the_masked_one_and_a_block_leaves_its_shortcut(blocks, shortcut):
    net, x = lived_in(build_model("resnet20", shortcut=shortcut)).eval(), torch.rand(4, 3, 32, 32)
    pruned, by_hand = PrunedModel(net, without(*blocks)), copy.deepcopy(net)
    assert_same_function(pruned, x)
    for name in blocks:
        by_hand.get_submodule(name).bn2 = Zero()
    assert largest_difference(pruned.compact(), by_hand, x) == 0
    assert largest_difference(folded(pruned.compact(), x), by_hand, x) < 1e-3


class Zero(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


def test_blocks_of_torchvision_leave_their_projection():
    for kind in (resnet.BasicBlock, resnet.Bottleneck):
        net = lived_in(resnet.ResNet(kind, [2, 1, 2, 1], num_classes=10)).eval()
        assert len(residual_blocks(net)) == 6
        pruned = PrunedModel(net, without("layer1.0", "layer2.0", "layer3.1"))
        assert_same_function(pruned, torch.rand(2, 3, 32, 32))
        kept = sum(p.numel() for p in net.layer2[0].downsample.parameters())
        assert sum(p.numel() for p in pruned.compact().layer2[0].parameters()) == kept > 0


def test_a_network_of_torchvision_is_trained_and_pruned_by_blocks():
    net = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)  # each block calls its one ReLU twice
    pruned, _ = train_pruned(net, "gal", pictures(16, 8), RECIPE, progress=False)
    assert pruned.plan and set(pruned.plan) <= set(residual_blocks(net))
    assert_same_function(pruned.eval(), torch.rand(2, 3, 32, 32))


def test_a_gate_is_the_norm_at_the_end_of_a_branch_or_there_is_none():
    grouped = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], norm_layer=lambda width: nn.GroupNorm(4, width))
    assert last_norm(grouped.layer1[0]) is grouped.layer1[0].bn2
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(build_model("resnet20"))
    assert last_norm(synchronised.layer1[0]) is synchronised.layer1[0].bn2
    for name in ("bn1", "bn2"):  # whichever norm another one replaces, the gate is at the end
        net = build_model("resnet20")
        setattr(net.layer1[0], name, nn.GroupNorm(4, 16))
        assert last_norm(net.layer1[0]) is net.layer1[0].bn2
    bare = build_model("resnet20")
    bare.layer1[0].bn2 = nn.Identity()
    with pytest.raises(BadInput, match="norm with scale and shift at the end of a block's branch, not a Conv2d"):
        last_norm(bare.layer1[0])


@pytest.mark.parametrize("form", ["masked", "compact"])
def test_a_network_without_blocks_trains_and_survives_the_disk(form, tmp_path):
    pruned = PrunedModel(lived_in(build_model("resnet20")).eval(), without("layer1.1", "layer2.0", "layer3.0"))
    assert_usable(pruned, tmp_path)
    assert pruned.plan.only_cuts and plan_of(load_model(tmp_path / form)) == pruned.plan
    with pytest.raises(BadInput, match="pruned already"):
        train_pruned(load_model(tmp_path / "compact"), "gal", pictures(16, 8), RECIPE)
    net = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)
    small = PrunedModel(net.eval(), without("layer2.0")).compact()
    loaded = load_model(save_model(small, tmp_path / "theirs"), into=net)
    assert largest_difference(small, loaded, torch.rand(1, 3, 32, 32)) == 0


def test_blocks_and_filters_of_other_blocks_go_together():
    net = lived_in(build_model("resnet20")).eval()
    plan = Plan({"layer1.1": BlockSpec(), "layer1.0.conv1": FilterSpec(torch.arange(0, 16, 2))})
    pruned = PrunedModel(net, plan)
    assert_same_function(pruned, torch.rand(2, 3, 32, 32))
    assert cost(net).paper_macs - cost(pruned).paper_macs == 4_784_128 + 8 * 296_960


def test_the_cost_of_each_block_is_known_to_the_digit():
    net = build_model("resnet20")
    dense = cost(net).paper_macs
    of_stage = {"layer1": [4_784_128] * 3, "layer2": [3_571_712, 4_751_360, 4_751_360], "layer3": [3_555_328, *[4_734_976] * 2]}
    for stage, expected in of_stage.items():
        assert [dense - cost(PrunedModel(net, without(f"{stage}.{i}"))).paper_macs for i in range(3)] == expected


@pytest.mark.parametrize(
    ("name", "gone", "macs", "params"),  # gone: of each stage the first block or not, and how many others
    [
        ("resnet32", ((1, 2), (1, 0), (1, 2)), 38.8, 0.233),
        ("resnet56", ((0, 1), (0, 4), (0, 1)), 98.24, 0.7),
        ("resnet110", ((0, 2), (1, 8), (0, 5)), 180.677, 1.186),
    ],
)
def test_the_paper_s_rows_of_gal_are_networks_without_blocks_whose_batchnorms_were_not_credited(name, gone, macs, params):
    first = [f"layer{stage}.0" for stage, (is_gone, _) in enumerate(gone, 1) if is_gone]
    others = [f"layer{stage}.{i}" for stage, (_, count) in enumerate(gone, 1) for i in range(1, 1 + count)]
    net = build_model(name)
    dense, small = cost(net), cost(PrunedModel(net, without(*first, *others)))
    counted = (dense.paper_macs - (dense.macs - small.macs)) / 1e6
    assert 0 <= counted - macs < 0.01 and small.paper_macs / 1e6 < counted  # printed without the digits that follow
    assert small.params / 1e6 == pytest.approx(params, abs=6e-4)


def test_a_plan_of_blocks_that_does_not_fit_is_refused():
    net = build_model("resnet20")
    assert Plan.from_json(without("layer1.0").to_json()) == without("layer1.0") != without("layer1.1")
    for plan, message in (
        (without("layer1"), "the plan removes the block layer1, which is a Sequential, not a residual block"),
        (without("layer1.9"), "layer1.9, which CifarResNet does not have"),
        (Plan({"layer1.0": FilterSpec(torch.tensor([0]))}), "layer1.0, which is a BasicBlock, not a Conv2d"),
        (
            Plan({"layer1.0.conv1": FilterSpec(torch.tensor([0])), "layer1.0": BlockSpec()}),
            "prunes layer1.0.conv1 and removes layer1.0, which it is in",
        ),
    ):
        with pytest.raises(BadInput, match=message):
            PrunedModel(net, plan)
    with pytest.raises(BadInput, match="not a plan of blocks: removed_block is 1"):
        Plan.from_json({"layer1.0": {"removed_block": 1}})


# --- losses and schedule ----------------------------------------------------------------------------------------------


def test_the_discriminator_is_affine_before_its_sigmoid():
    judge = make_discriminator(10, torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in judge.parameters()) == 67_457 == 1408 + 33024 + 32896 + 129
    before = judge[:-1].double()
    for layer in before:
        layer.weight.data *= 10
    a, b = torch.randn(2, 4, 10, dtype=torch.float64)
    assert (before(a + b) - before(a) - before(b) + before(0 * a)).abs().max() < 1e-12 < before(a).abs().max()
    assert ((judge.double()(a) > 0) & (judge(a) < 1)).all()


def test_its_scores_are_taken_for_logits_and_its_loss_has_three_terms():
    half = torch.full((7, 1), 0.5)
    terms = [taken_for(1, half).item(), taken_for(0, half).item()]
    assert terms == pytest.approx([0.47408, 0.97408], abs=1e-5)
    assert terms[0] == pytest.approx(F.binary_cross_entropy_with_logits(half, torch.ones(7, 1)).item())
    assert discriminator_loss(half, half).item() == pytest.approx(1.92223, abs=1e-5)


def test_updates_are_spread_evenly_and_the_learning_rate_falls_with_them():
    due = [step for step in range(39_100) if update_due(step, 39_100, 100)]
    assert len(due) == 100 and due == list(range(390, 39_100, 391))  # one an epoch, as released
    assert [round(decay(step, 39_100), 9) for step in due] == [1] * 30 + [0.1] * 30 + [0.01] * 30 + [0.001] * 10
    assert [update_due(step, 5, 100) for step in range(5)] == [True] * 5
    assert [step for step in range(7) if update_due(step, 7, 3)] == [2, 4, 6]


# --- the order of the updates -----------------------------------------------------------------------------------------


class Gated(nn.Module):
    """A block as the paper writes it, its gate beside it."""

    def __init__(self, block, gate):
        super().__init__()
        self.block, self.gate = block, gate

    def forward(self, x):
        block = self.block
        branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
        return F.relu(self.gate * branch + block.shortcut(x))


def by_hand(net, judge, gates, batches, *, lr, sparsity, mu, recipe):
    """The released algorithm, an update of the gates after each step, on these batches; gates and network after it."""
    teacher, net = copy.deepcopy(net).train(), copy.deepcopy(net).train()
    leaves = [gate.clone().requires_grad_() for gate in gates]
    for name, leaf in zip([name for name, m in net.named_modules() if isinstance(m, BasicBlock)], leaves, strict=True):
        stage, _, index = name.partition(".")
        net.get_submodule(stage)[int(index)] = Gated(net.get_submodule(name), leaf)
    sgd = torch.optim.SGD(net.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    of_judge = torch.optim.SGD(judge.parameters(), lr, momentum=0.9, weight_decay=2e-4)
    one, zero = torch.ones(16, 1), torch.zeros(16, 1)
    loss_of, before, t = F.binary_cross_entropy_with_logits, [g.detach().clone() for g in leaves], 0.0
    for x in batches:
        with torch.no_grad():
            wanted = teacher(x)
        logits = net(x)
        of_judge.zero_grad()
        fake = judge(logits.detach())
        (loss_of(judge(wanted), one) + loss_of(fake, zero) + loss_of(fake, one)).backward()
        of_judge.step()
        sgd.zero_grad()
        for leaf in leaves:
            leaf.grad = None
        l1 = sparsity * torch.cat(leaves).abs().sum()
        (mu * (logits - wanted).pow(2).mean() + loss_of(judge(logits), one) + l1).backward()
        sgd.step()
        previous_t, t = t, (1 + (1 + 4 * t * t) ** 0.5) / 2 if t else 1.0
        momentum = (previous_t - 1) / t if previous_t else 0.0
        for i, leaf in enumerate(leaves):
            ahead = leaf.detach() + momentum * (leaf.detach() - before[i])
            moved = ahead - lr * leaf.grad
            before[i] = leaf.detach().clone()
            leaf.data = (moved.sign() * (moved.abs() - lr * sparsity).clamp(min=0)).clamp(min=0)
    return torch.cat(leaves).detach(), net


def test_every_step_is_that_of_the_released_algorithm_in_its_order(monkeypatch):
    def loud(classes, generator):  # weights of N(0, 0.01^2) would hide in which order the two are trained
        judge = make_discriminator(classes, generator)
        for layer in judge[:-1]:
            layer.weight.data *= 12
        return judge

    monkeypatch.setattr(search, "make_discriminator", loud)
    net = lived_in(build_model("resnet20")).eval()
    net.fc.weight.data *= 0.1
    recipe = Recipe(epochs=1, lr=0.02, batch_size=16, weight_decay=2e-4)
    method = make_method("gal", lr=0.02, sparsity=0.3, mu=0.7, init="ones", budget=0.3)
    callback, trained, seen = method.callback(layers_for(GAL, net, None)[0]), copy.deepcopy(net), []
    start, original = {}, type(callback).objective

    def remember(self, net, x, y):
        if not seen:
            start.update(judge=copy.deepcopy(self.discriminator).requires_grad_(True), gates=self.fista.value.clone())
        seen.append(x.clone())
        return original(self, net, x, y)

    monkeypatch.setattr(type(callback), "objective", remember)
    train(trained, replace(pictures(64, 16), pad=0), recipe, callbacks=[callback], progress=False, channels_last=False)
    # 4 steps: the learning rate of gates and judge falls after 30, 60 and 90 % of them, that is after 2, 3 and 4
    monkeypatch.setattr(search, "decay", lambda done, steps: 1.0)
    again = method.callback(layers_for(GAL, net, None)[0])
    constant, seen[:] = copy.deepcopy(net), []
    train(constant, replace(pictures(64, 16), pad=0), recipe, callbacks=[again], progress=False, channels_last=False)
    gates, expected = by_hand(
        net, start["judge"], start["gates"].split(1), seen, lr=0.02, sparsity=0.3, mu=0.7, recipe=replace(recipe)
    )
    assert torch.allclose(again.fista.value, gates, atol=2e-6) and (gates - 1).abs().max() > 0.01
    assert not torch.allclose(callback.fista.value, gates, atol=2e-6)
    theirs = [p for p in expected.parameters() if p.ndim == 4]
    ours = [p for p in constant.parameters() if p.ndim == 4]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))
    last, judged = expected.layer3[2], again.discriminator.parameters()
    assert torch.allclose(constant.layer3[2].bn2.weight, last.gate * last.block.bn2.weight, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(judged, start["judge"].parameters(), strict=True))


@pytest.mark.parametrize("name", ["resnet20", "vgg16_bn"])
def test_what_the_gates_multiply_is_folded_into_weights_without_changing_a_logit(name):
    net, x = lived_in(build_model(name)).eval().double(), torch.rand(3, 3, 32, 32, dtype=torch.float64)
    dense = copy.deepcopy(net)
    callback = started(net)
    values = torch.rand(len(callback.fista.value), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[::3] = 0.0
    callback.fista.value = values
    callback._multiply(values)
    with torch.no_grad():
        gated = net(x)
    callback.finish(net)
    with torch.no_grad():
        assert (net(x) - gated).abs().max() < 1e-10 < (dense(x) - gated).abs().max()
    assert not any(module._forward_hooks for module in net.modules())
    open_ones = callback.gates.open(callback._split(values))  # without what has gate 0, the same function
    assert largest_difference(PrunedModel(net, open_ones).compact(), net, x) < 1e-10


# --- the end of the search --------------------------------------------------------------------------------------------


def test_the_lowest_gates_go_until_the_budget_is_met_and_of_equal_ones_the_later_block():
    net = build_model("resnet20")
    ascending = [float(i) for i in range(1, 10)]
    assert decided(net, ascending) == ["layer1.0", "layer1.1", "layer1.2", "layer2.0"]  # -1.3 %
    assert decided(net, ascending[::-1]) == ["layer3.2", "layer3.1", "layer3.0", "layer2.2"]
    assert decided(net, [0.0] * 9) == ["layer3.2", "layer3.1", "layer3.0", "layer2.2"]  # there is room for the five others
    assert decided(net, ascending, budget=0.9) == ["layer1.0"]
    only = {f"layer{stage}.1.conv{i}": None for stage in (1, 2, 3) for i in (1, 2)}
    convs, left = layers_for(GAL, net, list(only))
    assert list(convs) == list(only) and left["layer1.0.conv1"] == "not asked for"
    callback = make_method("gal", budget=0.7).callback(convs)
    callback.before_training(net)
    callback.fista.value = torch.tensor([0.3, 0.1, 0.2])
    assert list(callback.plan(net)) == ["layer2.1", "layer3.1", "layer1.1"]


def test_gates_rest_once_those_above_zero_meet_the_budget():
    net = build_model("resnet20")
    steps = {}
    for budget, init in ((0.95, "normal"), (0.3, "ones")):
        callback = make_method("gal", budget=budget, init=init).callback(layers_for(GAL, net, None)[0])
        train(copy.deepcopy(net), pictures(48, 8), RECIPE, callbacks=[callback], progress=False)
        steps[init] = callback.fista.steps
    assert steps == {"normal": 1, "ones": 6}


def test_a_network_that_misses_the_budget_says_so_and_one_that_meets_it_does_not():
    net = build_model("resnet20")
    pruned, _ = train_pruned(net, "gal", pictures(16, 8), RECIPE, progress=False)
    off = cost(pruned).paper_macs / GOAL - 1
    assert off < -0.01 and pruned.off_budget == pytest.approx(off)
    met, _ = train_pruned(net, "gal", pictures(16, 8), RECIPE, progress=False, budget=cost(pruned).paper_macs)
    assert met.off_budget is None and prune(net, "l2").off_budget is None


def test_filters_of_vgg_go_one_by_one_and_meet_the_budget():
    net = lived_in(build_model("vgg16_bn")).eval()
    callback = started(net)
    assert callback.gates.sizes == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert (callback.fista.sparsity, callback.gates.mu) == (1e-3, 0.1) and started(build_model("resnet20")).gates.mu == 1
    generator = torch.Generator().manual_seed(0)
    callback.fista.value = torch.rand(4224, generator=generator).masked_fill(torch.rand(4224, generator=generator) < 0.1, 0)
    callback.finish(net)
    plan = callback.plan(net)
    pruned = PrunedModel(net, plan)
    assert callback.gates.macs(plan) == pytest.approx(callback.gates.goal, rel=0.01)
    parts = zip(plan.values(), callback._split(callback.fista.value), strict=True)
    for spec, gates in parts:
        gone = spec.removed_filters(nn.Conv2d(1, len(gates), 1))
        assert not len(gone) or gates[gone].max() <= gates[spec.kept_filters].min()
    assert_same_function(pruned, torch.rand(2, 3, 32, 32))
    nothing = callback.gates.open([torch.zeros(size) for size in callback.gates.sizes])
    assert all(spec.kept_filters.tolist() == [0] for spec in nothing.values())


def test_a_finished_experiment_says_in_its_row_that_it_is_not_at_equal_macs(tmp_path):
    short = {"epochs": 2, "lr": 0.02, "batch_size": 128, "split": "test"}
    baseline = TrainCell(dataset="digits", model="resnet20", **short)
    pruned = PruneCell(net=baseline, method="gal", options={"updates": 2}, **short)
    evaluated = EvaluateCell(net=pruned, protocol="paper", examples=8)
    report = grid.run([baseline, pruned, evaluated], jobs=1, store=grid.Store(tmp_path), progress=False)
    small = report[1]
    net = build_model("resnet20")
    goal = grouped_kernel_macs(net, layers_for(GAL, net, None)[0], 7 / 16, input_shape=small["input_shape"])
    off = small["paper_macs"] / goal - 1
    assert small["off_budget"] == round(off, 4) and len(small["soft_epochs"]) == 1 == len(small["epochs"])
    shown = methods_table(report, protocol="paper", title="").shown
    assert list(shown["MACs (M)"]) == [f"{small['paper_macs'] / 1e6:.3f} ({off:+.1%}, not at equal MACs)"]
    assert all(spec == BlockSpec() for spec in plan_of(load_model(small.file("compact"))).values())


# --- labels, seeds, what is refused -----------------------------------------------------------------------------------


def test_labels_change_nothing_and_the_seed_everything():
    net, data = build_model("resnet20"), pictures(32, 8)
    permuted = replace(data, labels=data.labels.flip(0))
    assert not torch.equal(permuted.labels, data.labels)
    (one, log), (other, other_log), (third, _) = (
        train_pruned(net, "gal", given, RECIPE, progress=False, seed=seed)
        for given, seed in ((data, 0), (permuted, 0), (data, 1))
    )
    assert one.plan == other.plan and [row["train_loss"] for row in log.rows] == [row["train_loss"] for row in other_log.rows]
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), third.parameters(), strict=True))


def test_the_teacher_is_the_network_as_it_came_in_the_mode_that_was_asked_for():
    for mode in ("train", "eval"):
        net = lived_in(build_model("resnet20")).eval()
        callback = started(net, teacher=mode)
        assert callback.teacher.training is (mode == "train") and not any(
            p.requires_grad for p in callback.teacher.parameters()
        )
        callback.fista.value = torch.ones(9)  # the student is its teacher: nothing but the discriminator's term is left
        callback._multiply(callback.fista.value)
        callback._done = 0
        net.train(mode == "train")
        x = torch.rand(4, 3, 8, 8)
        logits, loss = callback.objective(net, x, torch.zeros(4, dtype=torch.int64))
        assert loss.item() == pytest.approx(taken_for(1, callback.discriminator(logits)).item(), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"budget": 0.01},
            r"gal keeps at least 486,026 paper MACs of CifarResNet, with all 9 blocks gone: .* ask for 486,026 or more",
        ),
        ({"updates": 0}, "gal needs updates of 1 or more, not 0"),
        ({"init": "zeros"}, "gal takes init normal or ones and teacher train or eval, not 'zeros'"),
        ({"sparsity": -1.0}, "sparsity of gal must be 0 or more, not -1.0"),
        (
            {"layers": ["layer1.0.conv1"]},
            "layer1.0.conv1 is no residual block of its own.* ask for layer1.0.conv1, layer1.0.conv2",
        ),
        ({"layers": ["conv1"]}, "conv1 is no residual block of its own, and only whole blocks go; leave it out"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_first_step(options, message, monkeypatch):
    monkeypatch.setattr(search.Search, "objective", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(BadInput, match=message):
        train_pruned(build_model("resnet20"), "gal", pictures(16, 8), RECIPE, progress=False, **options)


def test_a_network_without_residual_blocks_is_refused():
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(BadInput, match="Sequential has no residual blocks to remove; take a method that removes filters"):
        train_pruned(plain, "gal", pictures(16, 8), RECIPE, input_shape=(3, 8, 8))
