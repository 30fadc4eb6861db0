from pyro_bvae.networks.convolutional import ConvolutionalDecoder as ConvolutionalDecoder
from pyro_bvae.networks.convolutional import ConvolutionalEncoder as ConvolutionalEncoder
from pyro_bvae.networks.linear import Linear as Linear
from pyro_bvae.networks.mlp import MLP as MLP
from pyro_bvae.networks.mlp import ResidualMLP as ResidualMLP
from pyro_bvae.networks.standardize import Standardize as Standardize
