"""The table of 442 diabetes patients that comes with scikit-learn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

TRAIN = 342  # rows; the remaining hundred are for validation


class Table(NamedTuple):
    """Rows of a table."""

    inputs: np.ndarray  # float32 [rows, 10], columns standardised by the moments of the training rows
    targets: np.ndarray  # float32 [rows], likewise


class TableData(NamedTuple):
    """A table, split."""

    train: Table
    validation: Table


def diabetes_table() -> TableData:
    """Load ten measurements of each patient, and the progression of the disease a year later."""
    from sklearn.datasets import load_diabetes

    inputs, targets = load_diabetes(return_X_y=True, scaled=False)
    order = np.random.RandomState(0).permutation(len(targets))
    columns = np.column_stack([inputs, targets])[order]
    train = columns[:TRAIN]
    columns = ((columns - train.mean(0)) / train.std(0)).astype(np.float32)
    rows = Table(columns[:, :-1], columns[:, -1])
    return TableData(*(Table(*(x[part] for x in rows)) for part in (slice(TRAIN), slice(TRAIN, None))))
