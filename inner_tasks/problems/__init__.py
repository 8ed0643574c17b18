"""Unrolled problems that are not tasks: theta acts on them directly, without an inner optimizer."""
