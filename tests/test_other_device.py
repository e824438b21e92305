"""Pruning, training, attacks, evaluation and files with networks that are not on the CPU: no mixture of devices, the same bits.

The device is made of the CPU's memory (`other_device`), so what is found here is what fails on any accelerator; what only a GPU
does, such as captured steps and TF32, is not.
"""

import numpy as np
import pytest
import torch
from method_checks import CHEAP, pictures
from other_device import DEVICE, is_there, other_device
from torch.nn import functional as F

import gkp
from gkp.networks.build import build_model
from gkp.pruning.prune import prune, train_pruned
from gkp.pruning.registry import methods
from gkp.training.loop import train
from gkp.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("there", "one_thread")
KINDS = ("sr-gkp", "hrank", "lrf")  # of specs, and of what methods look at: weights, images
TRAINED = ("dhp", "rap-admm")  # with a network and with images of their own
RECIPE = Recipe(epochs=1, lr=0.01, batch_size=8)
X = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(3)


@pytest.fixture
def there():
    with other_device():
        yield


def dense():
    return build_model("resnet20", seed=0).eval()


def state(net):
    """The tensors of a network by name, on the CPU."""
    return {name: tensor.cpu() for name, tensor in net.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_the_device_refuses_what_a_gpu_refuses():
    conv, x = torch.nn.Conv2d(3, 4, 3).to(DEVICE), X.to(DEVICE)
    assert is_there(conv.weight) and conv.weight.device == DEVICE and conv(x).device == DEVICE
    assert torch.equal(conv(x).cpu(), torch.nn.Conv2d.cpu(conv)(X))
    with pytest.raises(RuntimeError, match="on the same device"):
        conv.to(DEVICE)(X)
    with pytest.raises(RuntimeError, match="on the same device"):
        X[LABELS.to(DEVICE)]
    with pytest.raises(TypeError, match="to numpy"):
        np.asarray(x)
    with pytest.raises(RuntimeError, match="device type for generator"):
        torch.rand(3, device=DEVICE, generator=torch.Generator())


@pytest.mark.parametrize("method", KINDS)
def test_a_network_is_pruned_where_it_is(method):
    options = {**CHEAP.get(method, {}), **({"data": pictures(16, 8)} if "data" in methods()[method].needs else {})}
    here, pruned = prune(dense(), method, **options), prune(dense().to(DEVICE), method, **options)
    assert pruned.plan == here.plan
    for net, expected in ((pruned, here), (pruned.compact(), here.compact())):
        assert all(tensor.device == DEVICE for tensor in net.state_dict().values())
        assert torch.equal(net.eval()(X.to(DEVICE)).cpu(), expected.eval()(X))
    moved = here.to(DEVICE)  # or it goes there later
    assert torch.equal(moved.compact()(X.to(DEVICE)).cpu(), pruned.compact()(X.to(DEVICE)).cpu())


def test_a_network_is_trained_there_with_its_images_and_goes_on_there_from_a_checkpoint(tmp_path):
    data, two = pictures(16, 8), Recipe(epochs=2, lr=0.01, batch_size=8)
    how = {"progress": False, "channels_last": False}  # the memory format on an accelerator; it decides over last bits
    nets = [prune(dense(), "l2-gkp") for _ in range(3)]
    train(nets[0], data, two, **how)
    train(nets[1], data, two, device=DEVICE, **how)
    half = tmp_path / "checkpoint"

    def once(_):
        if half.exists():
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        train(nets[2], data, two, device=DEVICE, checkpoint=half, evaluate=once, **how)
    train(nets[2], data, two, device=DEVICE, checkpoint=half, **how)
    assert all(is_there(p) for net in nets[1:] for p in net.parameters())
    for net in nets[1:]:
        assert_same(state(net), state(nets[0]))


@pytest.mark.parametrize("method", TRAINED)
def test_methods_that_train_do_so_there(method):
    options = {"progress": False, **CHEAP.get(method, {})}
    pruned, _ = train_pruned(dense(), method, pictures(16, 8), RECIPE, device=DEVICE, **options)
    assert all(is_there(p) for p in pruned.parameters())
    assert torch.isfinite(pruned.compact().eval()(X.to(DEVICE))).all()


def test_the_loop_of_somebody_else_trains_there():
    pruned = prune(dense().to(DEVICE), "l2-gkp").train()
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1, momentum=0.9)
    F.cross_entropy(pruned(X.to(DEVICE)), LABELS.to(DEVICE)).backward()
    optimizer.step()
    small = pruned.eval().compact()
    torch.testing.assert_close(small(X.to(DEVICE)).cpu(), pruned(X.to(DEVICE)).cpu(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd", "apgd-ce", "apgd-t", "square", "cascade"])
def test_attacks_find_there_what_they_find_here(attack, norm):
    few = {"pgd": {"steps": 3}, "apgd-ce": {"steps": 5}, "apgd-t": {"steps": 5, "targets": 2}, "square": {"queries": 5}}
    options = {"eps": "2/255" if norm == "linf" else 0.5, "norm": norm, **few.get(attack, {})}
    y = dense()(X).argmax(1)
    found = gkp.attack(dense().to(DEVICE), X.to(DEVICE), y.to(DEVICE), attack, **options)
    assert is_there(found) and torch.equal(found.cpu(), gkp.attack(dense(), X, y, attack, **options))


def test_autoattack_runs_there():
    x, y = X[:1].to(DEVICE), dense()(X[:1]).argmax(1).to(DEVICE)
    found = gkp.attack(dense().to(DEVICE), x, y, "autoattack", eps="16/255")
    assert is_there(found) and (found - x).abs().max() <= 16 / 255 + 1e-6


def test_an_evaluation_says_there_what_it_says_here_and_the_network_is_saved_and_read(tmp_path):
    pruned, data = prune(dense(), "l2-gkp"), pictures(12, 16)
    here = gkp.benchmark(pruned, data, protocol="paper", progress=False)
    there = gkp.benchmark(pruned.to(DEVICE), data, protocol="paper", progress=False)
    assert np.array_equal(there.right, here.right) and there.model_sha256 == here.model_sha256
    for name, net in (("masked", pruned), ("compact", pruned.compact())):
        loaded = gkp.load_model(gkp.save_model(net, tmp_path / name))
        assert_same(state(loaded), state(net))
        assert torch.equal(loaded.to(DEVICE).eval()(X.to(DEVICE)), net.eval()(X.to(DEVICE)))
