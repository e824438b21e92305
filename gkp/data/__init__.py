"""Labelled images: data sets, batches, augmentation, and changed test sets."""
