"""``python -m meta_train`` is `meta-train`."""

from __future__ import annotations

import sys

if not sys.flags.safe_path:
    # The current folder, which -m puts first: what lies in it is not to be taken for a package.
    del sys.path[0]

from meta_train.commands.entry_points import meta_train  # noqa: E402

meta_train()
