"""The small networks that the tasks train."""

from inner_tasks.networks.activation import ACTIVATIONS, Activation
from inner_tasks.networks.autoencoder import VariationalAutoencoder
from inner_tasks.networks.convolution import BatchNorm, Conv, ConvNet, GroupNorm, ResNet
from inner_tasks.networks.dense import MLP, ResidualMLP
from inner_tasks.networks.initial import random_params
from inner_tasks.networks.output import output
from inner_tasks.networks.recurrent import LanguageGRU
from inner_tasks.networks.transformer import LanguageTransformer, VisionTransformer

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Activation",
    "BatchNorm",
    "Conv",
    "ConvNet",
    "GroupNorm",
    "LanguageGRU",
    "LanguageTransformer",
    "ResNet",
    "ResidualMLP",
    "VariationalAutoencoder",
    "VisionTransformer",
    "output",
    "random_params",
]
