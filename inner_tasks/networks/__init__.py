"""The small networks that tasks train."""

from inner_tasks.networks.activation import ACTIVATIONS, Activation
from inner_tasks.networks.convolution import Conv, ConvNet
from inner_tasks.networks.dense import MLP
from inner_tasks.networks.output import output

__all__ = ["ACTIVATIONS", "MLP", "Activation", "Conv", "ConvNet", "output"]
