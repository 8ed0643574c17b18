"""Marks of parameters."""

from __future__ import annotations

from functools import partial

import pytest

slow = partial(pytest.param, marks=pytest.mark.slow)  # parameters with which a test is slow
