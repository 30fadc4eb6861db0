from pyro_bvae.evaluation.disentanglement.all_metrics import FAST_METRICS as FAST_METRICS
from pyro_bvae.evaluation.disentanglement.all_metrics import METRICS as METRICS
from pyro_bvae.evaluation.disentanglement.all_metrics import Disentanglement as Disentanglement
from pyro_bvae.evaluation.disentanglement.all_metrics import disentanglement as disentanglement
from pyro_bvae.evaluation.disentanglement.all_metrics import score_codes as score_codes
from pyro_bvae.evaluation.disentanglement.beta_factor_vae import beta_vae_score as beta_vae_score
from pyro_bvae.evaluation.disentanglement.beta_factor_vae import (
    factor_vae_score as factor_vae_score,
)
from pyro_bvae.evaluation.disentanglement.completeness import DCI as DCI
from pyro_bvae.evaluation.disentanglement.completeness import dci as dci
from pyro_bvae.evaluation.disentanglement.mig_modularity import modularity as modularity
from pyro_bvae.evaluation.disentanglement.mig_modularity import (
    mutual_information as mutual_information,
)
from pyro_bvae.evaluation.disentanglement.mig_modularity import (
    mutual_information_gap as mutual_information_gap,
)
from pyro_bvae.evaluation.disentanglement.sap_explicitness import explicitness as explicitness
from pyro_bvae.evaluation.disentanglement.sap_explicitness import sap as sap
from pyro_bvae.evaluation.disentanglement.score import Score as Score
from pyro_bvae.evaluation.disentanglement.udr import Ranking as Ranking
from pyro_bvae.evaluation.disentanglement.udr import rank_correlation as rank_correlation
from pyro_bvae.evaluation.disentanglement.udr import (
    unsupervised_disentanglement_ranking as unsupervised_disentanglement_ranking,
)
