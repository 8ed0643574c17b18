"""The 8x8 digits that come with scikit-learn: no download, no cache."""

from __future__ import annotations

import numpy as np

from inner_tasks.datasets.splits import Dataset, Split, cut, make_dataset, permute

TRAINING_EXAMPLES = 1400


def load_digits() -> Dataset:
    """Load the 1,797 digits, in a fixed random order: 1,400 train, 197 validation, 200 test.

    Returns:
        Images of 64 pixels with values 0..16.
    """
    from sklearn import datasets  # takes a second to import

    images, labels = datasets.load_digits(return_X_y=True)
    everything = permute(Split(images.astype(np.uint8), labels.astype(np.int32)))
    train, held_out = cut(everything, TRAINING_EXAMPLES)
    validation, test = cut(held_out, 197)
    return make_dataset(train, validation, test)
