from pyro_bvae.evaluation.geometry.axes import RotationTest as RotationTest
from pyro_bvae.evaluation.geometry.geodesics import Geodesic as Geodesic
from pyro_bvae.evaluation.geometry.geodesics import geodesic as geodesic
from pyro_bvae.evaluation.geometry.jacobian import DecoderGeometry as DecoderGeometry
from pyro_bvae.evaluation.geometry.jacobian import decoder_geometry as decoder_geometry
from pyro_bvae.evaluation.geometry.jacobian import decoder_jacobian as decoder_jacobian
from pyro_bvae.evaluation.geometry.jacobian import fisher_rao as fisher_rao
