"""Families of tasks: a file for each; the members of one are drawn at random and share a compiled program."""
