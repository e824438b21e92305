"""Weights from files as people have them: by any tool, behind any prefix, inside any entry, damaged in any way."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as safetensors
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from gkp.checkpoints import load_model, save_model
from gkp.cli import main
from gkp.errors import BadInput, ModelWarning
from gkp.files import locate
from gkp.networks import public
from gkp.networks.build import build_model
from gkp.networks.classifier import IMAGENET_MEAN, IMAGENET_STD, PAPER_MEAN, PAPER_STD
from gkp.pruning.prune import prune

State = dict[str, Tensor]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1141863\n"
IMAGES = torch.linspace(0, 1, 3 * 8 * 8).view(1, 3, 8, 8)


@cache
def network(name: str = "resnet20", **fields) -> nn.Module:
    """A network in which no two BatchNorms are alike."""
    net = build_model(name, seed=1, **fields)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for tensor in net.state_dict().values():
            if tensor.ndim == 1:
                tensor.copy_(0.5 + torch.rand(tensor.shape))
    return net.eval()


def bare(net: nn.Module) -> State:
    """The state dict of a network of ours as other code has it: without the normalisation."""
    return {name: tensor for name, tensor in net.state_dict().items() if name not in ("mean", "std")}


def behind(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def same(net: nn.Module, other: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(net(IMAGES), other(IMAGES))


def written(folder: Path, content, name: str = "mine.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def refused(path: Path, says: str, name: str = "resnet20", **options) -> str:
    with pytest.raises(BadInput, match=says) as caught:
        load_model(name, weights=path, **options)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


# --- files that are read --------------------------------------------------------------------------------------------

WRITERS = {
    "torch": lambda content: _saved(content),
    "torch before 1.6": lambda content: _saved(content, _use_new_zipfile_serialization=False),
    "safetensors": safetensors,
}


def _saved(content, **options) -> bytes:
    torch.save(content, file := io.BytesIO(), **options)
    return file.getvalue()


prefixes = st.lists(st.sampled_from(["module", "model", "_orig_mod", "backbone", "net", "encoder", "0"]), max_size=3)
entries = st.lists(st.sampled_from(["state_dict", "net", "model", "model_state_dict", "weights", "ema", "any"]), max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    prefix=prefixes,
    nesting=entries,
    writer=st.sampled_from([*WRITERS]),
    suffix=st.sampled_from([".pt", ".pth", ".th", ".pth.tar", ".safetensors", ".bin", ""]),
    inside=st.booleans(),
    extras=st.booleans(),
)
def test_weights_are_found_behind_any_prefix_in_any_entry_of_any_kind_of_file(
    prefix, nesting, writer, suffix, inside, extras, tmp_path_factory
):
    """`inside`: with the network's own normalisation, as of a network of ours."""
    net = network(mean=IMAGENET_MEAN, std=IMAGENET_STD) if inside else network()
    content = behind("".join(f"{word}." for word in prefix), net.state_dict() if inside else bare(net))
    if writer != "safetensors":
        for entry in nesting:
            content = {entry: content}
        if extras and nesting:
            content |= {
                "epoch": 3,
                "args": argparse.Namespace(lr=0.1),
                "best": np.float64(0.9),
                "log": defaultdict(list, a=[1]),
            }
    path = tmp_path_factory.mktemp("file") / f"mine{suffix}"
    path.write_bytes(WRITERS[writer](content))
    again = load_model("resnet20", weights=path)
    assert same(again, net) and again.architecture == net.architecture and not again.training
    assert same(load_model("resnet20", weights=str(path)), net)


def _renamed(state: State, **names: str) -> State:
    def other(name: str) -> str:
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        return name

    return {other(name): tensor for name, tensor in state.items()}


def test_the_names_that_other_code_has_for_the_same_layers_are_known(tmp_path):
    net, projected, vgg = network(), network(shortcut="projection"), network("vgg16_bn")
    cases = [
        ({("head.fc." + name[3:] if name.startswith("fc.") else "backbone." + name): t for name, t in bare(net).items()}, net),
        ({name.replace("fc.", "output."): t for name, t in bare(net).items()}, net),
        ({name.replace("shortcut.conv", "downsample.0").replace("shortcut.bn", "downsample.1"): t
          for name, t in bare(projected).items()}, projected),
        ({name.replace("shortcut.conv", "shortcut.0").replace("shortcut.bn", "shortcut.1"): t
          for name, t in bare(projected).items()}, projected),
        ({name.replace("classifier.", "classifier.0."): t for name, t in bare(vgg).items()}, vgg),
        ({name.replace("layer2.", "layer2._orig_mod."): t for name, t in bare(net).items()}, net),
    ]  # fmt: skip
    for state, expected in cases:
        images = IMAGES if expected is not vgg else torch.rand(2, 3, 32, 32)
        again = load_model(expected.architecture.name, weights=written(tmp_path, state))
        with torch.no_grad():
            assert torch.equal(again(images), expected(images))
        assert again.architecture == expected.architecture


def test_akamasters_names_bring_his_shortcut_unless_another_is_given(tmp_path):
    path = written(tmp_path, behind("module.", _renamed(bare(network()), **{"fc.": "linear."})))
    assert load_model("resnet20", weights=path).architecture.shortcut == "centre"
    assert same(load_model("resnet20", weights=path, shortcut="append"), network())


def test_layers_of_the_same_shapes_in_the_same_order_prove_nothing(tmp_path):
    state = {f"block{i}.{name.rpartition('.')[2]}": tensor for i, (name, tensor) in enumerate(bare(network()).items())}
    refused(written(tmp_path, state), "is of another architecture than resnet20: it has block0.weight, block1.weight")


def test_what_torch_pruned_is_weight_times_mask(tmp_path):
    net = load_model("resnet20", seed=3)
    torch_prune.random_unstructured(net.layer1[0].conv1, "weight", amount=0.5)
    again = load_model("resnet20", weights=written(tmp_path, net.state_dict()))
    assert same(again, net) and (again.layer1[0].conv1.weight == 0).sum() == 16 * 16 * 9 // 2


def test_counters_losses_and_old_batchnorms_are_no_layers(tmp_path):
    state = {name: tensor for name, tensor in bare(network()).items() if "num_batches_tracked" not in name}
    more = {"total_ops": torch.zeros(1), "layer1.total_params": torch.zeros(1), "n_averaged": torch.tensor(3)}
    assert same(
        load_model("resnet20", weights=written(tmp_path, {**state, **more, "criterion.weight": torch.ones(10)})), network()
    )


def test_the_number_of_classes_and_the_shortcut_are_those_of_the_file(tmp_path):
    net = network(num_classes=100, shortcut="projection")
    again = load_model("resnet20", weights=written(tmp_path, bare(net)))
    assert same(again, net) and again.num_classes == 100


def test_a_network_of_somebody_else_is_filled_from_a_file(tmp_path):
    net = torchvision.models.resnet18(num_classes=7).eval()
    path = written(tmp_path, {"state_dict": behind("module.", net.state_dict())})
    assert same(load_model(path, into=torchvision.models.resnet18(num_classes=7)), net)
    with pytest.raises(BadInput, match=r"than ResNet: fc.weight is \(7, 512\), not \(5, 512\)$"):
        load_model(path, into=torchvision.models.resnet18(num_classes=5))


def test_a_public_checkpoint_under_another_name_gets_what_belongs_to_it(tmp_path, public_weights):
    expected = load_model("resnet20", weights="akamaster")
    path = written(tmp_path, {"state_dict": behind("module.", _renamed(bare(expected), **{"fc.": "linear."}))})
    again = load_model("resnet20", weights=path)
    assert again.architecture == expected.architecture and same(again, expected)
    assert load_model("resnet20", weights=path, mean=PAPER_MEAN).architecture.mean == PAPER_MEAN


# --- the normalisation ----------------------------------------------------------------------------------------------


def test_the_normalisation_is_the_files_then_the_users_then_the_documented_one(tmp_path):
    half, state = (0.5, 0.5, 0.5), bare(network())
    assert load_model("resnet20", weights=written(tmp_path, state)).architecture.mean == PAPER_MEAN
    assert load_model("resnet20", weights=written(tmp_path, state), mean=half).architecture.mean == half
    for mean, std, prefix in (("0.mean", "0.std", "1."), ("normalizer.new_mean", "normalizer.new_std", "model.")):
        pair = {mean: torch.tensor(half), std: torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)}
        path = written(tmp_path, behind("module.", {**pair, **behind(prefix, state)}))
        made = load_model("resnet20", weights=path).architecture
        assert (made.mean, made.std) == (half, (0.2, 0.3, 0.4))
        refused(path, r"has a mean of its own, \(0.5, 0.5, 0.5\), not \(0.1, 0.5, 0.5\); leave mean out", mean=(0.1, 0.5, 0.5))
    pair = {"0.mean": torch.tensor([125.0, 123, 114]), "0.std": torch.tensor([63.0, 62, 67])}
    refused(written(tmp_path, {**pair, **behind("1.", state)}), "not of pixels in")


@pytest.mark.parametrize(
    "pair",
    [
        {"mean": torch.tensor([0.5]), "std": torch.tensor([0.5])},
        {f"{name}.{word}": torch.full((3,), value) for name, value in (("a", 0.4), ("b", 0.5)) for word in ("mean", "std")},
    ],
)
def test_a_normalisation_that_is_not_clear_must_be_given(pair, tmp_path):
    path = written(tmp_path, {**pair, **behind("model.", bare(network()))})
    for options in ({}, {"key": "model"}, {"mean": PAPER_MEAN}):
        refused(path, r"has a normalisation that is not clear \(.*mean, .*std.*\); give mean and std", **options)
    assert same(load_model("resnet20", weights=path, mean=PAPER_MEAN, std=PAPER_STD), network())


def test_imagenets_networks_have_imagenets_normalisation(tmp_path):
    path = written(tmp_path, torchvision.models.resnet50(num_classes=3).state_dict())
    made = load_model("resnet50", weights=path).architecture
    assert (made.mean, made.num_classes) == (IMAGENET_MEAN, 3)


@pytest.mark.parametrize("value", [0.5, "0.5", (0.5, "a", 1), [None] * 3])
def test_a_normalisation_that_is_no_three_numbers_is_refused(value, tmp_path):
    with pytest.raises(BadInput, match="give one number for each of 3 channels"):
        load_model("resnet20", weights=written(tmp_path, bare(network())), mean=value)


# --- files with several networks ------------------------------------------------------------------------------------


def test_of_several_networks_the_usual_one_is_taken_and_said_or_the_one_that_is_asked_for(tmp_path):
    net, other = network(), network(num_classes=10, mean=(0.4, 0.4, 0.4))
    halved = {name: t * 0.5 if t.is_floating_point() else t for name, t in bare(other).items()}
    path = written(tmp_path, {"model": bare(net), "ema": halved})
    with pytest.warns(ModelWarning, match="has other weights under ema; model is loaded, key chooses"):
        assert same(load_model("resnet20", weights=path), net)
    assert torch.equal(load_model("resnet20", weights=path, key="ema").fc.weight, halved["fc.weight"])
    refused(path, "has no resnet20 under key 'teacher'; it has one under model, ema", key="teacher")
    path = written(tmp_path, {**behind("student.", bare(net)), **behind("teacher.", halved)})
    refused(path, "has several of resnet20, under student, teacher; choose one with key, e.g. key='student'")
    assert same(load_model("resnet20", weights=path, key="student"), net)
    assert same(load_model("resnet20", weights=written(tmp_path, {"a": bare(net), "b": bare(net)})), net), "the same twice"


def test_more_layers_than_the_network_are_not_passed_over(tmp_path):
    path = written(tmp_path, {**behind("backbone.", bare(network())), "adapter.weight": torch.rand(3, 3, 1, 1)})
    refused(path, r"has more than a resnet20 \(adapter.weight\); key='backbone' takes backbone alone")
    assert same(load_model("resnet20", weights=path, key="backbone"), network())


# --- networks that are others ---------------------------------------------------------------------------------------


def test_another_network_is_told_by_three_layers_and_by_the_name_that_fits(tmp_path):
    says = refused(written(tmp_path, behind("module.", bare(network("resnet32")))), "is of another architecture than resnet20")
    assert "layer1.3.conv1 has no place in it; " in says and says.endswith("it fits resnet32: load it as that")
    says = refused(written(tmp_path, bare(network())), "layer1.3.conv1 is missing", "resnet32")
    assert says.endswith(" and 21 more; it fits resnet20: load it as that")
    narrow = {name: tensor[:8] if tensor.ndim else tensor for name, tensor in bare(network()).items()}
    says = refused(
        written(tmp_path, narrow), r"conv1.weight is \(8, 3, 3, 3\), not \(16, 3, 3, 3\); bn1.weight is \(8,\), not \(16,\); "
    )
    path = written(tmp_path, bare(network(num_classes=100)))
    refused(path, r"fc.weight is \(100, 64\), not \(10, 64\); it fits resnet20 with num_classes=100$", num_classes=10)
    refused(
        written(tmp_path, bare(network(shortcut="projection"))),
        "it fits resnet20 with shortcut='projection'$",
        shortcut="append",
    )


def test_options_of_a_file_are_not_passed_over_where_there_is_none(tmp_path):
    folder = save_model(network(), tmp_path / "net")
    for source, options in (("resnet20", {"key": "ema"}), (folder, {"mean": PAPER_MEAN}), (folder, {"weights": folder})):
        with pytest.raises(BadInput, match=r"leave (it )?out"):
            load_model(source, **options)
    with pytest.raises(BadInput, match=r"resnet20 with weights .* has its shortcut, key already; leave them out"):
        load_model("resnet20", weights=folder, shortcut="append", key="ema")


def test_a_file_alone_says_which_network_it_is(tmp_path):
    path = written(tmp_path, bare(network()))
    with pytest.raises(
        BadInput,
        match=r"is a file of weights of resnet20; load it as load_model\('resnet20', weights='.*mine.pth'\), or --model",
    ):
        load_model(path)


def test_pruned_networks_need_their_folder(tmp_path):
    compact = prune(network(), "l2-gkp").compact()
    refused(
        written(tmp_path, compact.state_dict()), "it is a compact network: write it with gkp.save_model, and load the folder"
    )
    folder = save_model(compact, tmp_path / "net")
    assert same(load_model("resnet20", weights=folder / "model.safetensors"), compact.eval())


# --- values that cannot be used -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.to(torch.int8), "conv1.weight is int8; give weights in floating point"),
        (lambda t: t.to("meta"), "conv1.weight has no values"),
        (lambda t: t.to(torch.complex64), "conv1.weight is complex64"),
        (lambda t: t * float("nan"), "has NaN or Inf in conv1.weight"),
        (lambda t: t.double() * 1e300, "has NaN or Inf in conv1.weight"),
    ],
)
def test_values_that_are_no_weights_are_refused(change, says, tmp_path):
    refused(written(tmp_path, {**network().state_dict(), "conv1.weight": change(network().conv1.weight.data)}), says)


def test_other_types_of_numbers_are_taken(tmp_path):
    state = {name: t.bfloat16() if t.is_floating_point() else t for name, t in bare(network()).items()}
    again = load_model("resnet20", weights=written(tmp_path, state))
    assert all(torch.equal(t.bfloat16(), state[name]) for name, t in again.state_dict().items() if name in state and t.ndim)
    assert again.fc.weight.dtype == torch.float32


# --- files that are something else ----------------------------------------------------------------------------------


class Command:
    """What runs a command when it is unpickled."""

    def __init__(self, function, *arguments):
        self.run = function, arguments

    def __reduce__(self):
        return self.run


CONTENTS = {
    "a tensor": (torch.zeros(3), r"holds a tensor \(3,\), not a state dict; save one"),
    "a list": ([torch.zeros(3)], "holds a list, not a state dict"),
    "a dict without tensors": ({"epoch": 3, "lr": 0.1}, "holds a dict of epoch, lr, not a state dict"),
    "nothing": ({}, "holds an empty dict"),
    "a network": (nn.Linear(2, 2), "holds a pickled torch.nn.modules.linear.Linear, .* save the state dict alone"),
    "a network in a dict": ({"model": nn.Linear(2, 2), "epoch": 1}, "holds a pickled torch.nn.modules.linear.Linear"),
    "an optimiser": (torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1).state_dict(), "holds a dict of state, param_groups"),
    "a command": ({"x": Command(os.system, "exit 1")}, "asks for (posix|nt).system to be run"),
    "an expression": ({"x": Command(eval, "1 + 1")}, "asks for builtins.eval to be run"),
}
BYTES = {
    "LFS pointer": (LFS, "is a Git LFS pointer, not the file; run `git lfs pull`"),
    "web page": (b"\n<!DOCTYPE html><html>Not found</html>", "is a web page, not the file; download the file itself"),
    "answer": (b'{"message": "Not Found"}', "is text .'..message.: .Not Found.*, not data"),
    "empty": (b"", "is empty; copy or download it again"),
    "never filled": (b"\0" * 4096, "is cut off before its first bytes"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0\0\0\0\0", r"is packed \(gzip\); unpack it"),
    "plain pickle": (pickle.dumps({"a": 1}, protocol=2), "is a pickle that torch.save has not written"),
    "other pickle": (_saved({"a": torch.ones(2)}, pickle_protocol=4), "cannot be read without running its code"),
    "numpy": (b"\x93NUMPY\x01\0v\0{'descr'", "is an array of numpy"),
    "Keras": (b"\x89HDF\r\n\x1a\n\0\0\0\0\0\0\0\0", "is an HDF5 file"),
    "noise": (bytes(range(255, 0, -1)), "is truncated or no checkpoint"),
}


@pytest.mark.parametrize("what", CONTENTS)
@pytest.mark.parametrize("old", [False, True])
def test_whatever_else_torch_saved_is_one_line(what, old, tmp_path):
    content, says = CONTENTS[what]
    path = tmp_path / "mine.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    refused(path, "holds a pickled network" if old and "network" in what else says)


@pytest.mark.parametrize("what", BYTES)
@pytest.mark.parametrize("place", ["mine.pth", "mine.safetensors", "public", "folder", "header"])
def test_what_came_in_place_of_a_file_is_one_line_wherever_a_file_is_read(what, place, tmp_path, monkeypatch):
    content, says = BYTES[what]
    if place == "public":
        monkeypatch.setenv("GKP_DATA", str(tmp_path))
        path = tmp_path / "checkpoints" / "resnet20-12fca82f.th"
        path.parent.mkdir()
        path.write_bytes(content)
        with pytest.raises(BadInput, match=says):
            load_model("resnet20", weights="akamaster")
    elif place in ("folder", "header"):
        folder = save_model(network(), tmp_path / "net")
        (folder / ("model.safetensors" if place == "folder" else "model.json")).write_bytes(content)
        is_general = what in ("LFS pointer", "web page", "empty", "never filled", "gzip")
        with pytest.raises(BadInput, match=says if is_general else "truncated or (tampered|not a saved)|is text") as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)
    else:
        (tmp_path / place).write_bytes(content)
        refused(tmp_path / place, says)


def test_archives_pipes_links_and_folders_are_one_line(tmp_path):
    with tarfile.open(tmp_path / "a.pth.tar", "w") as archive:
        archive.add(written(tmp_path, {"a": 1}))
    refused(tmp_path / "a.pth.tar", "is a tar archive; unpack it and give the file inside")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("weights/readme.txt", "see the paper")
    refused(tmp_path / "a.zip", "is a zip archive without weights of torch")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is not a regular file")
    (tmp_path / "link.pth").symlink_to("annex/objects/x")
    refused(tmp_path / "link.pth", "is a link to annex/objects/x, which is not there")
    refused(tmp_path, "is a folder; give the file inside it")
    refused(tmp_path / "no.pth", "no weights .* there is no such file either")
    with pytest.raises(BadInput, match="key is 3; give the name of an entry"):
        load_model("resnet20", weights=tmp_path, key=3)
    with pytest.raises(BadInput, match="weights is a dict; give a name, a file or a folder"):
        load_model("resnet20", weights={"conv1.weight": torch.zeros(1)})


@cache
def _whole(writer: str) -> bytes:
    return WRITERS[writer](behind("module.", bare(network())))


@settings(max_examples=60, deadline=None)
@given(writer=st.sampled_from([*WRITERS]), keep=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_one_line(writer, keep, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "mine.pth"
    path.write_bytes(_whole(writer)[: int(keep * len(_whole(writer)))])
    refused(path, "truncated|empty|torch.save has not written|is text|cut off")


@settings(max_examples=40, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_bit_that_has_flipped_is_refused_or_changes_nothing(at, bit, tmp_path_factory):
    """Between the tensors of a zip archive are bytes that nobody reads."""
    damaged = bytearray(_whole("torch"))
    damaged[int(at * len(damaged))] ^= 1 << bit
    path = tmp_path_factory.mktemp("flipped") / "mine.pth"
    path.write_bytes(damaged)
    try:
        again = load_model("resnet20", weights=path)
    except BadInput as error:
        assert "\n" not in str(error)
    else:
        assert same(again, network())


def test_a_file_without_checksums_is_no_damaged_one(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = written(tmp_path, bare(network()))
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(load_model("resnet20", weights=path), network())


def test_what_the_user_has_allowed_stays_allowed_and_nothing_else_is(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        load_model(
            "resnet20", weights=written(tmp_path, {"net": bare(network()), "args": argparse.Namespace(), "to": tmp_path})
        )
        assert set(torch.serialization.get_safe_globals()) == before | {argparse.Namespace}
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([*before])


# --- the command line -----------------------------------------------------------------------------------------------


def test_prune_takes_a_file_and_says_what_the_file_does_not(tmp_path, capsys):
    path = written(tmp_path, {"state_dict": behind("module.", bare(network()))})
    command = [
        "prune",
        "--model",
        "resnet20",
        "--weights",
        str(path),
        "--method",
        "l2-gkp",
        "--out",
        str(tmp_path / "small"),
        "--json",
    ]
    assert main([*command, "--mean", "0.5", "--std", "0.2,0.3,0.4"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["method"] == "l2-gkp"
    assert "is taken as resnet20, 10 classes, shortcut append, normalised by mean 0.5, 0.5, 0.5 and std 0.2, 0.3, 0.4" in err
    assert load_model(tmp_path / "small").architecture.std == (0.2, 0.3, 0.4)


def test_benchmark_and_audit_take_a_file(tmp_path, capsys):
    path, few = written(tmp_path, bare(network())), ["--dataset", "digits", "--examples", "4", "--eps", "1/255"]
    assert main(["benchmark", "--model", "resnet20", "--weights", str(path), *few, "--attack", "fgsm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 4
    assert main(["audit", "--model", "resnet20", "--weights", str(tmp_path / "no.pth"), *few]) == 2
    path.write_bytes(LFS)
    assert main(["audit", "--model", "resnet20", "--weights", str(path), *few]) == 2
    assert capsys.readouterr().err.endswith("or download the file itself\n")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--mean", "0.5,0.5"], "is not three numbers such as 0.491,0.482,0.447"),
        (["--shortcut", "none"], "shortcut of resnet20 must be one of append, centre, projection"),
        (["--key", "ema"], "has no resnet20 under key 'ema'"),
    ],
)
def test_options_of_a_file_that_make_no_sense_are_one_line(options, says, tmp_path, capsys):
    path = written(tmp_path, bare(network()))
    assert main(["prune", "--model", "resnet20", "--weights", str(path), "--out", str(tmp_path / "x"), *options]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and not (tmp_path / "x").exists()


def test_options_of_a_file_are_refused_where_there_is_none(tmp_path, capsys):
    folder = save_model(network(), tmp_path / "net")
    assert main(["prune", "--checkpoint", str(folder), "--out", str(tmp_path / "x"), "--mean", "0.5"]) == 2
    assert "--mean is for a file of weights" in capsys.readouterr().err


# --- machines -------------------------------------------------------------------------------------------------------


def test_folders_that_are_closed_to_the_user_are_passed_over(monkeypatch, tmp_path):
    """As of a container that runs as somebody else, with the home folder of root."""
    from gkp import files
    from gkp.data.sources import is_here, load_dataset

    real, closed = os.stat, str(tmp_path / "closed")

    def stat(path, *arguments, **options):
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(closed):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *arguments, **options)

    monkeypatch.setenv("GKP_DATA", closed)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: Path(closed))
    monkeypatch.setattr(files, "reachable", lambda url: False)
    monkeypatch.setattr(os, "stat", stat)
    assert files.locate("x.bin") is None and not is_here("tiny-imagenet")
    with pytest.raises(BadInput, match="is in none of the folders searched"):
        load_model("resnet110", weights="akamaster")
    with pytest.raises(BadInput, match="closed is not there"):
        load_dataset(f"folder:{closed}")


def test_kernels_are_compiled_where_their_folder_is_closed(monkeypatch, tmp_path):
    cache = pytest.importorskip("gkp.engine.cache")

    def closed(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(cache, "kernel_folder", lambda: tmp_path)
    monkeypatch.setattr(cache, "_writable", lambda folder: False)
    monkeypatch.setattr(cache, "_compiled", lambda folder: f"compiled, kept in {folder}")
    monkeypatch.setattr(os, "scandir", closed)
    assert cache._kernel.__wrapped__() == "compiled, kept in None"


def test_a_tilde_without_a_home_is_no_traceback(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    monkeypatch.setenv("GKP_DATA", "~/data")
    with pytest.raises(BadInput, match="there is no such file either"):
        load_model("resnet20", weights="~/mine.pth")


def test_torchvisions_resnet50_is_read_from_its_file(tmp_path, monkeypatch):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = torchvision.models.resnet50().eval()
    (tmp_path / "checkpoints").mkdir()
    torch.save(theirs.state_dict(), tmp_path / "checkpoints" / "resnet50-0676ba61.pth")
    monkeypatch.setenv("GKP_DATA", str(tmp_path))
    monkeypatch.setattr(public, "fetch", lambda relative, **_: locate(relative))  # its hash is that of other weights
    ours, x = load_model("resnet50", weights="torchvision"), torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        assert torch.equal(ours(x), theirs((x - mean) / std)) and ours.num_classes == 1000


def test_the_same_network_with_and_without_its_counters_is_one(tmp_path):
    state = bare(network())
    uncounted = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert same(load_model("resnet20", weights=written(tmp_path, {"a": uncounted, "b": state})), network())


def test_a_key_takes_the_layers_of_a_network_that_does_not_normalise_from_a_file_that_does(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    path = written(tmp_path, {**behind("net.", net.state_dict()), "mean": torch.full((3,), 0.5), "std": torch.full((3,), 0.5)})
    again = load_model(path, into=nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)), key="net")
    assert same(again, net)
