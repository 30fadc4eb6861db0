from pyro_bvae.report.comparison_page import write_comparison as write_comparison
from pyro_bvae.report.page import write_report as write_report
from pyro_bvae.report.page import write_runs as write_runs
