"""RAP-ADMM: Z and U by hand, the order of a whole training, images within eps, the cut, the way in and out."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from effects_by_hand import report
from method_checks import assert_same_function, largest_difference, pictures
from torch import nn
from torch.nn import functional as F

from gkp.artifact import effects
from gkp.artifact.claims.evidence import Index, Net
from gkp.artifact.experiments.kinds import PruneCell, TrainCell
from gkp.artifact.experiments.stages import _soft_epochs
from gkp.artifact.results import paper_name
from gkp.artifact.tables.accuracy import methods_table
from gkp.attacks.balls import uniform_start
from gkp.attacks.gradient import pgd
from gkp.checkpoints import save_model
from gkp.errors import BadInput
from gkp.networks.build import build_model
from gkp.pruning.cost import cost
from gkp.pruning.masks import unmasked
from gkp.pruning.methods.rap_admm.splitting import Splitting, project
from gkp.pruning.methods.rap_admm.training import Training, cycle_starts
from gkp.pruning.prune import prune, train_pruned
from gkp.pruning.registry import make_method, methods
from gkp.training.loop import train
from gkp.training.recipe import Recipe

EPS = 8 / 255
GOAL = 23_390_858  # paper_macs that grouped kernel pruning at 7/16 leaves of ResNet-20
RECIPE = Recipe(epochs=2, lr=0.05, batch_size=16)


def rows(*values):
    """Filters of a single weight each, `(n, 1, 1, 1)`."""
    return torch.tensor(values).view(-1, 1, 1, 1)


def small_net(seed=0):
    """conv (4 filters) -> BatchNorm -> ReLU -> conv -> logits, for images of any size."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = (nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 10, 1))
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def started(net, epochs=1, steps=10, **options):
    """The method's callback on the first convolution of `net`, half of the filters to go, before the first step."""
    callback = make_method("rap-admm", **{"budget": 0.5, "tolerance": 0.2, **options}).callback({"0": net[0]})
    callback.schedule(epochs, steps)
    callback.before_training(net)
    return callback


# --- ADMM -------------------------------------------------------------------------------------------------------------


def test_the_projection_is_the_nearest_tensor_with_so_many_filters():
    assert project(rows(1.0, -2.0, 3.0, -4.0), 2).flatten().tolist() == [0, 0, 3, -4]
    assert project(rows(2.0, 2.0, -2.0), 2).flatten().tolist() == [2, 2, 0]  # of equals the earlier stays
    weight = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    for keep in range(6):
        distances = []
        for chosen in itertools.combinations(range(5), keep):
            other = torch.zeros_like(weight)
            other[list(chosen)] = weight[list(chosen)]
            distances.append((weight - other).norm().item())
        assert (weight - project(weight, keep)).norm().item() == pytest.approx(min(distances))


@pytest.mark.parametrize("in_graph", [False, True])
def test_z_and_u_by_hand(in_graph):
    weight = rows(3.0, 1.0).requires_grad_()
    admm = Splitting({"0": 1}, in_graph)
    admm.start({"0": weight})
    assert admm.z["0"].flatten().tolist() == [3, 0] and admm.u["0"].flatten().tolist() == [0, 0]
    for cycle in (1, 2):  # weights that stay as they are
        admm.update({"0": weight})
        assert admm.z["0"].flatten().tolist() == [3, 0] and admm.u["0"].flatten().tolist() == [0, cycle]
        weight.grad = None
        penalty = admm.penalty({"0": weight}, rho=0.5)
        penalty.backward()
        assert penalty.item() == 0.25 * (1 + cycle) ** 2
        assert weight.grad.flatten().tolist() == [0, 0.5 * (1 + cycle) * (1 + cycle if in_graph else 1)]
    admm.u["0"] = rows(0.0, 2.5)
    admm.update({"0": weight})  # Z is that of W + U, not of W
    assert admm.z["0"].flatten().tolist() == [0, 3.5] and admm.u["0"].flatten().tolist() == [3, 0]


def test_with_u_in_the_graph_the_gradient_is_that_of_a_u_that_was_never_detached():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 2, 1, 1, generator=generator).requires_grad_()
    admm = Splitting({"0": 2}, in_graph=True)
    admm.start({"0": weight})
    u = torch.zeros_like(weight)
    for _ in range(3):
        weight.data += torch.randn(4, 2, 1, 1, generator=generator)
        admm.update({"0": weight})
        u = weight - admm.z["0"] + u
        (expected,) = torch.autograd.grad((weight - admm.z["0"] + u).square().sum() * 0.01 / 2, weight, retain_graph=True)
        (found,) = torch.autograd.grad(admm.penalty({"0": weight}, 0.01), weight)
        torch.testing.assert_close(found, expected)


def test_admm_finds_the_nearest_point_with_so_many_filters():
    target = torch.randn(6, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    weight, rho = torch.zeros_like(target), 1.0
    admm = Splitting({"0": 2})
    admm.start({"0": weight})
    for _ in range(200):  # min ||W - target||^2 / 2 + rho / 2 ||W - Z + U||^2, solved exactly
        weight = (target + rho * (admm.z["0"] - admm.u["0"])) / (1 + rho)
        admm.update({"0": weight})
    torch.testing.assert_close(admm.z["0"], project(target, 2), atol=1e-4, rtol=1e-4)


# --- the training -----------------------------------------------------------------------------------------------------


def test_cycles_are_even_and_rho_grows_to_the_pull_of_the_released_code():
    assert cycle_starts(200 * 391, 9) == [391 * 20 * k for k in range(1, 10)]
    assert cycle_starts(4, 9) == [1, 2, 3] and cycle_starts(1, 9) == []
    pulls = {}
    for in_graph in (False, True):
        net = small_net()
        callback, seen = started(net, steps=40, u_in_graph=in_graph), []
        for _ in range(19):
            seen.append(callback.rho * (1 + callback.splitting.updates if in_graph else 1))
            callback.after_step(net)
        assert callback.splitting.updates == 9 and seen[0] == seen[1] != seen[2]
        pulls[in_graph] = seen[::2]
    assert pulls[True][:3] == pytest.approx([0.001 * 1.3**k * (1 + k) for k in range(3)], rel=1e-3)
    assert pulls[False][0] == pulls[True][0] == 0.001
    assert pulls[False][9] == pytest.approx(0.106) and pulls[True][9] == pytest.approx(0.106, rel=1e-3)


def test_the_learning_rate_falls_within_each_cycle_and_after_the_cut():
    callback = started(small_net(), epochs=2, steps=20, updates=1)  # two cycles of 10 steps, 20 after the cut
    factors = [callback.lr_factor(step) for step in range(40)]
    cycle = [1] * 4 + [0.1] * 3 + [0.01] * 3
    assert factors == pytest.approx([*cycle, *cycle, *[1] * 8, *[0.1] * 7, *[0.01] * 5])
    assert {started(small_net(), cyclic=False).lr_factor(step) for step in range(10)} == {1.0}


def attack_by_hand(net, x, y, eps, step, steps, seed):
    """PGD written out, the network in eval mode."""
    modes, moved = net.training, uniform_start(x, torch.arange(len(x)), eps, "linf", (0.0, 1.0), seed, 0)
    net.eval()
    for _ in range(steps):
        moved.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(moved), y, reduction="sum"), moved)
        moved = (moved.detach() + step * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    net.train(modes)
    return moved


def by_hand(net, batches, *, starts, cut, first_rho, growth, keep, recipe):
    """The algorithm written out on these batches; the convolution of `net` is split."""
    conv, norm, reader = net[0], net[1], net[3]
    sgd = torch.optim.SGD(net.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    rho, z, u, gone = first_rho, project(conv.weight.detach(), keep), torch.zeros_like(conv.weight), None
    net.train()
    for step, (x, y) in enumerate(batches):
        if step in starts:
            with torch.no_grad():
                rho = rho * growth
                z = project(conv.weight + u, keep)
                u = u + conv.weight - z
        adversarial = attack_by_hand(net, x, y, EPS, EPS / 2, 2, step)
        loss = F.cross_entropy(net(adversarial), y)
        if gone is None:
            loss = loss + rho / 2 * (conv.weight - z + u).square().sum()
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        with torch.no_grad():
            if step + 1 == cut:
                gone = conv.weight.flatten(1).norm(dim=1).argsort()[: len(conv.weight) - keep]
                sgd = torch.optim.SGD(net.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
            if gone is not None:
                for p in (conv.weight, conv.bias, norm.weight, norm.bias):
                    p[gone] = 0
                reader.weight[:, gone] = 0
    return net


def test_every_step_is_that_of_the_algorithm_in_its_order(monkeypatch):
    net, data, seen = small_net(), pictures(64, 8), []
    options = {"attack_steps": 2, "updates": 2, "rho": 0.5, "last_rho": 2.0, "cyclic": False, "budget": 0.5, "tolerance": 0.2}
    callback, trained = make_method("rap-admm", **options).callback({"0": net[0]}), copy.deepcopy(net)
    original = Training.objective

    def remember(self, net, x, y):
        seen.append((x.clone(), y.clone()))
        return original(self, net, x, y)

    monkeypatch.setattr(Training, "objective", remember)
    recipe = Recipe(epochs=2, lr=0.05, batch_size=16, weight_decay=1e-4)
    train(trained, data, recipe, callbacks=[callback], progress=False, channels_last=False)
    assert len(seen) == 8
    settings = {"first_rho": 0.5, "growth": 2.0, "keep": 2, "recipe": recipe}
    expected = by_hand(copy.deepcopy(net), seen, starts=[1, 2], cut=4, **settings)
    for (name, ours), theirs in zip(trained.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4, msg=name)
    assert (trained[0].weight.flatten(1).norm(dim=1) == 0).sum() == 2  # in spite of momentum and weight decay
    for starts, cut in (([2, 3], 4), ([1, 2], 5)):
        other = by_hand(copy.deepcopy(net), seen, starts=starts, cut=cut, **settings)
        assert not torch.allclose(trained[3].weight, other[3].weight, atol=1e-4)


def test_the_images_are_within_eps_and_the_attack_changes_nothing_of_the_network():
    net, data = small_net().train(), pictures(32, 8)
    x, y = data.pixels(), data.labels
    callback = started(net, attack_steps=3)
    before = copy.deepcopy(net.state_dict())
    found = callback.attacked(net, x, y)
    assert ((found - x).abs() <= EPS + 1e-6).all() and found.min() >= 0 and found.max() <= 1
    assert (found - x).abs().max() > EPS / 2 and net.training and net[1].training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(found, callback.attacked(net, x, y))
    callback.after_step(net)
    assert not torch.equal(found, callback.attacked(net, x, y))  # of each step other starts
    assert torch.equal(pgd(net.eval(), x, y, eps=0.0, step=0.1, steps=2, drop_fallen=False), x)


def test_under_attack_in_training_mode_batchnorm_meets_every_step_as_released():
    net, data = small_net().train(), pictures(32, 8)
    callback = started(net, attack_steps=3, attack_mode="train")
    callback.objective(net, data.pixels(), data.labels)
    assert net[1].num_batches_tracked == 3 + 1 + 1  # the attack's, one of the images themselves, one to learn from
    net = small_net().train()
    started(net, attack_steps=3).objective(net, data.pixels(), data.labels)
    assert net[1].num_batches_tracked == 1


def test_the_step_is_the_released_one_and_half_of_eps_where_steps_are_few():
    lengths = {steps: make_method("rap-admm", attack_steps=steps).length for steps in (1, 2, 3, 10, 20)}
    assert lengths == pytest.approx({1: EPS / 2, 2: EPS / 2, 3: EPS / 2, 10: 2 / 255, 20: 1 / 255})
    assert make_method("rap-admm", eps=0.1, attack_step="3/255").length == pytest.approx(3 / 255)


# --- the cut ----------------------------------------------------------------------------------------------------------


def test_masked_equals_compact_at_the_budget_because_the_shift_goes_too():
    pruned, log = train_pruned(build_model("resnet20"), "rap-admm", pictures(32, 8), RECIPE, attack_steps=1, progress=False)
    assert cost(pruned).paper_macs == pytest.approx(GOAL, rel=0.01) and len(log.rows) == 2
    assert set(pruned.plan) == {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)}
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert_same_function(pruned, x)
    small, left = pruned.compact(), unmasked(pruned.net)
    gone = pruned.plan["layer1.0.conv1"].removed_filters(left.layer1[0].conv1)
    assert not left.layer1[0].bn1.bias[gone].any() and not left.layer1[0].conv2.weight[:, gone].any()
    before = build_model("resnet20").layer1[0].conv2.weight.detach()
    left.layer1[0].conv2.weight.data[:, gone], left.layer1[0].bn1.bias.data[gone] = before[:, gone], 0.5
    assert largest_difference(small, left, x) > 1e-2  # as the released code leaves it


@pytest.mark.parametrize("killed_in", [2, 3, 4])  # of 4 epochs; the cut is at the end of the second
def test_the_same_seed_gives_the_same_bytes_also_after_a_kill(killed_in, tmp_path):
    def run(seed=0, **options):
        options = {"attack_steps": 1, "updates": 2, "progress": False, **options}
        recipe = Recipe(epochs=4, lr=0.05, batch_size=16)
        return train_pruned(build_model("resnet20"), "rap-admm", pictures(32, 8), recipe, seed=seed, **options)[0]

    calls = []

    def stop(_):
        calls.append(1)
        if len(calls) == killed_in:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path / "half", evaluate=stop)
    with pytest.raises(BadInput, match="belongs to a training with another callbacks"):
        run(checkpoint=tmp_path / "half", eps=0.1)
    nets = (("whole", run()), ("resumed", run(checkpoint=tmp_path / "half")), ("other", run(seed=1)))
    whole, resumed, other = (
        (save_model(net.compact(), tmp_path / name) / "model.safetensors").read_bytes() for name, net in nets
    )
    assert whole == resumed != other


# --- the way in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, "rap-admm trains on adversarial images: eps must be above 0, not 0.0; 8/255 is the authors'"),
        ({"attack_step": 0.0}, "attack_step must be above 0, not 0.0"),
        ({"eps": 8}, "eps 8 is above 1, the whole range of a pixel"),
        ({"attack_steps": 0}, "attack_steps of rap-admm must be a whole number of 1 or more, not 0"),
        ({"updates": 0}, "updates of rap-admm must be a whole number of 1 or more, not 0"),
        ({"rho": -1.0}, "rho of rap-admm must be above 0, not -1.0"),
        ({"last_rho": float("inf")}, "last_rho of rap-admm must be above 0, not inf"),
        ({"attack_mode": "off"}, "attack_mode of rap-admm must be eval or train, not 'off'"),
        ({"retrain": 1.0}, "retrain of rap-admm must be 0 or more and below 1, not 1.0"),
        ({"budget": 0.01}, r"the nearest plan has .* paper MACs, .* asked for; ask for another budget"),
        ({"round_to": 0}, "round_to must be 1 or more, not 0"),
        ({"layers": ["layer1.0.conv2"]}, "whole filters of layer1.0.conv2 cannot go: it writes into the same residual stream"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line_before_the_first_step(options, message, monkeypatch, tmp_path):
    monkeypatch.setattr(Training, "objective", lambda *_: pytest.fail("a step was made"))
    given = {"progress": False, "checkpoint": tmp_path / "c", **options}
    with pytest.raises(BadInput, match=message) as refused:
        train_pruned(build_model("resnet20"), "rap-admm", pictures(16, 8), RECIPE, **given)
    assert "\n" not in str(refused.value) and not any(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["rap-admm", "sfp", "taylor-fo"])
def test_images_without_labels_are_refused_where_labels_are_learnt_from(method):
    unlabelled = replace(pictures(16, 8), labels=torch.zeros(16, dtype=torch.int64))

    def run(data, method=method):
        if methods()[method].procedure == "one-shot":
            return prune(build_model("resnet20"), method, data=data)
        return train_pruned(build_model("resnet20"), method, data, Recipe(epochs=1, batch_size=16), progress=False)[0]

    for data, message in (
        (unlabelled, f"{method} learns from labels, and all 16 images of 'pictures' have the label 0; give a labelled"),
        (unlabelled.pixels(), f"{method} takes images and labels in a gkp.Dataset, not a Tensor"),
    ):
        with pytest.raises(BadInput, match=message) as refused:
            run(data)
        assert "\n" not in str(refused.value)
    assert run(unlabelled, "gal").plan  # which looks at no label


def test_it_is_the_only_method_marked_as_trained_for_robustness_and_no_other_training_comes_after_its_own():
    assert [name for name, info in methods().items() if info.adversarial] == ["rap-admm"]
    assert [name for name, info in methods().items() if info.to_json()["adversarial"]] == ["rap-admm"]
    assert "trained for robustness" in methods()["rap-admm"].fidelity
    cell = PruneCell(net=TrainCell(), method="rap-admm", epochs=7)
    assert _soft_epochs({"method": cell.method, "epochs": 7, "soft_epochs": None}) == 7
    assert _soft_epochs({"method": "sfp", "epochs": 7, "soft_epochs": None}) == 4


def test_its_name_says_so_in_tables_and_questions_to_all_methods_leave_it_out(tmp_path):
    assert paper_name("rap-admm (attack_steps 3)") == "RAP-ADMM (attack_steps 3) [adversarially trained]"
    assert paper_name("sr-gkp") == "SR-GKP"
    results = report(tmp_path, none=(200,), sr_gkp=(150,), l2_gkp=(199,), rap_admm=(350,))
    assert effects.scores(results, "paper", effects.ATTACKS).pruned == ["sr-gkp", "l2-gkp"]
    shown = methods_table(results, protocol="paper", title="All")
    assert list(shown.shown.index) == ["unpruned, fine-tuned", "SR-GKP", "L2-GKP", "RAP-ADMM [adversarially trained]"]
    index = Index(tuple(result.cell for result in results), "quick")
    assert [net.method for net in index.methods("resnet20")] == ["none", "sr-gkp", "l2-gkp"]
    assert index.networks(Net("rap-admm", (), 7 / 16), "resnet20")  # a claim that names it finds it
