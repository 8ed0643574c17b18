"""Marks of parameters."""

from __future__ import annotations

from functools import partial

import pytest

slow = partial(pytest.param, marks=pytest.mark.slow)  # parameters of a test that is slow with these
