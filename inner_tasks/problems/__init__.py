"""Unrolled problems that are not tasks: theta acts on them directly, and no optimizer is between."""
