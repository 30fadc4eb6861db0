from pyro_bvae.evaluation.collapse.causes import Cause as Cause
from pyro_bvae.evaluation.collapse.causes import LatentDiagnosis as LatentDiagnosis
from pyro_bvae.evaluation.collapse.causes import Measurements as Measurements
from pyro_bvae.evaluation.collapse.diagnosis import Diagnosis as Diagnosis
from pyro_bvae.evaluation.collapse.diagnosis import diagnose as diagnose
from pyro_bvae.evaluation.collapse.messages import CollapseFinding as CollapseFinding
