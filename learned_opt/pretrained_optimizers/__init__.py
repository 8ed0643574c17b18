"""The files of ``learned_opt.pretrained``."""
