"""Labelled images: digits, CIFAR-10, your own; shifted and corrupted versions of them by name."""
