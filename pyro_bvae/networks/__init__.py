"""Networks: tensors of features in, tensors of parameters out."""

from pyro_bvae.networks.convolutional import ConvolutionalDecoder, ConvolutionalEncoder
from pyro_bvae.networks.linear import Linear
from pyro_bvae.networks.mlp import MLP, ResidualMLP

__all__ = ["MLP", "ConvolutionalDecoder", "ConvolutionalEncoder", "Linear", "ResidualMLP"]
