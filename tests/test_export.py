"""ONNX files against torch, in ONNX Runtime; torch.export and torch.jit.trace of compact networks."""

import importlib.util

import pytest
import torch
from attack_nets import images
from method_checks import lived_in
from torch import Tensor, nn

import gkp
from gkp.errors import BadInput
from gkp.networks.bottleneck import BottleneckResNet
from gkp.networks.classifier import Architecture, CifarResNet

needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason='needs: pip install "gkp[onnx,bench]"'
)


def residual() -> nn.Module:
    """One block a stage, with BatchNorms as after training."""
    torch.manual_seed(0)
    return lived_in(CifarResNet(Architecture("resnet20"), 1))


def bottleneck() -> nn.Module:
    torch.manual_seed(0)
    return lived_in(BottleneckResNet(Architecture("resnet101"), (1, 1, 1, 1), small_images=True))


COMPACT = {
    "grouped kernels": lambda: gkp.prune(residual(), "sr-gkp").compact(),
    "grouped kernels, bottlenecks": lambda: gkp.prune(bottleneck(), "l2-gkp").compact(),
    "filters": lambda: gkp.prune(residual(), "l2").compact(),
    "low rank": lambda: gkp.prune(residual(), "lrf").compact(),
}
NETS = {
    "dense": residual,
    "masked twin": lambda: gkp.prune(residual(), "l2-gkp"),
    "no BatchNorm, no parameters": lambda: nn.Sequential(nn.AvgPool2d(8), nn.Flatten()),
    **COMPACT,
}


def side(net: nn.Module) -> int:
    return 64 if isinstance(net, BottleneckResNet) else 32


@needs_onnx
@pytest.mark.parametrize("form", NETS)
def test_onnx_runtime_gives_the_logits_of_torch_for_any_number_of_images(form, tmp_path):
    import onnxruntime

    net = NETS[form]().train()
    file = gkp.export(net, tmp_path / "new" / "net.onnx")
    assert [path.name for path in file.parent.iterdir()] == ["net.onnx"] and net.training
    session, net = onnxruntime.InferenceSession(file), net.eval()
    for count in (1, 3, 17):
        x = images(count, (3, side(net), side(net)), seed=count)
        (found,) = session.run(None, {"images": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), net(x), rtol=0, atol=1e-4)


@needs_onnx
def test_a_file_is_the_same_each_time_and_names_no_path_of_this_machine(tmp_path):
    import onnx

    first, second = (gkp.export(residual(), tmp_path / name) for name in ("a.onnx", "b.onnx"))
    assert first.read_bytes() == second.read_bytes()
    model = onnx.load(first)
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in (*model.graph.input, *model.graph.output)] == ["N", "N"]
    assert b".py" not in first.read_bytes()


@needs_onnx
def test_images_of_another_size_are_exported_when_asked_for(tmp_path):
    import onnx

    (given,) = onnx.load(gkp.export(residual(), tmp_path / "net.onnx", input_shape=(3, 24, 40))).graph.input
    assert [dim.dim_value for dim in given.type.tensor_type.shape.dim][1:] == [3, 24, 40]


class Odd(nn.Module):
    """Networks that cannot be exported."""

    def __init__(self, way: str):
        super().__init__()
        self.way, self.conv = way, nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.conv(x).mean((2, 3))
        if self.way == "numbers":
            return logits if logits.sum() > 0 else -logits
        if self.way == "batch":
            return logits if len(x) == 2 else logits + 1
        return (logits, logits) if self.way == "tuple" else self.conv(x)


@needs_onnx
@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: "resnet20", "writes a torch.nn.Module, not str"),
        (lambda: residual().half(), r"CifarResNet has float16 numbers; call \.float\(\)"),
        (lambda: residual().double(), "has float64 numbers"),
        (lambda: Odd("numbers"), "cannot export Odd for any number of images"),
        (lambda: Odd("batch"), "cannot export Odd for any number of images"),
        (lambda: Odd("map"), r"does not give logits \(N, classes\)"),
        (lambda: Odd("tuple"), r"does not give logits \(N, classes\)"),
        (lambda: nn.Linear(7, 2), "no usual image size passes through Linear"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line_and_nothing_is_written(net, message, tmp_path, capfd):
    with pytest.raises(BadInput, match=message) as refused:
        gkp.export(net(), tmp_path / "new" / "net.onnx")
    assert "\n" not in str(refused.value) and list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@needs_onnx
def test_images_that_do_not_pass_and_files_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"\(4, 32, 32\) images do not pass through CifarResNet .*; give input_shape"):
        gkp.export(residual(), tmp_path / "net.onnx", input_shape=(4, 32, 32))
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInput, match="folder: cannot be written"):
        gkp.export(nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), tmp_path / "folder")
    with pytest.raises(BadInput, match=r"no .pt file: export writes ONNX; name it .onnx"):
        gkp.export(nn.Linear(2, 2), tmp_path / "net.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_without_the_extra_it_is_named_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("gkp.errors.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r'^onnx, onnxscript not installed; .*pip install "gkp\[onnx\]"$'):
        gkp.export(residual(), tmp_path / "net.onnx")


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("form", COMPACT)
def test_compact_networks_can_be_traced_and_exported_by_torch(form):
    net = COMPACT[form]().eval()
    x, other = (images(count, (3, side(net), side(net)), seed=count) for count in (2, 5))
    traced = torch.jit.trace(net, x)
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("N", min=1)},)).module()
    with torch.no_grad():
        for found in (traced(other), exported(other)):
            torch.testing.assert_close(found, net(other), rtol=0, atol=1e-6)
