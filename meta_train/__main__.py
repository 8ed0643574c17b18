"""``python -m meta_train`` is `meta-train`."""

from __future__ import annotations

from meta_train.cli import main

main()
