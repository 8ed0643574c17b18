"""Task families, one per file; the members of a family are drawn at random and share a compiled program."""
