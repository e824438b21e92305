"""DHP: weights computed from latents, by hand; the order of a step; widths that meet the budget; the way in and out."""

import itertools

import pytest
import torch
from method_checks import assert_same_function, pictures
from torch import nn

from gkp.checkpoints import save_model
from gkp.errors import BadInput
from gkp.networks.build import build_model
from gkp.networks.classifier import convolutions
from gkp.pruning.budget import Counter, grouped_kernel_macs
from gkp.pruning.cost import cost
from gkp.pruning.layers import choose_layers
from gkp.pruning.methods.dhp import Budget, HyperConv, HyperNetwork, above, plan_for, shrink, wiring
from gkp.pruning.prune import train_pruned
from gkp.pruning.registry import make_method, methods
from gkp.training.callback import Callback
from gkp.training.loop import train
from gkp.training.recipe import Recipe

RECIPE = Recipe(epochs=2, lr=0.1, batch_size=16)
INNER = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)]


def hyper_conv(c=2, n=3, k=3, hidden=8, seed=0):
    return HyperConv(c, n, (k, k), hidden, torch.Generator().manual_seed(seed))


def projected(name="resnet20", **fields):
    return build_model(name, shortcut="projection", **fields)


def started(net, epochs=1, steps=4, lr=0.1, **options):
    """The method's callback on `net` before the first step of a training."""
    options = {"budget": 23_391_498, **options}
    callback = make_method("dhp", **options).callback(dict.fromkeys(INNER))
    callback.schedule(epochs, steps)
    callback.learning_rate(lambda step: lr)
    callback.before_training(net)
    return callback


# --- the hypernetwork ---------------------------------------------------------------------------------------------------


def test_a_weight_by_hand():
    layer = hyper_conv(1, 1, 1, hidden=1)
    for parameter, value in ((layer.bias0, 1), (layer.weight1, 0.5), (layer.bias1, 0.5), (layer.weight2, 2), (layer.bias2, -1)):
        parameter.data.fill_(value)
    assert layer(torch.tensor([2.0]), torch.tensor([3.0])).tolist() == [[[[7.0]]]]  # z 7, embedded 4


def test_shapes_and_sizes_of_the_hypernetwork():
    layer = hyper_conv()
    assert layer(torch.rand(2), torch.rand(3)).shape == (3, 2, 3, 3)
    assert sum(p.numel() for p in layer.parameters()) == 98 * 2 * 3 == 588
    pairs = 3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64
    latents = 3 + 4 * 16 + 4 * 32 + 4 * 64
    hyper = HyperNetwork(projected(), 8, seed=0)
    assert sum(p.numel() for p in hyper.parameters()) == 98 * pairs + 26 * (16 * 32 + 32 * 64) + latents


def test_without_biases_a_weight_is_proportional_to_its_latents_and_with_them_a_zero_latent_leaves_weights():
    layer, z_in, z_out = hyper_conv(), torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.0, -2.0])
    weight = layer(z_in, z_out)
    assert weight[1].abs().max() == weight[:, 1].abs().max() == 0 < weight[0, 0].abs().min()
    torch.testing.assert_close(layer(z_in, 3 * z_out), 3 * weight)
    layer.bias2.data[:, 1] = 0.25
    assert torch.equal(layer(z_in, z_out)[1], torch.full((2, 3, 3), 0.25))


def test_first_weights_have_the_variance_of_one_over_fan_in():
    z_in, z_out = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    z_in, z_out = z_in / z_in.square().mean().sqrt(), z_out / z_out.square().mean().sqrt()
    assert hyper_conv(64, 64)(z_in, z_out).var().item() * 64 * 9 == pytest.approx(1, abs=0.1)


def test_computed_and_then_cut_is_cut_and_then_computed():
    layer, z_in, z_out = hyper_conv(5, 6), torch.randn(5), torch.randn(6)
    for bias in (layer.bias0, layer.bias1, layer.bias2):
        bias.data.normal_()
    inputs, outputs = torch.tensor([0, 3, 4]), torch.tensor([1, 5])
    small = hyper_conv(3, 2)
    for name, parameter in small.named_parameters():
        parameter.data = getattr(layer, name).data[inputs][:, outputs]
    torch.testing.assert_close(small(z_in[inputs], z_out[outputs]), layer(z_in, z_out)[outputs][:, inputs], atol=1e-6, rtol=0)


def test_one_latent_for_each_stream_and_one_inside_of_each_block():
    latents = wiring(projected())
    assert set(latents) == set(convolutions(projected()))
    assert {out for name, (_, out) in latents.items() if name.startswith("layer2") and not name.endswith("conv1")} == {"stage2"}
    assert latents["conv1"] == ("image", "stage1") and latents["layer1.0.conv1"] == ("stage1", "layer1.0")
    assert latents["layer2.0.conv1"] == ("stage1", "layer2.0") and latents["layer2.1.conv1"] == ("stage2", "layer2.1")
    assert latents["layer3.0.shortcut.conv"] == ("stage2", "stage3") and latents["layer3.2.conv2"] == ("layer3.2", "stage3")
    assert "layer2.0.shortcut.conv" not in wiring(build_model("resnet20"))


# --- a step -------------------------------------------------------------------------------------------------------------


def test_the_proximal_step_by_hand():
    latent = torch.tensor([1.0, -0.02, 0.5])
    shrink(latent, 0.03)
    assert latent.tolist() == pytest.approx([0.97, 0.0, 0.47])


def test_a_threshold_by_hand():
    latents = {"z": torch.tensor([-0.2, 0.004, 0.003, 0.001])}
    assert above(latents, 0.005, 2)["z"].tolist() == [True, True, False, False]
    assert above(latents, 0.002, 2)["z"].tolist() == [True, True, True, False]
    assert above({"z": torch.tensor([0.0, 0.3, 0.0])}, 0.005, 2)["z"].tolist() == [True, True, False]  # of equals the earlier


def test_a_step_trains_everything_and_then_shrinks_the_latents_that_are_pruned():
    """theta <- theta - lr * (gradient + decay * theta), then z <- soft(z, sparsity * lr): in this order, with the same lr."""
    lr, decay, sparsity = 0.2, 0.01, 0.5
    data, recipe = pictures(8, 8), Recipe(epochs=1, lr=lr, batch_size=8, weight_decay=decay)
    seen = {}

    class Watch(Callback):
        def after_backward(self, net):
            seen.update({name: (p.detach().clone(), p.grad.clone()) for name, p in callback._hyper.named_parameters()})
            seen["fc"] = (net.fc.weight.detach().clone(), net.fc.weight.grad.clone())
            assert net.conv1.weight.grad is None

    method = make_method("dhp", sparsity=sparsity, budget=23_391_498)
    net, callback = method.network(build_model("resnet20")), method.callback(dict.fromkeys(INNER))
    train(net, data, recipe, callbacks=[callback, Watch()], progress=False)
    after = dict(callback._hyper.named_parameters())
    pruned = {"_latents." + name.replace(".", "/") for name in callback.pruned}
    assert pruned < set(after) and {"_latents.image", "_latents.stage3"}.isdisjoint(pruned) and len(pruned) == 11
    for name, parameter in [*after.items(), ("fc", net.fc.weight)]:
        before, gradient = seen[name]
        expected = before - lr * (gradient + decay * before)
        if name in pruned:
            expected = expected.sign() * (expected.abs() - sparsity * lr).clamp(min=0)
        torch.testing.assert_close(parameter.detach(), expected, msg=name)
        assert not torch.equal(parameter, before)


def test_the_weight_of_the_l1_norm_moves_a_latent_by_the_path_in_the_whole_search():
    net = projected()
    callback = started(net, epochs=3, steps=50, lr=0.02, path=0.6, check_every=1000)
    z, image = callback._hyper.latent("stage1"), callback._hyper.latent("image").detach().clone()
    z.data = torch.linspace(1, 2, 16)
    for _ in range(150):
        callback.after_step(net)
    torch.testing.assert_close(z.detach(), torch.linspace(0.4, 1.4, 16))
    assert torch.equal(callback._hyper.latent("image"), image)


def test_a_latent_with_few_entries_left_is_not_shrunk():
    net = projected()
    callback = started(net, sparsity=1.0, check_every=1000)
    z = callback._hyper.latent("stage1")
    z.data = torch.tensor([1.0] * 4 + [0.004] * 12)
    callback.after_step(net)
    assert z[:5].tolist() == pytest.approx([1, 1, 1, 1, 0.004])
    z.data[4] = 0.006  # the fifth above the threshold of 0.005
    callback.after_step(net)
    assert z[:5].tolist() == pytest.approx([0.9, 0.9, 0.9, 0.9, 0.0])


# --- widths -------------------------------------------------------------------------------------------------------------


def linear_budget(goal, prices, at_least=1, tolerance=0.01):
    """A budget in which a channel of each latent costs its price."""
    return Budget(lambda kept: sum(prices[name] * int(mask.sum()) for name, mask in kept.items()), goal, tolerance, at_least)


def test_the_threshold_that_meets_the_budget_by_hand():
    latents = {"a": torch.tensor([0.1, -0.3, 0.5]), "b": torch.tensor([0.2, 0.4, 0.0])}
    kept, tau = linear_budget(4, {"a": 1, "b": 1}).meet(latents)
    assert {name: mask.tolist() for name, mask in kept.items()} == {"a": [False, True, True], "b": [True, True, False]}
    assert tau == pytest.approx(0.1)


def test_a_channel_that_would_undercut_the_budget_stays_and_the_next_one_goes():
    latents = {"wide": torch.tensor([0.1, 1.0]), "narrow": torch.tensor([0.05, 0.2, 0.3, 1.0])}
    kept, _ = linear_budget(202, {"wide": 100, "narrow": 1}).meet(latents)
    assert kept["wide"].tolist() == [True, True] and kept["narrow"].tolist() == [False, False, True, True]
    with pytest.raises(BadInput, match=r"the nearest that dhp comes to 150 paper MACs is 103; .* allow tolerance=0.314"):
        linear_budget(150, {"wide": 100, "narrow": 1}).meet(latents)


@pytest.mark.parametrize("name", ["resnet20", "resnet56", "resnet110"])
def test_every_depth_meets_the_budget_of_the_other_methods(name):
    dense, net = build_model(name), projected(name)
    goal = grouped_kernel_macs(dense, choose_layers(dense, None, 8)[0], 7 / 16)
    hyper, counter = HyperNetwork(net, 1, 0), Counter(net)
    latents = {z: hyper.latent(z).detach() for z in dict.fromkeys(itertools.chain(*hyper.wiring.values())) if z != "image"}
    del latents["stage3"]
    known = {}

    def macs(kept):
        widths = tuple(int(mask.sum()) for mask in kept.values())
        if widths not in known:
            known[widths] = counter(plan_for(kept, hyper.wiring)).paper_macs
        return known[widths]

    kept, tau = Budget(macs, goal, 0.01, 4).meet(latents)
    assert macs(kept) == pytest.approx(goal, rel=0.0025)
    assert all(z.abs()[~kept[name]].max() <= 2 * tau for name, z in latents.items() if not kept[name].all())
    taus = [macs(above(latents, threshold, 4)) for threshold in (0.1, 0.2, 0.4, 0.8)]
    assert taus == sorted(taus, reverse=True)
    assert cost(net).paper_macs == counter(plan_for({}, hyper.wiring)).paper_macs


# --- the method ---------------------------------------------------------------------------------------------------------


def test_masked_equals_compact_at_the_budget_and_the_streams_are_narrower():
    net = build_model("resnet20")
    pruned, _ = train_pruned(net, "dhp", pictures(32, 8), RECIPE, progress=False)
    assert cost(pruned).paper_macs == pytest.approx(23_391_498, rel=0.01)
    assert_same_function(pruned, torch.rand(4, 3, 32, 32))
    small = pruned.compact()
    widths = {name: conv.out_channels for name, conv in convolutions(small).items()}
    assert (
        widths["conv1"] == widths["layer1.2.conv2"] < 16 and widths["layer2.0.shortcut.conv"] == widths["layer2.0.conv2"] < 32
    )
    assert widths["layer3.0.shortcut.conv"] == widths["layer3.2.conv2"] == small.fc.in_features == 64
    assert set(pruned.left_out) == {name for name in widths if name.startswith("layer3") and not name.endswith("conv1")} - {
        "layer3.0.shortcut.conv"  # which the network that was given does not have
    }
    assert net.architecture.shortcut == "append" and pruned.net.architecture.shortcut == "projection"


def test_pruning_changes_the_function_unless_the_search_was_over_before():
    def difference(**options):
        net = projected()
        callback = started(net, path=2.0, **options)
        for p in callback._hyper.parameters():
            p.data += 0.01
        for _ in range(4):
            callback.after_step(net)
        callback.after_epoch(net, 1)
        small = callback.plan(net).compact(net).eval()
        x = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            expected = net.eval()(x)
            return ((small(x) - expected).abs().max() / expected.abs().max()).item(), callback

    assert difference(check_every=100)[0] > 1e-2
    distance, callback = difference(check_every=4)
    assert distance <= 1e-5 and callback.tau is not None
    before = {name: callback._hyper.latent(name).detach().clone() for name in callback.pruned}
    callback.after_step(projected())
    assert all(torch.equal(callback._hyper.latent(name), z) for name, z in before.items())


def test_without_streams_the_given_architecture_is_kept_and_only_blocks_narrow_inside():
    pruned, _ = train_pruned(build_model("resnet20"), "dhp", pictures(16, 8), RECIPE, streams=False, progress=False)
    assert pruned.net.architecture == build_model("resnet20").architecture and list(pruned.plan) == INNER
    assert cost(pruned).paper_macs == pytest.approx(23_391_498, rel=0.01)


@pytest.mark.parametrize("check_every", [1, 100])
def test_the_same_seed_gives_the_same_bytes_also_after_a_kill(check_every, tmp_path):
    def search(seed=0, **options):
        options = {"path": 3.0, "check_every": check_every, **options}
        return train_pruned(build_model("resnet20"), "dhp", pictures(32, 8), RECIPE, seed=seed, progress=False, **options)[0]

    def killed(_):
        raise KeyboardInterrupt

    calls = []
    with pytest.raises(KeyboardInterrupt):
        search(checkpoint=tmp_path / "half", evaluate=lambda net: calls.append(1) or (killed(net) if len(calls) == 2 else {}))
    pairs = (("whole", search()), ("resumed", search(checkpoint=tmp_path / "half")), ("other", search(seed=1)))
    whole, resumed, other = (
        (save_model(net.compact(), tmp_path / name) / "model.safetensors").read_bytes() for name, net in pairs
    )
    assert whole == resumed != other
    with pytest.raises(BadInput, match=r"belongs to a training with another callbacks"):
        search(checkpoint=tmp_path / "half", path=4.0)


class Foreign(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def other_head():
    net = build_model("resnet20")
    net.fc = nn.Sequential(nn.Dropout(0.1), nn.Linear(64, 10))
    return net


def test_channels_that_were_chosen_come_back_where_the_network_is():
    search = make_method("dhp").callback({})
    search._hyper = HyperNetwork(build_model("resnet20", shortcut="projection"), 8, 0).to("meta")
    search._kept = {"stage1": torch.ones(16, dtype=torch.bool), "layer2.0": torch.ones(32, dtype=torch.bool)}
    state = {name: value for name, value in search.state().items() if name.startswith("kept.")}
    search._hyper.load_state_dict = lambda tensors: None
    search.restore(state | {"done": torch.tensor(1), "tau": torch.tensor(0.5)})
    assert {mask.device.type for mask in search._kept.values()} == {"meta"}


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: build_model("vgg16_bn"), {}, "dhp computes the weights of a CIFAR ResNet, such as resnet20, .* of a Vgg16Bn"),
        (Foreign, {}, "and not of a Foreign"),
        (other_head, {}, "this CifarResNet has other layers than resnet20 has"),
        (lambda: build_model("resnet20"), {"budget": 0.05}, "dhp keeps 4 channels of every width, which is .*; ask for "),
        (lambda: build_model("resnet20"), {"budget": 60e6}, "the budget must lie below the 41,218,698 paper MACs"),
        (lambda: build_model("resnet20"), {"at_least": 0}, "at_least of dhp must be 1 or more, not 0"),
        (lambda: build_model("resnet20"), {"sparsity": -1}, "sparsity of dhp must be 0 or more, not -1"),
        (lambda: build_model("resnet20"), {"path": float("nan")}, "dhp: path is nan; give a number"),
        (lambda: build_model("resnet20"), {"round_to": 8}, "dhp has no option round_to"),
    ],
)
def test_what_dhp_cannot_prune_is_refused_in_one_line(make, options, message, tmp_path):
    with pytest.raises(BadInput, match=message) as refused:
        train_pruned(make(), "dhp", pictures(16, 8), RECIPE, progress=False, checkpoint=tmp_path / "c", **options)
    assert "\n" not in str(refused.value) and not any(tmp_path.iterdir())


def test_layers_choose_among_the_insides_of_blocks():
    options = {"layers": ["layer3.0.conv1", "layer3.1.conv1"], "streams": False, "budget": 0.9, "progress": False}
    pruned, _ = train_pruned(build_model("resnet20"), "dhp", pictures(16, 8), RECIPE, **options)
    assert list(pruned.plan) == ["layer3.0.conv1", "layer3.1.conv1"]
    with pytest.raises(BadInput, match=r"dhp narrows the inside of blocks, layerS.B.conv1, and .*, not conv1"):
        make_method("dhp").callback({"conv1": nn.Conv2d(3, 16, 3)})


def test_the_registry_says_what_dhp_is():
    info = methods()["dhp"]
    assert (info.family, info.procedure) == ("filter", "while training")
    assert "bottlenecks" in info.fidelity and "budget" in info.fidelity and info.fidelity.startswith("adapted: ")
