from pyro_bvae.core.findings import Finding as Finding
from pyro_bvae.evaluation.program_audit.auditor import Audit as Audit
from pyro_bvae.evaluation.program_audit.auditor import audit as audit
