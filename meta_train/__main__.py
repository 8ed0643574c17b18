"""``python -m meta_train`` is `meta-train`."""

from __future__ import annotations

import sys

if not sys.flags.safe_path:
    # -m puts the current folder first; files in it must not be imported as packages.
    del sys.path[0]

from meta_train.commands.entry_points import meta_train  # noqa: E402

meta_train()
