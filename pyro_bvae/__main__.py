"""``python -m pyro_bvae``."""

import sys

from pyro_bvae.cli import main

sys.exit(main())
