from pyro_bvae.evaluation.program_audit.auditor import Audit as Audit
from pyro_bvae.evaluation.program_audit.auditor import audit as audit
from pyro_bvae.evaluation.program_audit.traces import Finding as Finding
