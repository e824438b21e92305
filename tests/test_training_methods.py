"""Methods that prune while they train: what they do to weights and losses, and that they end in a plan under the budget."""

import dataclasses
import inspect

import pytest
import torch
from method_checks import assert_usable
from torch import nn

from gkp.artifact.experiments.kinds import PruneCell, TrainCell, Training
from gkp.data.dataset import Dataset
from gkp.errors import BadInput
from gkp.networks.build import build_model
from gkp.pruning.cost import cost
from gkp.pruning.coupling import Couplings
from gkp.pruning.methods.depgraph import group_squares
from gkp.pruning.prune import prune, train_pruned
from gkp.pruning.registry import make_method, methods
from gkp.training.recipe import Recipe

TRAINING_TIME = tuple(name for name, info in methods().items() if info.procedure != "one-shot")
RECIPE = Recipe(epochs=2, lr=0.05, batch_size=16)


def pictures(n=32):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Dataset("pictures", "train", images, torch.arange(n) % 10, 10, (0.5,) * 3, (0.25,) * 3)


def four_filters():
    """conv (4 filters of norm 1, 2, 3 and 4) -> BatchNorm -> ReLU -> conv -> logits, for 8 x 8 images."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 10, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    net[0].weight.data.zero_()
    net[0].weight.data[:, 0, 0, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    return net


def started(method, net, budget=0.5, **options):
    """The method's callback on the first convolution of `net`, before the first epoch, half of the budget."""
    callback = make_method(method, budget=budget, tolerance=0.2, **options).callback({"0": net[0]})
    callback.before_training(net)
    return callback


def norms(net):
    return net[0].weight.detach().flatten(1).norm(dim=1).tolist()


def test_sfp_zeroes_the_smallest_filters_lets_them_train_and_takes_them_back():
    net = four_filters()
    callback = started("sfp", net)
    assert norms(net) == [0, 0, 3, 4] and net[1].weight.tolist() == [1, 1, 1, 1]
    net[0].weight.data[0] = 5.0  # an optimiser step
    callback.after_step(net)
    assert norms(net)[0] > 8
    callback.after_epoch(net, 1)
    assert norms(net)[1:] == [0, 0, 4] and norms(net)[0] > 8
    assert callback.plan(net)["0"].kept_filters.tolist() == [0, 3]


def test_fpgm_holds_its_filters_at_zero_until_it_chooses_anew():
    net = four_filters()
    net[0].weight.data[3, 1] = 4.0  # filters on a line but for the last: the middle of the line is nearest to all
    callback = started("fpgm", net)
    first = callback.plan(net)["0"].kept_filters.tolist()
    assert [norm > 0 for norm in norms(net)] == [index in first for index in range(4)] and 3 in first
    net[0].weight.data += 0.5
    callback.after_step(net)
    assert [norm > 0 for norm in norms(net)] == [index in first for index in range(4)]


def test_what_fpgm_held_at_zero_comes_back_when_others_are_nearer_to_the_median():
    net = four_filters()
    callback = started("fpgm", net, budget=0.75)
    assert norms(net) == [1, 2, 0, 4]  # distances 6, 4, 4 and 6; of equals the later goes
    net[0].weight.data[[1, 3], 0] += 3.0  # an epoch of training
    callback.after_epoch(net, 1)
    assert norms(net) == [1, 0, 0, 7]  # of 1, 5, 0 and 7: 11, 11, 13 and 15
    assert callback.plan(net)["0"].kept_filters.tolist() == [0, 2, 3]
    net[0].weight.data[2, 0] = 2.5
    callback.after_step(net)
    assert norms(net) == [1, 0, 2.5, 7]


def test_slimming_penalises_scales_and_cuts_by_one_threshold():
    net = four_filters()
    net[1].weight.data.copy_(torch.tensor([0.5, -2.0, 0.0, 1.0]))
    method = make_method("slimming", sparsity=0.01, budget=0.5, tolerance=0.2)
    penalty = method.penalty(net, {"0": net[0]})
    assert penalty().item() == pytest.approx(0.035)
    penalty().backward()
    assert net[1].weight.grad.tolist() == pytest.approx([0.01, -0.01, 0.0, 0.01])
    assert method.plan(net, {"0": net[0]})["0"].kept_filters.tolist() == [1, 3]
    bare = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with pytest.raises(BadInput, match="0 has no BatchNorm with a scale behind it"):
        method.scores(bare, {"0": bare[0]})


def test_depgraph_scores_and_penalises_as_torch_pruning_does():
    import torch_pruning as tp

    net = build_model("resnet20").eval()
    for p in net.parameters():
        p.data.uniform_(-1, 1)
    names = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and name.endswith(".conv1")]
    ignored = [m for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and name not in names]
    theirs = tp.pruner.GroupNormPruner(
        net,
        torch.zeros(1, 3, 32, 32),
        importance=tp.importance.GroupMagnitudeImportance(p=2, normalizer=None),
        reg=1e-3,
        ignored_layers=ignored,
    )
    method, convs = make_method("depgraph", reg=1e-3), {name: net.get_submodule(name) for name in names}
    by_max = tp.importance.GroupMagnitudeImportance(p=2, normalizer="max")
    scores = method.scores(net, convs)
    for group in theirs._groups:
        name = next(n for n in names if net.get_submodule(n) is group[0].dep.target.module)
        assert torch.allclose(scores[name], by_max(group), rtol=1e-4)
    assert len(theirs._groups) == len(names) == 9

    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    theirs.regularize(net)
    expected = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    method.penalty(net, convs)().backward()
    for name, p in net.named_parameters():
        found = torch.zeros_like(p) if p.grad is None else p.grad
        assert torch.allclose(found, expected[name], rtol=1e-3, atol=1e-7), name
    assert expected["layer1.0.conv2.weight"].abs().max() > 0


def test_what_is_coupled_to_a_filter_by_hand():
    net = four_filters()
    net[3].weight.data.fill_(2.0)
    squares = group_squares(net, Couplings(net), "0")
    assert [each.tolist() for each in squares] == [[1, 4, 9, 16], [1, 1, 1, 1], [40, 40, 40, 40]]


@pytest.mark.parametrize("method", TRAINING_TIME)
def test_every_training_time_method_ends_in_a_plan_under_the_budget(method, tmp_path):
    net = build_model("resnet20")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    pruned, log = train_pruned(net, method, pictures(), RECIPE, progress=False)
    assert len(log.rows) == 2 and all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert cost(pruned).paper_macs <= 1.01 * 23_391_498
    off = cost(pruned).paper_macs / 23_391_498 - 1
    assert pruned.off_budget == (None if abs(off) <= 0.01 else pytest.approx(off, abs=1e-4))
    assert abs(off) <= (0.13 if method == "gal" else 0.01)  # a block is 11.6 % of ResNet-20, and so of this budget 20 %
    again, _ = train_pruned(net, method, pictures(), RECIPE, progress=False)
    assert again.plan == pruned.plan
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), pruned.parameters(), strict=True))
    assert_usable(pruned, tmp_path)


@pytest.mark.parametrize("method", ["fpgm", "depgraph", "gal"])
def test_a_killed_training_goes_on_to_the_same_plan_and_weights(method, tmp_path):
    net = build_model("resnet20")
    whole, _ = train_pruned(net, method, pictures(), RECIPE, progress=False)

    def stop_at_the_second(_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {}

    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        train_pruned(net, method, pictures(), RECIPE, progress=False, checkpoint=tmp_path / "half", evaluate=stop_at_the_second)
    resumed, log = train_pruned(net, method, pictures(), RECIPE, progress=False, checkpoint=tmp_path / "half")
    assert resumed.plan == whole.plan and len(log.rows) == 2
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_each_kind_of_method_has_its_own_way_in():
    net = build_model("resnet20")
    with pytest.raises(BadInput, match=r"sfp prunes while it trains \(soft\); use gkp.pruning.prune.train_pruned"):
        prune(net, "sfp")
    with pytest.raises(BadInput, match=r"l2 prunes in one shot; use gkp.prune"):
        train_pruned(net, "l2", pictures(), RECIPE)
    with pytest.raises(BadInput, match="pruned already"):
        train_pruned(prune(net, "l2"), "sfp", pictures(), RECIPE)
    with pytest.raises(BadInput, match="sfp has no option csb"):
        train_pruned(net, "sfp", pictures(), RECIPE, csb=0.5)
    known = methods()
    assert all("training" in known[name].needs and known[name].procedure != "one-shot" for name in TRAINING_TIME)


def test_the_paper_s_smoothness_mix_up_is_reached_from_a_cell():
    for csb in (0.5, 0.75, 0.9):  # Table 6
        cell = PruneCell(net=TrainCell(), method="sfp-smooth", options={"csb": csb})
        assert make_method(cell.method, **dict(cell.options)).csb == csb


def test_the_training_of_a_cell_has_the_fields_and_defaults_of_a_recipe():
    recipe, cell = ({f.name: f.default for f in dataclasses.fields(kind)} for kind in (Recipe, Training))
    assert {name: value for name, value in cell.items() if name in recipe} == recipe


def test_no_option_of_a_method_has_the_name_of_an_argument_that_means_something_else():
    handed_on = {"rate", "groups", "seed", "input_shape", "budget", "data"}  # these mean the same
    for name, info in methods().items():
        call = prune if info.procedure == "one-shot" else train_pruned
        assert not set(info.options) & set(inspect.signature(call).parameters) - handed_on, name
