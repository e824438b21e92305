"""The hash of each data set, known without the data, so that stored results are found on a machine that has none.

The hashes are those of the data this project measured with. Another copy of the same set may differ in a few pixels
(ours of CIFAR-10 has 121 of 60,000 images from JPEG copies): it is used if its labels are the very same, and results then carry
its own hash. Anything else under the name is refused.

This module imports nothing, so that planning needs neither data nor torch.
"""

from __future__ import annotations

# "name/split": sha256 of images and labels (Dataset.sha256), sha256 of the labels alone
PINNED = {
    "digits/train": (
        "85b66fd80ea9b78e074c7954ec4f336ea146c383eeec8bda9913574206f47355",
        "d189b63059f878f96957dbb59135c5d9a58331cbb4ec2c294ff7607b91722ef1",
    ),
    "digits/val": (
        "0695dbac145124dd2fa957c78872644ccffdf87ef907b168cf2b4b2e570e3d67",
        "1b7b5dfc254068f63f173b32ae679cca06b66481efebe838cdf6192344ef0f04",
    ),
    "digits/train+val": (
        "bf473a82bf58977627271165069b43c09a79522d46e6cc5cc86b0bd293e1edb4",
        "55c32aeb0117401d6b37fac5751ce6b35e3f9c79a1f15a2880b95409a2fe8d1d",
    ),
    "digits/test": (
        "7b91050d532205c32601de098696c6243e46eaf82ef93451f5fdc29a533638dd",
        "36213efead88ec9594065112502bf969f76acf56a9dcc35f816ae855d8ab8fd2",
    ),
    "cifar10/train": (
        "58c31d481f96c395d6e941ffdbf00bf2f33de6fec6fb2909a982b0b04728bf2a",
        "a6749d00b57dd672bed2a0c5d93252643d3628fd170895331de0e4a4067e145a",
    ),
    "cifar10/val": (
        "c3e04b1c6070d90011b830a085d2e049eadcf241313a4000289b1c9ffef5df5c",
        "e5b021ebfa2ce6b0e7ec4da4096d3de5c8f76c1f1b1b4311205f60184da14e08",
    ),
    "cifar10/train+val": (
        "c1208eb6299f82f4d0771e73714d48bf332672c8a7f5ded3ff4cf87e9dbdebc3",
        "f5cfe00b0f00968c0cc5ff3b1d2de51b10e33efa277c2986f4e0fa63e58c9f4f",
    ),
    "cifar10/test": (
        "b8e91079fac0e6766050f4851fd0ee70ab5cacee08c5e5570ead75f3685c784a",
        "cbb7365de8ed11f05cc4c3a1e7f78144127c5e851efd83762fb18202461230bb",
    ),
    "tiny-imagenet-20/train": (
        "9e12478942260222b666ce79b5802fce39d76c5ff9c3e30bafbc43dce7346a4d",
        "300f6e80fa494f251df039672c1ceb18c759d276544e489462888255643f3384",
    ),
    "tiny-imagenet-20/test": (
        "89bd266c99c732784b7532e8b7f3ee842f7c23256c5ab5648f6a5ea4d792ca49",
        "8862ca67ee3d222154e9a9cb0f4c7c0b801a2b042ce5c7e65251e63fe655e60a",
    ),
}


def data_hashes(*names: str) -> dict[str, str]:
    """The pinned hash by "name/split"; "" for a set that is not pinned and is known by its name alone."""
    return {name: PINNED[name][0] if name in PINNED else "" for name in names}
