"""`make zoo`: networks of torchvision and timm, pruned and checked one by one; the table goes to docs/zoo.md.

Not a test: hours on two cores. Each network and method has a process of its own. Results are kept in build/zoo, so that another
run takes only what is missing (`make clean` forgets them); small networks come first. `python tests/zoo.py WORDS` takes only
what has these words in "library/network method"; `--page` writes the table of what there is.

Weights are random and seeded, none are downloaded. What is constant in a new network (scales of 1 or 1e-6, offsets of 0, the
statistics of BatchNorms) is given some noise first, so that no zero hides a difference.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import multiprocessing
import platform
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import gkp
from gkp.pruning import find_input_shape

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("l2-gkp", "l2")
RATE = 0.5
LIMIT = 60  # seconds of the processor that `gkp.prune` may take
CPU_LIMIT, WALL_LIMIT = 300, 3600  # after which a process is ended, building and checking included
TOLERANCE = 1e-4  # between masked and compact in float32, of the largest output
LARGEST = 150e6  # parameters; larger networks are skipped

# One of each module of timm that has convolutions besides the one that reads the image, a small one, and six of the others.
_SMALL = """
botnet26t_256 mobileone_s0 coat_lite_tiny convmixer_768_32 convnextv2_atto cs3darknet_s davit_tiny deit_tiny_patch16_224
densenet121 dla46_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 mixnet_s efficientvit_b0 efficientvit_m0
fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hardcorenas_a hgnetv2_b0 hrnet_w18_small inception_next_tiny
inception_resnet_v2 inception_v3 inception_v4 levit_conv_128s coatnet_pico_rw_224 poolformer_s12 mixer_s32_224
mobilenetv3_small_050 mobilevit_xxs nest_tiny nextvit_small nf_regnet_b0 pvt_v2_b0 rdnet_tiny regnetz_005 repghostnet_050
repvit_m0_9 res2net50_14w_8s resnest14d resnet10t resnetv2_50x1_bit rexnet_100 selecsls42b legacy_seresnet18 sequencer2d_s
skresnet18 tiny_vit_5m_224 tresnet_m twins_svt_small visformer_tiny vit_tiny_patch16_224 vit_tiny_r_s16_p8_224
vitamin_small_224 ese_vovnet19b_slim_dw xcit_nano_12_p16_224
"""
TIMM = _SMALL.split()
# Families of torchvision by the start of their names; those behind the first three are networks of convolutions.
_STARTS = """
vit_ swin_v2 swin_ alexnet convnext densenet efficientnet_b efficientnet_v2 googlenet inception_v3 maxvit mnasnet mobilenet_v2
mobilenet_v3 regnet_x regnet_y resnet resnext shufflenet_v2 squeezenet vgg wide_resnet
"""
FAMILIES = _STARTS.split()
FAULTS = ("wrong", "traceback", "over its time limit", "died")
PACKAGES = ("torch", "torchvision", "timm")


class Run(NamedTuple):
    """One network and method."""

    library: str
    network: str
    method: str

    def __str__(self) -> str:
        return f"{self.library}/{self.network} {self.method}"

    def path(self, folder: Path) -> Path:
        return folder / f"{self.library}-{self.network}-{self.method}.json"


def build(library: str, network: str) -> nn.Module:
    """A new network of this name."""
    if library == "timm":
        import timm

        return timm.create_model(network)
    import torchvision

    extra = {"init_weights": True} if network in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(network, weights=None, **extra)


def sizes(folder: Path) -> dict[tuple[str, str], int]:
    """The number of parameters by library and network, counted once."""
    import torchvision

    path = folder / "sizes.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    names = [("torchvision", name) for name in torchvision.models.list_models(module=torchvision.models)]
    names += [("timm", name) for name in TIMM]
    for library, network in names:
        if f"{library}/{network}" not in known:
            known[f"{library}/{network}"] = parameters(library, network)
            write(path, known)
    return {(library, network): known[f"{library}/{network}"] for library, network in names}


def parameters(library: str, network: str) -> int:
    """How many a network has; on the meta device, which takes no time, where it can be built there."""
    for device in ("meta", "cpu"):
        try:
            with warnings.catch_warnings(), torch.device(device):
                warnings.simplefilter("ignore")
                return sum(p.numel() for p in build(library, network).parameters())
        except Exception:  # many networks ask for numbers while they are built
            if device == "cpu":
                raise
    raise AssertionError


@torch.no_grad()
def awake(net: nn.Module) -> nn.Module:
    """`net` itself, with noise on every parameter that is constant and on the statistics of BatchNorms."""
    for p in net.parameters():
        if p.is_floating_point() and p.numel() > 1 and bool((p == p.flatten()[0]).all()):
            p.add_(torch.randn(p.shape), alpha=0.1)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.add_(torch.randn(module.num_features), alpha=0.1)
            module.running_var.mul_(torch.rand(module.num_features) + 0.5)
    return net


def prune_and_check(net: nn.Module, method: str) -> dict[str, Any]:
    """Prune `net` and compare the masked twin with the compact network; what came of it."""
    net, started = net.eval(), time.process_time()
    try:
        pruned = gkp.prune(net, method, rate=RATE)
    except gkp.BadInput as refused:
        return {"status": "refused", "reason": str(refused), "seconds": time.process_time() - started}
    seconds = time.process_time() - started
    shape, small = find_input_shape(net), pruned.compact().eval()
    images = torch.rand(2, *shape)
    with torch.no_grad():
        dense, masked, compact = (outputs(one, images) for one in (net, pruned.eval(), small))
    scale = float(masked.abs().max())
    names = {name for name, _ in net.named_modules()}
    found = {
        "status": "exact",
        "seconds": seconds,
        "pruned": len(pruned.plan),
        "left_out": Counter(kind_of(reason, names) for reason in pruned.left_out.values()),
        "difference": float((masked - compact).abs().max()) / scale,
        "moved": float((masked - dense).abs().max()) / scale,
        "shape": shape,
        "parameters_left": sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in net.parameters()),
    }
    if not found["difference"] <= TOLERANCE or not found["moved"] > TOLERANCE:
        found |= {"status": "wrong", "reason": f"differs by {found['difference']:.1g}, moved by {found['moved']:.1g}"}
    elif seconds > LIMIT:
        found |= {"status": "over its time limit", "reason": f"{seconds:.0f} s of the processor"}
    return found


def outputs(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The logits of `images`."""
    found = net(images.clone())
    return found if isinstance(found, torch.Tensor) else found[0]


def kind_of(reason: str, names: set[str]) -> str:
    """A reason without the names and numbers of one layer, so that equal ones can be counted."""
    words = [
        ("another layer" + word[len(word.rstrip(",;:")) :]) if word.rstrip(",;:") in names else word for word in reason.split()
    ]
    return re.sub(r"\d+(\.\d+)?(e-?\d+)?", "N", " ".join(words).partition("; give more")[0])


def child(run: Run, path: Path) -> None:
    """What the process of one run does; it writes its result."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT, CPU_LIMIT))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = prune_and_check(awake(build(run.library, run.network)), run.method)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} ({where})"
            found = {"status": "traceback", "reason": reason, "traceback": traceback.format_exc()}
    if found["status"] == "refused" and found["seconds"] > LIMIT:
        found |= {"status": "over its time limit", "reason": f"refused after {found['seconds']:.0f} s: {found['reason']}"}
    found["wall"] = time.monotonic() - started
    found["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write(path, found | context())


def context() -> dict[str, Any]:
    """What a result hangs on: versions, machine and a hash of the code that prunes."""
    code = hashlib.sha256()
    for path in sorted((ROOT / "gkp" / "pruning").rglob("*.py")):
        code.update(path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"versions": versions, "code": code.hexdigest()[:12], "python": platform.python_version()}


def in_its_own_process(run: Run, path: Path) -> dict[str, Any]:
    """The result of `run`, also if its process dies or does not end."""
    process = multiprocessing.get_context("fork").Process(target=child, args=(run, path))
    process.start()
    process.join(WALL_LIMIT)
    if hanging := process.is_alive():
        process.kill()
        process.join()
    if not path.exists():
        late = hanging or process.exitcode == -signal.SIGXCPU
        spent = f"ended after {WALL_LIMIT if hanging else CPU_LIMIT} s" + " of the processor" * (not hanging)
        reason = spent if late else f"exit code {process.exitcode}"
        write(path, {"status": "over its time limit" if late else "died", "reason": reason} | context())
    return json.loads(path.read_text())


def write(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.rename(path)


def family(network: str) -> str:
    """The family of a network of torchvision."""
    return next(start for start in FAMILIES if network.startswith(start))


def page(found: dict[Run, dict[str, Any]], of: dict[tuple[str, str], int]) -> str:
    """docs/zoo.md: counts, and a table for each library."""
    now = context()
    runs = [Run(library, network, method) for library, network in of for method in METHODS if of[library, network] <= LARGEST]
    large = [f"{network} ({of[library, network] / 1e6:.0f} M)" for library, network in of if of[library, network] > LARGEST]
    older = sum(result["code"] != now["code"] for result in found.values())
    lines = [
        "# Zoo: networks of torchvision and timm",
        "",
        "Written by `make zoo` (`tests/zoo.py` says how); every number is from a run. The networks of torchvision",
        f"and {len(TIMM)} networks of timm, small ones of all families, are pruned by `gkp.prune(net, method, rate={RATE:g})`,",
        "each in a process of its own, on one thread, with random weights. Then masked twin and compact network see the same",
        "two random images, of the smallest usual size that the network takes.",
        "",
        "- **exact**: they compute the same; the largest difference of float32 logits is a fraction of the largest logit.",
        "- **refused**: `gkp.prune` said in one line why it prunes nothing.",
        f"- **{'**, **'.join(FAULTS)}**: faults. Wrong is a difference above {TOLERANCE:g}, or",
        f"  a twin that computes what the dense network does; the time limit is {LIMIT} s of the processor for `gkp.prune`.",
        "",
        f"Versions: {', '.join(f'{name} {version}' for name, version in now['versions'].items())}, Python {now['python']}.",
        "Seconds are of the processor, in `gkp.prune` alone; MB is the most memory of the process, 0.6 GB of it libraries.",
        f"Skipped for their size, above {LARGEST / 1e6:.0f} M parameters: {', '.join(large)}.",
        "",
        "## Counts",
        "",
        "| library | method | networks | run | exact | refused | " + " | ".join(FAULTS) + " |",
        "|---|---|---|---|---|---|" + "---|" * len(FAULTS),
    ]
    for library in ("torchvision", "timm"):
        for method in METHODS:
            mine = [run for run in runs if (run.library, run.method) == (library, method)]
            counts = Counter(found[run]["status"] for run in mine if run in found)
            columns = [len(mine), sum(counts.values()), *(counts[status] for status in ("exact", "refused", *FAULTS))]
            lines.append(f"| {library} | {method} | {' | '.join(map(str, columns))} |")
    exact, seen = (
        {
            family(run.network)
            for run in runs
            if run.library == "torchvision" and run.method == "l2-gkp" and run in found and test(run)
        }
        for test in (lambda run: found[run]["status"] == "exact", lambda run: True)
    )
    whole = {name for name in seen if all(_fine(found.get(run)) for run in runs if _is_of(run, name))}
    ordinary = FAMILIES[3:]
    lines += [
        "",
        f"torchvision has {len(ordinary)} families of convolutional networks, and three of transformers whose one convolution",
        f"reads the image. Pruned exactly by l2-gkp: {len(exact & set(ordinary))} of those {len(ordinary)} with one network",
        f"at least, {len(whole & set(ordinary))} with each of their networks that is not skipped.",
    ]
    if older:
        lines += ["", f"{older} of {len(found)} results are of an earlier state of `gkp/pruning`."]
    for library in ("torchvision", "timm"):
        lines += ["", f"## {library}", "", *_table([run for run in runs if run.library == library], found, of)]
    return "\n".join(lines) + "\n"


def _is_of(run: Run, name: str) -> bool:
    return run.library == "torchvision" and run.method == "l2-gkp" and family(run.network) == name


def _fine(result: dict[str, Any] | None) -> bool:
    return result is not None and result["status"] == "exact"


def _table(runs: list[Run], found: dict[Run, dict[str, Any]], of: dict[tuple[str, str], int]) -> list[str]:
    lines = [
        "| network | M parameters | method | status | layers pruned | left out, and why | weights left | difference | s | MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    missing = []
    for run in runs:
        if (result := found.get(run)) is None:
            missing.append(f"{run.network} {run.method}")
            continue
        out = Counter(result.get("left_out", {}))
        why = [f"{count} {reason}" for reason, count in out.most_common(3)]
        why += [f"{rest} for other reasons"] if (rest := out.total() - sum(count for _, count in out.most_common(3))) else []
        numbers = ("", "", "")
        if "pruned" in result:
            numbers = (str(result["pruned"]), f"{result['parameters_left']:.0%}", f"{result['difference']:.0e}")
        text = result.get("reason") or "; ".join(why)
        took = f"{result['seconds']:.1f}" if "seconds" in result else ""
        memory = f"{result['megabytes']:.0f}" if "megabytes" in result else ""
        size = f"{of[run.library, run.network] / 1e6:.1f}"
        status = f"**{result['status']}**" if result["status"] in FAULTS else result["status"]
        cells = (run.network, size, run.method, status, numbers[0], _cell(text), numbers[1], numbers[2], took, memory)
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, *(["", f"Not run yet: {', '.join(missing)}."] if missing else [])]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:300]


def main(*arguments: str, folder: Path = ROOT / "build" / "zoo", target: Path = ROOT / "docs" / "zoo.md") -> int:
    of = sizes(folder)
    words = [word for word in arguments if not word.startswith("--")]
    runs = [
        Run(library, network, method)
        for method in METHODS
        for (library, network), size in sorted(of.items(), key=lambda item: item[1])
        if size <= LARGEST
    ]
    found = {run: json.loads(run.path(folder).read_text()) for run in runs if run.path(folder).exists()}
    todo = [run for run in runs if run not in found and all(word in str(run).split() or word in str(run) for word in words)]
    for run in [] if "--page" in arguments else todo:
        found[run] = result = in_its_own_process(run, run.path(folder))
        print(
            f"{run!s:<48}{result['status']:<10}{result.get('seconds', 0):>7.1f} s  {result.get('reason', '')[:160]}", flush=True
        )
        target.write_text(page(found, of))
    target.parent.mkdir(exist_ok=True)
    target.write_text(page(found, of))
    return int(any(result["status"] in FAULTS for result in found.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
