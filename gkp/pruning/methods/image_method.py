"""The base of methods that look at images: batches of them, and the feature maps of layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkp.data.dataset import Dataset
from gkp.errors import BadInput
from gkp.networks.classifier import eval_mode
from gkp.pruning.coupling import Couplings
from gkp.pruning.methods.filter_method import FilterMethod


@dataclass(frozen=True)
class ImageMethod(FilterMethod):
    """A filter method that looks at images.

    Args:
        data: A training split.
        n_batches: Number of batches, drawn without repetition.
        batch_size: Images per batch.
        seed: Of the draw.

    The other fields are those of `FilterMethod`.
    """

    data: Dataset | None = None
    n_batches: int = 5
    batch_size: int = 128
    seed: int = 0

    @property
    def n_images(self) -> int:
        """Number of images looked at: all there are, if `data` has fewer than asked for."""
        assert self.data is not None
        return min(self.n_batches * self.batch_size, len(self.data))

    def batches(self, net: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs (x float32 in [0, 1], y int64) on the device of `net`, which is in eval mode meanwhile, without gradients.

        Raises:
            BadInput: No data, or fewer than one image per batch.
        """
        if self.data is None or self.n_batches < 1 or self.batch_size < 1:
            raise BadInput(f"{type(self).__name__} needs data, n_batches and batch_size of 1 or more")
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.seed))
        device = next(net.parameters()).device
        with eval_mode(net), torch.no_grad():
            yield from self.data.subset(order[: self.n_images]).batches(self.batch_size, device=device)


class MapMethod(ImageMethod):
    """An image method that scores a filter by its feature maps, image by image. A new one overrides `of_maps`."""

    @abstractmethod
    def of_maps(self, maps: Tensor) -> Tensor:
        """Scores of filters `(N, C)`, image by image, from their maps after the ReLU `(N, C, H, W)`."""

    def scores(self, net: nn.Module, convs: Mapping[str, nn.Conv2d]) -> dict[str, Tensor]:
        """The mean of `of_maps` over the images, neither cropped nor mirrored, the network in evaluation mode."""
        total = {name: torch.zeros(conv.out_channels, dtype=torch.float64) for name, conv in convs.items()}
        for x, _ in self.batches(net):
            for name, maps in feature_maps(net, convs, x, self.input_shape).items():
                total[name] += self.of_maps(maps.cpu()).double().sum(dim=0)
        return {name: sums / self.n_images for name, sums in total.items()}


def norm_or_conv(
    net: nn.Module, convs: Mapping[str, nn.Conv2d], input_shape: tuple[int, ...] | None = None
) -> dict[str, nn.Module]:
    """The BatchNorm behind each convolution by name, or the convolution itself if there is none."""
    couplings = Couplings(net, input_shape)
    return {name: net.get_submodule(couplings.norm_of(name) or name) for name in convs}


def feature_maps(
    net: nn.Module, convs: Mapping[str, nn.Conv2d], x: Tensor, input_shape: tuple[int, ...] | None = None
) -> dict[str, Tensor]:
    """Feature maps `(N, C_out, H, W)` of images `x` by layer name, after its BatchNorm, if it has one, and a ReLU."""
    maps: dict[str, Tensor] = {}
    hooks = []

    def listen(name: str, module: nn.Module) -> None:
        hooks.append(module.register_forward_hook(lambda _, __, output: maps.update({name: F.relu(output.detach())})))

    for name, module in norm_or_conv(net, convs, input_shape).items():
        listen(name, module)
    try:
        with torch.no_grad():
            net(x)
    finally:
        for hook in hooks:
            hook.remove()
    return maps
