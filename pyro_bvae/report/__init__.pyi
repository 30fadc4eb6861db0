from pyro_bvae.report.page import write_report as write_report
